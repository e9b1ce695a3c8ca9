"""Many clients of all interfaces at once, some of which leave in the middle, against a running server with the haiku model.

Called by run.sh with the server's address, its key and its process; CLIENTS (200) and DURATION (60 seconds) say how many and how long. Each
client asks one thing after the other over connections of its own. In the end every answer was what was asked for, nothing waits, runs or holds
a page, and the server has as many open files as before.
"""

import asyncio
import collections
import json
import os
import random
import sys
import time
import urllib.parse
import urllib.request

BASE, KEY, PROCESS = sys.argv[1], sys.argv[2], int(sys.argv[3])
CLIENTS, DURATION = int(os.environ.get("CLIENTS", 200)), float(os.environ.get("DURATION", 60))
ADDRESS = urllib.parse.urlsplit(BASE)
PROMPTS = [
    "Write a haiku about the sea with the word forty-two",
    "Write a haiku about snow",
    "A lighthouse, a sail and a storm. Write a haiku about them",
]
# What is drawn, and how: each request has one of these besides.
SAMPLING = [
    {},
    {"temperature": 0},
    {"top_k": 20, "min_p": 0.05, "seed": 7},
    {"dry_multiplier": 0.8, "xtc_probability": 0.5, "seed": 3},
    {"mirostat": 2, "repeat_penalty": 1.1},
    {"banned_strings": ["sea", "the", "snow"]},
    {"grammar": "root ::= [a-z ]{12}"},
]


def turns(draw):
    return [{"role": "user", "content": draw.choice(PROMPTS)}]


def chat(draw):
    return "/v1/chat/completions", {"messages": turns(draw), "max_tokens": draw.randint(1, 40)}


def chat_stream(draw):
    path, body = chat(draw)
    return path, body | {"stream": True}


def chat_scored(draw):
    path, body = chat(draw)
    return path, body | {"prompt_logprobs": 2, "logprobs": True}


def completion(draw):
    stream = draw.random() < 0.5
    echo = {"echo": True, "logprobs": 1} if draw.random() < 0.3 else {}
    return "/v1/completions", {"prompt": draw.choice(PROMPTS), "max_tokens": draw.randint(1, 40), "stream": stream} | echo


def response(draw):
    body = {"input": draw.choice(PROMPTS), "max_output_tokens": draw.randint(1, 40), "stream": draw.random() < 0.5}
    return "/v1/responses", body


def message(draw):
    return "/v1/messages", {"messages": turns(draw), "max_tokens": draw.randint(1, 40), "stream": draw.random() < 0.5}


def generate(draw):
    return "/v1/generate", {"prompt": draw.choice(PROMPTS), "max_tokens": draw.randint(1, 40), "stream": draw.random() < 0.5}


def infill(draw):
    return "/infill", {"input_prefix": "a sail, ", "input_suffix": "\nthe lighthouse", "n_predict": draw.randint(1, 20)}


def embeddings(draw):
    return "/v1/embeddings", {"input": draw.sample(PROMPTS, draw.randint(1, len(PROMPTS)))}


def tokenize(draw):
    return "/tokenize", {"text": draw.choice(PROMPTS) * draw.randint(1, 20)}


def rerank(draw):
    return "/v1/rerank", {"query": draw.choice(PROMPTS), "documents": PROMPTS}


GENERATING = [chat, chat_stream, chat_scored, completion, response, message, generate, infill]
KINDS = [*GENERATING, embeddings, tokenize, rerank]
# What a model without the tokens to fill in, or without a classifier, refuses; the error must say so.
MAY_BE_REFUSED = {infill: "input_prefix", rerank: "cannot rerank"}


class Left(Exception):
    """The client has left."""


async def exchange(path, body, leaves):
    """Posts a body; the answer's status and text. A client that `leaves` closes the connection after a piece of the answer, if not before."""
    reader, writer = await asyncio.open_connection(ADDRESS.hostname, ADDRESS.port)
    try:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: {ADDRESS.netloc}\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        if leaves is not None:
            try:
                await asyncio.wait_for(reader.read(200), leaves)
            except TimeoutError:
                pass
            raise Left
        answer = await reader.read()
    finally:
        writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    if any(field.lower() == "transfer-encoding: chunked" for field in fields):
        rest = whole_of(rest)
    return int(status.split()[1]), rest.decode()


def whole_of(chunks):
    """The body that was sent in chunks; one that is cut off is an error."""
    whole = b""
    while True:
        size, _, chunks = chunks.partition(b"\r\n")
        count = int(size, 16)
        if count == 0:
            return whole
        whole, chunks = whole + chunks[:count], chunks[count + 2 :]


def check(kind, body, status, text):
    """What an answer must be."""
    if status != 200 and kind in MAY_BE_REFUSED:
        assert status == 400 and MAY_BE_REFUSED[kind] in json.loads(text)["error"]["message"], text
        return
    assert status == 200, text
    if body.get("stream"):
        events = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
        assert events and not any("error" in json.loads(data) for data in events if data != "[DONE]"), text
        ends = {"[DONE]", "response.completed", "response.incomplete", "message_stop", "finish_reason"}
        assert any(end in events[-1] for end in ends), text
        return
    answer = json.loads(text)
    banned = body.get("banned_strings", [])
    said = json.dumps([answer.get(place) for place in ["choices", "output", "content", "text"]]).lower()
    assert body.get("echo") or not any(word in said for word in banned), (banned, said)
    if "prompt_logprobs" in body:
        assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"], text


async def client(number, end, counts, faults):
    draw = random.Random(number)
    while time.monotonic() < end and not faults:
        kind = draw.choice(KINDS)
        path, body = kind(draw)
        if kind in GENERATING:
            body |= draw.choice(SAMPLING)
        leaves = draw.choice([0, 0.01, 0.1, 0.5]) if draw.random() < 0.15 else None
        try:
            status, text = await exchange(path, body, leaves)
            check(kind, body, status, text)
            counts[kind.__name__ if status == 200 else f"{kind.__name__}, refused"] += 1
        except Left:
            counts["left"] += 1
        except Exception as fault:
            faults.append(f"{kind.__name__} {body}: {type(fault).__name__}: {fault}")


def open_files():
    return len(os.listdir(f"/proc/{PROCESS}/fd"))


def gauges():
    request = urllib.request.Request(f"{BASE}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request) as answer:
        lines = answer.read().decode().splitlines()
    return {name: line.split()[1] for line in lines for name in [line.split()[0]] if name.startswith("qernel_")}


async def main():
    # The first requests open what stays open.
    for kind in KINDS:
        path, body = kind(random.Random(0))
        check(kind, body, *await exchange(path, body, None))
    before = open_files()
    counts, faults = collections.Counter(), []
    end = time.monotonic() + DURATION
    await asyncio.gather(*(client(number, end, counts, faults) for number in range(CLIENTS)))
    assert not faults, "\n".join(faults)
    held = ["qernel_requests_waiting", "qernel_requests_running", "qernel_kv_pages_used"]
    for _ in range(100):
        found = gauges()
        if all(found[name] == "0" for name in held) and open_files() <= before:
            break
        await asyncio.sleep(0.1)
    assert all(found[name] == "0" for name in held), {name: found[name] for name in held}
    assert open_files() <= before, f"{open_files()} open files, {before} before"
    assert all(counts[kind.__name__] for kind in KINDS if kind not in MAY_BE_REFUSED), counts
    print(f"{CLIENTS} clients, {DURATION:g} s:", ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))


asyncio.run(main())
