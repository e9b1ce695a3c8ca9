#!/usr/bin/env python3
"""The tests of `qernel bench` by vLLM: a Qwen2.5 shape with random bf16 weights.

    pip install vllm
    vllm_bench.py --size 0.5b -p 512,8192 -n 256 -b 1,64,256 > peer.jsonl
    qernel bench -m qwen2.5-0.5b-bf16.gguf -p 512,8192 -n 256 -b 1,64,256 --compare peer.jsonl

CUDA graphs and asynchronous scheduling as vLLM has them by default, no prefix cache, no tokenizer. Decoding: prompts of 128
random tokens; the time for 16 new tokens is taken from that for 16 more than `-n`, which leaves `-n` steps. Prefill: a prompt, one new
token. What happens between a request and its tokens, such as the way to the process that owns the GPU, is included.
One JSON row a line on standard output. (As `vllm.py` it would be found in place of the package.)
"""
import argparse
import json
import pathlib
import sys
import tempfile
import time

from pytorch import SIZES, count, figures, name, numbers, positive

PROMPT = 128
FIRST = 16


def write_config(folder, size, vocab_size):
    """What a folder of a model must have where its weights are made up."""
    hidden, intermediate, layers, heads, kv_heads, tied = SIZES[size]
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "max_position_embeddings": 32768,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab_size,
    }
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))


class Peer:
    def __init__(self, args, folder):
        import numpy as np
        from vllm import LLM

        self.rng = np.random.default_rng(0)
        self.vocab_size = args.vocab_size
        write_config(folder, args.size, args.vocab_size)
        self.llm = LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enable_prefix_caching=False,
            max_model_len=max([PROMPT + FIRST + max(args.n_gen), *(p + 1 for p in args.n_prompt)]),
            max_num_seqs=max(args.n_parallel),
            gpu_memory_utilization=0.9,
        )

    def seconds(self, batch, n_prompt, n_gen):
        """For `batch` prompts of random tokens and `n_gen` new ones of each."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=n_gen, ignore_eos=True, detokenize=False)
        tokens = self.rng.integers(0, self.vocab_size, (batch, n_prompt)).tolist()
        prompts = [{"prompt_token_ids": row} for row in tokens]
        start = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        elapsed = time.perf_counter() - start
        assert all(len(output.outputs[0].token_ids) == n_gen for output in outputs)
        return elapsed

    def decode(self, batch, n_gen):
        return self.seconds(batch, PROMPT, FIRST + n_gen) - self.seconds(batch, PROMPT, FIRST)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("-p", "--n-prompt", type=numbers, default=[512])
    parser.add_argument("-n", "--n-gen", type=numbers, default=[256])
    parser.add_argument("-b", "--n-parallel", type=positive, default=[1])
    parser.add_argument("-r", "--repetitions", type=count, default=5)
    parser.add_argument("--vocab-size", type=count, default=151936)
    args = parser.parse_args()

    import torch
    import vllm

    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(args, folder)
        tests = [(p, 0, 1) for p in args.n_prompt if p]
        tests += [(0, n, b) for b in args.n_parallel for n in args.n_gen if n]
        for n_prompt, n_gen, batch in tests:
            test = name(n_prompt, n_gen, 0, batch)
            print(test, file=sys.stderr, flush=True)
            one = (lambda: peer.seconds(1, n_prompt, 1)) if n_prompt else (lambda: peer.decode(batch, n_gen))
            samples = [1e9 * one() for _ in range(args.repetitions + 2)][2:]
            row = {
                "engine": "vllm",
                "engine_version": f"vllm {vllm.__version__}, torch {torch.__version__}",
                "gpu_info": torch.cuda.get_device_name(),
                "backends": "CUDA",
                "model_type": f"qwen2 {args.size} bf16, random weights",
                "included": "arg-max, scheduling, each token brought to the caller's process",
                "test": test,
                "n_prompt": n_prompt,
                "n_gen": n_gen,
                "n_depth": 0,
                "n_parallel": batch,
            } | figures(samples, n_prompt, n_gen, batch)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
