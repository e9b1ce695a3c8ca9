#!/usr/bin/env python3
"""How soon `generate`, `chat` and `serve` are ready on the CPU, and how much memory they hold.

    benches/memory.py target/release/qernel [another ...] [-m model.gguf] [-- options of qernel]

Any number of programs are compared, on Linux; nothing but Python's library is needed. For each command:

ready    seconds from the start of the process to the first byte of an answer (generate), to the moment it waits for a message
         (chat), to the first 200 of /health (serve)
start    MiB resident then: all, and without the pages of files (the model's memory map), which the system takes back when it
         needs them
answer   the same once an answer of --tokens tokens is there; of generate the most it ever held

The model of the table in docs/performance.md has the layers of a published one of 135 million parameters:

    cargo run --release --example tiny_model -- 135m.gguf --hidden 576 --heads 9 --kv-heads 3 --layers 30 --context 8192
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

MESSAGE = "Write a haiku about the sea"
LONGEST = 600


class Process:
    """A program that runs, seen through /proc."""

    def __init__(self, command):
        self.start = time.monotonic()
        # A file: a pipe that nobody reads would fill with the server's log.
        self.log = tempfile.TemporaryFile()
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def said(self):
        """What it has written on standard error so far."""
        return os.pread(self.log.fileno(), 1 << 20, 0).decode()

    def seconds(self):
        return time.monotonic() - self.start

    def resident(self):
        """MiB: all, and what is of no file."""
        with open(f"/proc/{self.child.pid}/status") as status:
            kib = dict(re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB", status.read(), re.M))
        return int(kib["VmRSS"]) / 1024, int(kib["RssAnon"]) / 1024

    def processor_time(self):
        """Of all threads; None while one of them runs or wants to."""
        used = 0
        for thread in os.listdir(f"/proc/{self.child.pid}/task"):
            with open(f"/proc/{self.child.pid}/task/{thread}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            if fields[0] != "S":
                return None
            used += int(fields[11]) + int(fields[12])
        return used

    def wait_until_idle(self):
        """Returns the second since which all its threads sleep, once that is half a second ago."""
        used, since = None, self.seconds()
        while used is None or self.seconds() - since < 0.5:
            now = self.processor_time()
            if now is None or now != used:
                used, since = now, self.seconds()
            if self.seconds() > LONGEST:
                sys.exit("it does not come to rest")
            time.sleep(0.005)
        return since

    def end(self):
        self.child.kill()
        self.child.communicate()


def generate(program, options, tokens):
    command = [program, "generate", *options, "--ignore-eos", "-n", str(tokens), MESSAGE]
    process = Process(command)
    first = process.child.stdout.read(1)
    ready, start = process.seconds(), process.resident()
    if not first:
        process.child.wait()
        sys.exit(process.said())
    answer = start
    while process.child.poll() is None:
        try:
            now = process.resident()
            answer = max(answer[0], now[0]), max(answer[1], now[1])
        except (KeyError, OSError):
            break  # It has just ended.
        time.sleep(0.001)
    process.end()
    return ready, start, answer


def chat(program, options, tokens):
    process = Process([program, "chat", *options, "-n", str(tokens)])
    ready = process.wait_until_idle()
    start = process.resident()
    process.child.stdin.write(f"{MESSAGE}\n".encode())
    process.child.stdin.flush()
    process.wait_until_idle()
    answer = process.resident()
    process.end()
    return ready, start, answer


def serve(program, options, tokens):
    process = Process([program, "serve", "--port", "0", *options])
    while not (found := re.search(r"listening on (http://[\d.:]+)\n", process.said())):
        if process.child.poll() is not None:
            sys.exit(process.said())
        time.sleep(0.005)
    address = found[1]
    while True:
        try:
            urllib.request.urlopen(f"{address}/health").read()
            break
        except OSError:  # 503 while the model is loaded.
            if process.child.poll() is not None or process.seconds() > LONGEST:
                sys.exit(process.said())
            time.sleep(0.005)
    ready, start = process.seconds(), process.resident()
    body = json.dumps({"prompt": MESSAGE, "max_tokens": tokens, "ignore_eos": True}).encode()
    request = urllib.request.Request(f"{address}/v1/generate", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request).read()
    answer = process.resident()
    process.end()
    return ready, start, answer


def main():
    arguments, options = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, options = arguments[:at], arguments[at + 1:]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="+")
    parser.add_argument("-m", "--model", help="default: the model that the program carries")
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="the one that was ready first counts")
    args = parser.parse_args(arguments)
    options = ["--device", "cpu", *(["-m", args.model] if args.model else []), *options]
    os.environ.pop("QERNEL_API_KEY", None)
    print("| command | program | ready, s | start, MiB | without files | answer, MiB | without files |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for command in [generate, chat, serve]:
        for program in args.programs:
            runs = [command(program, options, args.tokens) for _ in range(args.repetitions)]
            ready, start, answer = min(runs)
            sizes = " | ".join(f"{size:.0f}" for size in [*start, *answer])
            print(f"| `{command.__name__}` | {program} | {ready:.2f} | {sizes} |", flush=True)


main()
