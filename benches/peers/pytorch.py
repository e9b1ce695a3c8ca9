#!/usr/bin/env python3
"""The tests of `qernel bench` by PyTorch: a Qwen2.5 shape with random bf16 weights in `transformers`.

    pip install torch transformers
    pytorch.py --size 0.5b -p 512,8192 -n 128 -d 0,8192 -b 1,64,256 > peer.jsonl
    qernel bench -m qwen2.5-0.5b-bf16.gguf -p 512,8192 -n 128 -d 0,8192 -b 1,64,256 --compare peer.jsonl

Decoding: static cache of just the needed length, `torch.compile(mode="reduce-overhead")`, which captures CUDA graphs, arg-max
in the graph; tokens stay on the device until the test ends unless --stream is given (qernel hands every token out).
Prefill: the whole prompt at once, not compiled, scaled dot product attention (flash at depth 0), logits of the last row, arg-max.
Neither detokenises. One JSON row a line on standard output, as soon as its test is done; a test that fails or does not fit
into the time budget is a row with `error`.
"""
import argparse
import gc
import inspect
import json
import signal
import statistics
import sys
import time

# hidden_size, intermediate_size, layers, heads, key-value heads, tied embeddings; `tiny` is for trying the script out.
SIZES = {
    "tiny": (256, 704, 4, 8, 2, True),
    "0.5b": (896, 4864, 24, 14, 2, True),
    "1.5b": (1536, 8960, 28, 12, 2, True),
    "7b": (3584, 18944, 28, 28, 4, False),
}


class Budget(Exception):
    pass


def build(size, vocab_size, device):
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    hidden, intermediate, layers, heads, kv_heads, tied = SIZES[size]
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    # The angles of RoPE, which are buffers, stay f32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model.eval().requires_grad_(False)


