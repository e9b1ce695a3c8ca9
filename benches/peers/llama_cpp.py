#!/usr/bin/env python3
"""Decode and prefill of one file on the CPU by llama-cpp-python, in turn with `qernel bench`.

    pip install llama-cpp-python numpy
    llama_cpp.py MODEL.gguf --qernel target/release/qernel [--rounds 5] [--threads 2] [--out peer.jsonl]

A round is one process of each: qernel, llama.cpp, llama.cpp, qernel (then the other way round), so that what else the machine
does falls on both; with `--quiet 5`, a round in which other processes took more than 5 % of the processors does not count
(llama.cpp's threads wait for each other by spinning, so others cost it more). Where it is never quiet, `--processor-time`
compares the user time of one thread, of which what a process does besides the test is subtracted. Both take random tokens of a fixed seed; a decode step of either ends with the arg-max over the
vocabulary. Prints the ratio of every pair of one round, and their median with the smallest and the largest. `--out` takes
llama.cpp's rows for `qernel bench --compare`.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time


def measure(args):
    """One process of llama.cpp: rows on standard output."""
    import llama_cpp
    import numpy as np

    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(args.model.encode(), model_params)
    if not model:
        sys.exit(f"{args.model}: llama.cpp cannot load it")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = args.depth + args.n_prompt + args.n_gen + 64
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = args.threads
    context = llama_cpp.llama_init_from_model(model, params)
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(512, 0, 1)
    rng = np.random.default_rng(0)

    def decode(tokens, position):
        """Computes tokens in chunks; the logits of the last are wanted. Returns the likeliest next token."""
        for start in range(0, len(tokens), 512):
            chunk = tokens[start : start + 512]
            batch.n_tokens = len(chunk)
            for i, token in enumerate(chunk):
                batch.token[i] = int(token)
                batch.pos[i] = position + start + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = start + i == len(tokens) - 1
            if llama_cpp.llama_decode(context, batch) != 0:
                sys.exit("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(context, len(chunk) - 1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(vocab_size,))))

    def prefill():
        tokens = rng.integers(0, vocab_size, args.n_prompt)
        start = time.perf_counter_ns()
        decode(tokens, args.depth)
        return time.perf_counter_ns() - start

    def generate():
        token = int(rng.integers(0, vocab_size))
        start = time.perf_counter_ns()
        for i in range(args.n_gen):
            token = decode([token], args.depth + i)
        return time.perf_counter_ns() - start

    for name, n_prompt, n_gen, run in [("pp", args.n_prompt, 0, prefill), ("tg", 0, args.n_gen, generate)]:
        if n_prompt + n_gen == 0:
            continue
        samples = []
        for repetition in range(args.repetitions + 1):
            llama_cpp.llama_memory_clear(memory, True)
            if args.depth:
                decode(rng.integers(0, vocab_size, args.depth), 0)
            elapsed = run()
            if repetition:
                samples.append(elapsed)
        speeds = [(n_prompt + n_gen) * 1e9 / sample for sample in samples]
        several = len(samples) > 1
        print(
            json.dumps(
                {
                    "engine": "llama-cpp-python",
                    "engine_version": llama_cpp.__version__,
                    "backends": "CPU",
                    "model_filename": args.model,
                    "model_n_params": llama_cpp.llama_model_n_params(model),
                    "n_threads": args.threads,
                    "test": f"{name}{n_prompt + n_gen}" + (f" @ d{args.depth}" if args.depth else ""),
                    "n_prompt": n_prompt,
                    "n_gen": n_gen,
                    "n_depth": args.depth,
                    "n_parallel": 1,
                    "avg_ns": statistics.mean(samples),
                    "stddev_ns": statistics.stdev(samples) if several else 0,
                    "avg_ts": statistics.mean(speeds),
                    "stddev_ts": statistics.stdev(speeds) if several else 0,
                    "median_ts": statistics.median(speeds),
                    "samples_ns": samples,
                    "samples_ts": speeds,
                }
            ),
            flush=True,
        )


def rows(command, threads):
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return {row["test"]: row for row in map(json.loads, done.stdout.splitlines())}


class Others:
    """The share of the processors that processes other than our children take."""

    def __init__(self):
        self.begin = self.now()

    @staticmethod
    def now():
        children = os.times()
        fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        ticks = os.sysconf("SC_CLK_TCK")
        idle = fields[3] + fields[4]
        return sum(fields) / ticks, idle / ticks, children.children_user + children.children_system

    def percent(self):
        total, idle, children = (end - begin for begin, end in zip(self.begin, self.now()))
        return max(0.0, 100 * (total - idle - children) / max(total, 1e-9))


def compare(args):
    common = ["-p", str(args.n_prompt), "-n", str(args.n_gen), "-d", str(args.depth), "-r", str(args.repetitions)]
    ours = [args.qernel, "bench", "-m", args.model, "--device", "cpu", *common, "--starts", "0", "-o", "jsonl"]
    theirs = [sys.executable, __file__, args.model, *common, "--threads", str(args.threads), "--measure"]
    pairs = {}
    peer = {}
    number, end = 0, time.monotonic() + args.patience
    while number < args.rounds:
        others = Others()
        order = [ours, theirs, theirs, ours] if number % 2 == 0 else [theirs, ours, ours, theirs]
        results = [(command is ours, rows(command, args.threads)) for command in order]
        busy = others.percent()
        counts = busy <= args.quiet
        if not counts and time.monotonic() > end:
            break
        number += counts
        for test in results[0][1]:
            speeds = {True: [], False: []}
            for is_ours, result in results:
                speeds[is_ours].extend(result[test]["samples_ts"])
                if counts and not is_ours:
                    peer.setdefault(test, result[test] | {"samples_ts": []})["samples_ts"] += result[test]["samples_ts"]
            qernel, llama = statistics.median(speeds[True]), statistics.median(speeds[False])
            if counts:
                pairs.setdefault(test, []).append((qernel, llama))
            print(
                f"{f'round {number}' if counts else 'not counted'} (others {busy:.0f} %) {test}: "
                f"qernel {qernel:.2f}, llama.cpp {llama:.2f} tokens/s, x {qernel / llama:.3f}",
                flush=True,
            )
    if not pairs:
        sys.exit("no round was quiet enough")
    print("\n| test | qernel t/s | llama.cpp t/s | qernel / llama.cpp: median (least to largest of rounds) |")
    print("| --- | ---: | ---: | ---: |")
    for test, speeds in pairs.items():
        ratios = [qernel / llama for qernel, llama in speeds]
        print(
            f"| {test} | {statistics.median(q for q, _ in speeds):.2f} | {statistics.median(p for _, p in speeds):.2f} "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
    if args.out:
        for row in peer.values():
            samples = row["samples_ts"]
            row |= {"avg_ts": statistics.mean(samples), "stddev_ts": statistics.stdev(samples), "median_ts": statistics.median(samples)}
            for of_one_process in ("avg_ns", "stddev_ns", "samples_ns"):
                del row[of_one_process]
        pathlib.Path(args.out).write_text("".join(json.dumps(row) + "\n" for row in peer.values()))


def processor_time(args):
    """Milliseconds of user time a token on one thread: the difference between many and few tokens."""

    def seconds(command, n_prompt, n_gen):
        before = os.times().children_user
        rows([*command, "-p", str(n_prompt), "-n", str(n_gen), "-d", str(args.depth), "-r", "1"], 1)
        return os.times().children_user - before

    ours = [args.qernel, "bench", "-m", args.model, "--device", "cpu", "--starts", "0", "-o", "jsonl"]
    theirs = [sys.executable, __file__, args.model, "--threads", "1", "--measure"]
    print("| user time of one thread | qernel ms/token | llama.cpp ms/token | qernel's speed / llama.cpp's |\n| --- | ---: | ---: | ---: |")
    for number in range(args.rounds):
        for name, few, many in [("decode", (0, 4), (0, 4 + args.n_gen)), ("prefill", (16, 0), (16 + args.n_prompt, 0))]:
            # Each test runs twice, the first time to warm up.
            tokens = 2 * (sum(many) - sum(few))
            mine, other = (1e3 * (seconds(c, *many) - seconds(c, *few)) / tokens for c in (ours, theirs))
            print(f"| {name}, round {number + 1} | {mine:.2f} | {other:.2f} | {other / mine:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--qernel", default="target/release/qernel", help="the program")
    parser.add_argument("-p", "--n-prompt", type=int, default=512)
    parser.add_argument("-n", "--n-gen", type=int, default=32)
    parser.add_argument("-d", "--depth", type=int, default=0)
    parser.add_argument("-r", "--repetitions", type=int, default=2, help="timed ones of each test in a process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quiet", type=float, default=100, help="percent of the processors that others may take")
    parser.add_argument("--patience", type=float, default=600, help="seconds after which it waits for no quieter round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", help="llama.cpp's rows as JSON lines")
    parser.add_argument("--processor-time", action="store_true", help="compare user time of one thread instead")
    parser.add_argument("--measure", action="store_true", help="time llama.cpp alone and print its rows")
    args = parser.parse_args()
    way = measure if args.measure else processor_time if args.processor_time else compare
    way(args)


if __name__ == "__main__":
    # A script of this name would be found before the package.
    sys.path[:] = [entry for entry in sys.path if pathlib.Path(entry).resolve() != pathlib.Path(__file__).resolve().parent]
    main()
