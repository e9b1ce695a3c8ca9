"""`sglang-router` in front of three `qernel serve` on this machine: no part of `cargo test`. test.sh makes what this needs and runs it.

What must hold: the router learns the model, answers equal a single server's, streamed too, conversations stay with one server, all servers
are used, and when a server is killed the others answer all that is asked.
"""

import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

BINARY = os.environ["QERNEL"]
ROUTER = pathlib.Path(sys.executable).parent / "smg"
SERVERS = 3
PATIENCE_S = 120
SUBJECTS = ["the sea", "a forest", "the moon", "rain", "a mountain", "snow", "the harbour", "a garden", "the night", "autumn", "a river", "the wind"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def post(url: str, body: dict) -> tuple[int, str]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait(what: str, holds) -> None:
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < PATIENCE_S, f"after {PATIENCE_S} s: {what}"
        time.sleep(0.2)


def conversation(subject: str) -> list[dict]:
    return [{"role": "system", "content": "You write haiku."}, {"role": "user", "content": f"Write a haiku about {subject} with the word stone"}]


def body(messages: list[dict], **more) -> dict:
    return {"model": "haiku", "messages": messages, "max_tokens": 24, "temperature": 0.7, "seed": 5, **more}


def whole(base: str, messages: list[dict]) -> str:
    status, text = post(f"{base}/v1/chat/completions", body(messages))
    assert status == 200, (status, text)
    return json.loads(text)["choices"][0]["message"]["content"]


def streamed(base: str, messages: list[dict]) -> str:
    status, text = post(f"{base}/v1/chat/completions", body(messages, stream=True))
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert status == 200 and events[-1] == "[DONE]", (status, text)
    return "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])


def prompt_tokens(base: str) -> int:
    """What a server was asked so far."""
    line = next(line for line in get(f"{base}/metrics")[1].splitlines() if line.startswith("qernel_prompt_tokens_total "))
    return int(line.split()[1])


def main() -> None:
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(name: str, command: list, **environment: str) -> subprocess.Popen:
            log = stack.enter_context(open(folder / name, "w"))
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        ports = [free_port() for _ in range(SERVERS)]
        bases = [f"http://127.0.0.1:{port}" for port in ports]
        servers = [start(f"server-{port}", [BINARY, "serve", "--device", "cpu", "--port", str(port)], RAYON_NUM_THREADS="1") for port in ports]
        wait("the servers are ready", lambda: all(get(f"{base}/health")[0] == 200 for base in bases))
        expected = {subject: whole(bases[0], conversation(subject)) for subject in SUBJECTS}
        port, metrics = free_port(), free_port()
        router = f"http://127.0.0.1:{port}"
        start("router", [ROUTER, "launch", "--host", "127.0.0.1", "--port", str(port), "--prometheus-host", "127.0.0.1", "--prometheus-port",
                         str(metrics), "--policy", "cache_aware", "--balance-abs-threshold", "2", "--health-check-interval-secs", "2",
                         "--cb-failure-threshold", "2",
                         "--worker-urls", *bases])

        def known() -> list[dict]:
            status, text = get(f"{router}/workers")
            return json.loads(text)["workers"] if status == 200 else []

        wait("the router knows all servers", lambda: [worker["is_healthy"] for worker in known()] == [True] * SERVERS)
        assert {worker["model_id"] for worker in known()} == {"haiku"}, known()
        assert get(f"{router}/readiness")[0] == 200 and get(f"{router}/liveness")[0] == 200
        loads = json.loads(get(f"{router}/get_loads")[1])["workers"]
        assert [load["load"] for load in loads] == [0] * SERVERS, loads
        for path, asked in [("completions", {"prompt": "The sea", "max_tokens": 4}), ("embeddings", {"input": "The sea"}),
                            ("responses", {"input": "The sea", "max_output_tokens": 4})]:
            status, text = post(f"{router}/v1/{path}", {"model": "haiku", **asked})
            assert status == 200, (path, status, text)
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            found = list(pool.map(lambda subject: whole(router, conversation(subject)), SUBJECTS * 4))
            found += list(pool.map(lambda subject: streamed(router, conversation(subject)), SUBJECTS * 4))
        assert found == [expected[subject] for subject in SUBJECTS] * 8
        used = [prompt_tokens(base) for base in bases]
        assert all(used), used
        print(f"{len(found)} answers of 24 clients equal a single server's; prompt tokens of the servers: {used}")

        for subject in SUBJECTS:
            messages = conversation(subject)
            asked = collections.Counter()
            for _ in range(4):
                before = [prompt_tokens(base) for base in bases]
                messages += [{"role": "assistant", "content": whole(router, messages)}, {"role": "user", "content": "Another one"}]
                asked.update(base for base, then in zip(bases, before) if prompt_tokens(base) > then)
            assert len(asked) == 1, (subject, asked)
        print(f"{len(SUBJECTS)} conversations of four turns: each on one server")

        servers[0].kill()
        statuses = collections.Counter()
        for subject in SUBJECTS * 2:
            status, text = post(f"{router}/v1/chat/completions", body(conversation(subject)))
            statuses[status] += 1
            if status == 200:
                assert json.loads(text)["choices"][0]["message"]["content"] == expected[subject]
        assert statuses == {200: 2 * len(SUBJECTS)}, statuses
        wait("the router knows of the loss", lambda: sum(worker["is_healthy"] for worker in known()) == SERVERS - 1)
        print("one server killed: the others answered all")


if __name__ == "__main__":
    main()
    print("passed")
