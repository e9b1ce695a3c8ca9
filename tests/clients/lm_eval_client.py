"""EleutherAI's lm-eval, against a running server with the haiku model: tasks that are scored by log-probabilities of prompts, and one of
answers. The texts are those of models/haiku, so that nothing is fetched.

Called by run.sh with the server's address, its key and the program; see docs/server.md.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1", LMEVAL_LOG_LEVEL="ERROR")
BASE, KEY, PROGRAM = sys.argv[1:]
os.environ["OPENAI_API_KEY"] = KEY

import lm_eval  # noqa: E402
import numpy  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

TASKS = TaskManager(include_path=str(pathlib.Path(__file__).parent / "lm_eval"), include_defaults=False)


def evaluate(model, path, tasks, **more):
    arguments = dict(model="haiku", base_url=f"{BASE}{path}", num_concurrent=4, max_retries=1, max_length=512, auth_token=KEY)
    return lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=tasks, task_manager=TASKS, bootstrap_iters=0, random_seed=1, **more
    )


def ids_of(text):
    said = subprocess.run([PROGRAM, "tokenize", text], check=True, capture_output=True, text=True).stdout
    return [int(word) for word in said.split()]


def log_likelihood(context, continuation):
    """The sum of the continuation's log-probabilities and whether each was the largest, from logits that the program saves. White space
    at the context's end belongs to the continuation, as lm-eval has it."""
    head, ids = ids_of(context.rstrip()), ids_of(context + continuation)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "logits.npy"
        joined = ",".join(map(str, ids))
        subprocess.run([PROGRAM, "logits", "--device", "cpu", "--ids", joined, "--save", str(path)], check=True)
        logits = numpy.load(path).astype(numpy.float64)
    places = numpy.arange(len(head), len(ids))
    rows = logits[places - 1]
    peaks = rows.max(axis=1)
    found = rows[numpy.arange(len(places)), numpy.array(ids)[places]]
    total = (found - peaks - numpy.log(numpy.exp(rows - peaks[:, None]).sum(axis=1))).sum()
    return total, bool((found == peaks).all())


def scored_by_prompts():
    found = evaluate("local-completions", "/v1/completions", ["haiku_choice", "haiku_text"], log_samples=True)
    choice, text = found["results"]["haiku_choice"], found["results"]["haiku_text"]
    for sample in found["samples"]["haiku_choice"][:4]:
        for argument, response in zip(sample["arguments"], sample["filtered_resps"]):
            total, greedy = log_likelihood(*argument)
            # A server keeps K and V in f16, and what saves logits in f32.
            assert abs(response[0] - total) < 2e-2 and response[1] == greedy, (argument, response, total, greedy)
    # A quarter would be chance.
    assert choice["acc,none"] > 0.5, choice
    assert 0 < text["bits_per_byte,none"] < 8, text
    print(f"   choice {choice['acc,none']:.4f}, {text['bits_per_byte,none']:.4f} bits a byte")


def answers():
    chat = dict(apply_chat_template=True)
    found = evaluate("local-chat-completions", "/v1/chat/completions", ["haiku_words"], **chat)["results"]["haiku_words"]
    assert found["acc,none"] > 0.8, found
    print(f"   words kept {found['acc,none']:.4f}")


for test in (scored_by_prompts, answers):
    test()
    print("ok", test.__name__)
