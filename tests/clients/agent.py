"""mini-swe-agent, unmodified, mends a program with a tool, against a server with a model that says what it is to do (scripted_model.py).

What it shows: the agent's requests are taken, calls of tools come out of the model's text as the agent expects them, it runs them, and what came of them
reaches the model's next turn. What it does not: that a model could find out by itself what to do.

    python tests/clients/agent.py target/release/qernel FOLDER/bin/mini WORK

Called by run.sh with the agent's environment; the Python is one with gguf.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import scripted_model
from scripted_model import call

QERNEL, MINI, WORK = (pathlib.Path(argument).absolute() for argument in sys.argv[1:4])
SCRIPT = [
    "I look at what is there, and whether it works." + call("bash", command="ls; cat sums.py; python3 check.py"),
    "It subtracts where it should add." + call("bash", command="sed -i 's/a - b/a + b/' sums.py && cat sums.py"),
    "Now it is checked again." + call("bash", command="python3 check.py && echo 'as it should be'"),
    "That is all." + call("bash", command="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"),
]


def main():
    folder = WORK / "agent"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "project").mkdir(parents=True)
    (folder / "project/sums.py").write_text("def add(a, b):\n    return a - b\n")
    (folder / "project/check.py").write_text("from sums import add\n\nassert add(2, 3) == 5, add(2, 3)\n")
    model, log = folder / "scripted.gguf", folder / "server.log"
    scripted_model.write(str(model), SCRIPT)
    command = [QERNEL, "serve", "--model", model, "--device", "cpu", "--port", "0", "--api-key", "sesame"]
    with open(log, "w") as to, subprocess.Popen(command, stderr=to) as server:
        try:
            for _ in range(600):
                base = re.search(r"listening on (http\S*)", log.read_text())
                if base and health(base[1]) == 200:
                    break
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            drive(base[1], folder)
        finally:
            server.terminate()
    print("ok agent")


def health(base):
    try:
        return urllib.request.urlopen(f"{base}/health").status
    except urllib.error.HTTPError as error:
        return error.code


def drive(base, folder):
    trajectory = folder / "trajectory.json"
    settings = {
        "MSWEA_CONFIGURED": "true",
        "MSWEA_GLOBAL_CONFIG_DIR": str(folder / "config"),
        "MSWEA_COST_TRACKING": "ignore_errors",
        "MSWEA_SILENT_STARTUP": "1",
    }
    command = [MINI, "--yolo", "--exit-immediately", "--model", "openai/scripted", "--output", trajectory]
    command += ["--task", "add(2, 3) should be 5", "--cost-limit", "0", "--config", "mini.yaml"]
    for setting in (f"api_base={base}/v1", "api_key=sesame", "temperature=0"):
        command += ["--config", f"model.model_kwargs.{setting}"]
    ended = subprocess.run(
        command, cwd=folder / "project", env=os.environ | settings, stdin=subprocess.DEVNULL, text=True, capture_output=True, timeout=600
    )
    assert ended.returncode == 0 and trajectory.exists(), ended.stdout[-3000:] + ended.stderr[-3000:]
    found = json.loads(trajectory.read_text())
    messages = found["messages"]
    assert found["info"]["exit_status"] == "Submitted", found["info"]
    answers = [message for message in messages if message["role"] == "assistant"]
    results = [message["content"] for message in messages if message["role"] == "tool"]
    # What the script says is what the agent read, call by call.
    for answer, said in zip(answers, SCRIPT, strict=True):
        text, _, rest = said.partition("\n<tool_call>\n")
        (made,) = answer["tool_calls"]
        assert answer["content"].strip() == text, answer
        assert json.loads(made["function"]["arguments"]) == json.loads(rest.split("\n</tool_call>")[0])["arguments"], made
    assert "AssertionError" in results[0] and "a + b" in results[1] and "as it should be" in results[2], results
    # And the program is mended.
    subprocess.run([sys.executable, "check.py"], cwd=folder / "project", check=True)
    shutil.copy(trajectory, folder / "last.json")
    print(f"  {len(answers)} answers, {len(results)} results of tools: {', '.join(made_command(answer) for answer in answers)}")


def made_command(answer):
    return json.loads(answer["tool_calls"][0]["function"]["arguments"])["command"].split()[0]


main()