class Peer:
    def __init__(self, args):
        import torch

        self.torch = torch
        self.args = args
        self.device = torch.device(args.device)
        self.model = build(args.size, args.vocab_size, args.device)
        self.decoder, self.head = self.model.model, self.model.lm_head
        # Later versions of transformers keep count in the cache.
        self.takes_cache_position = "cache_position" in inspect.signature(type(self.decoder).forward).parameters
        torch._dynamo.config.cache_size_limit = 64

    def wait(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def tokens(self, batch, count):
        return self.torch.randint(0, self.args.vocab_size, (batch, count), device=self.device)

    def forward(self, tokens, position, cache):
        """Tokens `[batch, rows]` at `position` `[rows]` to the likeliest next tokens `[batch, 1]`."""
        extra = {"cache_position": position} if self.takes_cache_position else {}
        hidden = self.decoder(
            input_ids=tokens, position_ids=position[None], past_key_values=cache, use_cache=True, **extra
        )[0]
        return self.head(hidden[:, -1:]).argmax(dim=-1)

    def fill(self, cache, batch, depth):
        """Brings the cache to `depth`, at most 16,384 rows at a time."""
        chunk = max(1, 16384 // batch)
        for start in range(0, depth, chunk):
            rows = min(chunk, depth - start)
            position = self.torch.arange(start, start + rows, device=self.device)
            token = self.forward(self.tokens(batch, rows), position, cache)
        return token

    def prefill(self, n_prompt, depth):
        from transformers import DynamicCache

        cache = DynamicCache()
        if depth:
            self.fill(cache, 1, depth)
        tokens = self.tokens(1, n_prompt)
        position = self.torch.arange(depth, depth + n_prompt, device=self.device)
        self.wait()
        start = time.perf_counter_ns()
        self.forward(tokens, position, cache).tolist()
        return time.perf_counter_ns() - start

    def decode_samples(self, n_gen, depth, batch, repetitions):
        """Samples of `n_gen` steps after a warm-up that compiles and captures."""
        from transformers import StaticCache

        torch = self.torch
        torch._dynamo.reset()
        first = max(depth, 1)
        sizes = {"max_cache_len": first + n_gen + 1, "device": self.device, "dtype": torch.bfloat16}
        accepted = inspect.signature(StaticCache.__init__).parameters
        if "max_batch_size" in accepted:
            sizes["max_batch_size"] = batch
        elif not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
            sizes = {name: size for name, size in sizes.items() if name in accepted}
        cache = StaticCache(config=self.model.config, **sizes)
        step = torch.compile(self.forward, mode="reduce-overhead", dynamic=False, fullgraph=False)
        samples = []
        for repetition in range(repetitions + 1):
            cache.reset()
            token = self.fill(cache, batch, first)
            position = torch.tensor([first], device=self.device)
            drawn = []
            self.wait()
            start = time.perf_counter_ns()
            for _ in range(n_gen):
                # The graph's output is overwritten by its next replay.
                token = step(token, position, cache).clone()
                drawn.append(token.tolist() if self.args.stream else token)
                position = position + 1
            if not self.args.stream:
                torch.cat(drawn, dim=1).tolist()
            self.wait()
            if repetition:
                samples.append(time.perf_counter_ns() - start)
        return samples


def name(n_prompt, n_gen, depth, batch):
    several = f" b{batch}" if batch > 1 else ""
    return (f"pp{n_prompt}" if n_prompt else f"tg{n_gen}") + several + (f" @ d{depth}" if depth else "")


def numbers(text):
    found = [int(part) for part in text.split(",")]
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"expected numbers that are not negative, found {text}")
    return found


def positive(text):
    """One number or several."""
    found = numbers(text)
    if min(found) == 0:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {text}")
    return found


def count(text):
    return positive(text)[0]


def figures(samples, n_prompt, n_gen, batch):
    """What a row says of `samples` in nanoseconds, each of `batch` sequences with `n_prompt` tokens of prompt and `n_gen` decode steps."""
    speeds = [batch * (n_prompt + n_gen) * 1e9 / sample for sample in samples]
    several = len(samples) > 1
    return {
        "avg_ns": statistics.mean(samples),
        "stddev_ns": statistics.stdev(samples) if several else 0,
        "avg_ts": statistics.mean(speeds),
        "stddev_ts": statistics.stdev(speeds) if several else 0,
        "median_ns": statistics.median(samples),
        "median_ts": statistics.median(speeds),
        "step_us": statistics.median(samples) / 1e3 / max(n_gen, 1),
        "samples_ns": samples,
        "samples_ts": speeds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("-p", "--n-prompt", type=numbers, default=[512])
    parser.add_argument("-n", "--n-gen", type=numbers, default=[128])
    parser.add_argument("-d", "--n-depth", type=numbers, default=[0])
    parser.add_argument("-b", "--n-parallel", type=positive, default=[1])
    parser.add_argument("-r", "--repetitions", type=count, default=5)
    parser.add_argument("--budget", type=float, default=180, help="seconds after which no test goes on")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--vocab-size", type=count, default=151936)
    parser.add_argument("--stream", action="store_true", help="bring each token to the host before the next step")
    args = parser.parse_args()
    begin = time.monotonic()

    import torch
    import transformers

    peer = Peer(args)
    parameters = sum(parameter.numel() for parameter in peer.model.parameters())
    facts = {
        "engine": "transformers",
        "engine_version": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "gpu_info": torch.cuda.get_device_name() if peer.device.type == "cuda" else "",
        "backends": peer.device.type.upper(),
        "model_type": f"qwen2 {args.size} bf16, random weights",
        "model_n_params": parameters,
        "included": "arg-max" + (", each token brought to the host" if args.stream else ""),
    }

    def alarm(*_):
        raise Budget(f"the time budget of {args.budget:.0f} s is used up")

    signal.signal(signal.SIGALRM, alarm)
    # Prefill first, since it compiles nothing; then what the budget may cut off last: shallow before deep.
    tests = [(p, 0, d, 1) for d in sorted(args.n_depth) for p in args.n_prompt if p]
    tests += [(0, n, d, b) for d in sorted(args.n_depth) for b in sorted(args.n_parallel) for n in args.n_gen if n]
    for n_prompt, n_gen, depth, batch in tests:
        row = facts | {
            "test": name(n_prompt, n_gen, depth, batch),
            "n_prompt": n_prompt,
            "n_gen": n_gen,
            "n_depth": depth,
            "n_parallel": batch,
        }
        print(row["test"], file=sys.stderr, flush=True)
        try:
            left = args.budget - (time.monotonic() - begin)
            if left <= 0:
                alarm()
            signal.setitimer(signal.ITIMER_REAL, left)
            with torch.no_grad():
                if n_prompt:
                    samples = [peer.prefill(n_prompt, depth) for _ in range(args.repetitions + 2)][2:]
                else:
                    samples = peer.decode_samples(n_gen, depth, batch, args.repetitions)
            signal.setitimer(signal.ITIMER_REAL, 0)
            row |= figures(samples, n_prompt, n_gen, batch)
        except Exception as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            row["error"] = f"{type(error).__name__}: {str(error)[:500]}"
            print(row["error"], file=sys.stderr, flush=True)
        print(json.dumps(row), flush=True)
        gc.collect()
        if peer.device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
