"""Tools that measure servers under load, each run to its end against a running server with the haiku model: every request is answered, and what
the tool has measured is what the server's own metrics say.

Called by run.sh with the tool (aiperf, vllm), its environment, the server's address, its key, and the folders of a tokenizer and for files.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.request

TOOL, ENVIRONMENT, BASE, KEY, TOKENIZER, WORK = sys.argv[1:]
REQUESTS, CLIENTS, PROMPT, ANSWER = 40, 4, 100, 32


def metrics():
    request = urllib.request.Request(f"{BASE}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    text = urllib.request.urlopen(request).read().decode()
    return {name: float(value) for name, value in re.findall(r"^qernel_([a-z_]+) ([0-9.e+-]+)$", text, re.MULTILINE)}


def run(*arguments, **environment):
    command = [f"{ENVIRONMENT}/bin/{arguments[0]}", *map(str, arguments[1:])]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


def aiperf(kind):
    """Milliseconds to the first and between tokens, requests a second, requests, failed ones, tokens of all answers."""
    folder = pathlib.Path(WORK) / f"aiperf-{kind}"
    run(
        *("aiperf", "profile", "-m", "haiku", "--url", BASE, "--api-key", KEY, "--endpoint-type", kind, "--streaming"),
        *("--tokenizer", TOKENIZER, "--use-server-token-count", "--random-seed", 1, "--artifact-dir", folder),
        *("--concurrency", CLIENTS, "--request-count", REQUESTS, "--warmup-request-count", 2),
        *("--prompt-input-tokens-mean", PROMPT, "--output-tokens-mean", ANSWER, "--extra-inputs", "ignore_eos:true"),
        *("--ui", "none", "--no-gpu-telemetry"),
    )
    found = json.loads((folder / "profile_export_aiperf.json").read_text())
    value = lambda name: found[name]["avg"]
    failed = REQUESTS - value("request_count")
    names = ("time_to_first_token", "inter_token_latency", "request_throughput", "request_count")
    return *map(value, names), failed, value("total_output_tokens")


def vllm(kind):
    """As aiperf."""
    backend, path = {"chat": ("openai-chat", "/v1/chat/completions"), "completions": ("openai", "/v1/completions")}[kind]
    name = f"vllm-{kind}.json"
    run(
        *("vllm", "bench", "serve", "--backend", backend, "--base-url", BASE, "--endpoint", path, "--model", "haiku"),
        *("--tokenizer", TOKENIZER, "--dataset-name", "random", "--random-input-len", PROMPT, "--random-output-len", ANSWER),
        *("--num-prompts", REQUESTS, "--max-concurrency", CLIENTS, "--num-warmups", 2, "--ignore-eos", "--seed", 1),
        *("--disable-tqdm", "--save-result", "--result-dir", WORK, "--result-filename", name),
        OPENAI_API_KEY=KEY,
    )
    found = json.loads((pathlib.Path(WORK) / name).read_text())
    names = ("mean_ttft_ms", "mean_tpot_ms", "request_throughput", "completed", "failed", "total_output_tokens")
    return [found[name] for name in names]


def is_near(found, expected, slack):
    """The tool's side has the way of the bytes too, and a machine that it shares with the server."""
    return expected / 2 <= found <= 2 * expected + slack


# AIPerf takes no usage from `response.incomplete`, with which answers of /v1/responses end that are as long as they may be.
for kind in {"aiperf": ("chat", "completions", "messages"), "vllm": ("chat", "completions")}[TOOL]:
    before = metrics()
    first, between, throughput, completed, failed, tokens = globals()[TOOL](kind)
    after = metrics()
    delta = lambda name: after.get(name, 0) - before.get(name, 0)
    mean = lambda name: 1000 * delta(f"{name}_seconds_sum") / delta(f"{name}_seconds_count")
    assert (completed, failed, tokens) == (REQUESTS, 0, REQUESTS * ANSWER), (completed, failed, tokens)
    # The server has also those that are not measured.
    answers = delta("time_to_first_token_seconds_count")
    assert REQUESTS < answers <= REQUESTS + 4, answers
    assert delta("completion_tokens_total") == answers * ANSWER, after
    own_first, own_between = mean("time_to_first_token"), mean("time_between_tokens")
    assert is_near(first, own_first, 50), (first, own_first)
    assert is_near(between, own_between, 5), (between, own_between)
    # As many at a time as there are clients take that long.
    expected = 1000 * CLIENTS / (own_first + own_between * (ANSWER - 1))
    assert expected / 4 <= throughput <= 2 * expected, (throughput, expected)
    print(
        f"   {kind}: first token {first:.1f} ms (the server says {own_first:.1f}), next {between:.2f} ms ({own_between:.2f}), "
        f"{throughput:.1f} requests/s"
    )
    print("ok", TOOL, kind)
