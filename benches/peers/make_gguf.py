#!/usr/bin/env python3
"""A GGUF file in a shape of Qwen2.5 with random bf16 weights: what engines compute is noise, how fast is not.

    pip install gguf
    make_gguf.py --size 0.5b qwen2.5-0.5b-bf16.gguf

The vocabulary has as many tokens as the published one: bytes, and names of numbers.
"""
import argparse

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize

from pytorch import SIZES


def byte_names():
    """The character that stands for each byte in a byte-level vocabulary: printable ones for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_vocabulary(writer, vocab_size):
    names = byte_names()
    names += [f"{names[ord(' ')]}t"] + [f"<{i}>" for i in range(257, vocab_size - 1)] + ["<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(names)
    writer.add_token_types([TokenType.NORMAL] * (vocab_size - 1) + [TokenType.CONTROL])
    writer.add_token_merges([f"{names[ord(' ')]} t"])
    writer.add_eos_token_id(vocab_size - 1)
    writer.add_add_bos_token(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--vocab-size", type=int, default=151936)
    args = parser.parse_args()
    hidden, intermediate, layers, heads, kv_heads, tied = SIZES[args.size]
    head_dim = hidden // heads

    writer = GGUFWriter(args.output, "qwen2", use_temp_file=True)
    writer.add_block_count(layers)
    writer.add_context_length(32768)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)
    write_vocabulary(writer, args.vocab_size)

    rng = np.random.default_rng(0)

    def matrix(name, rows, cols):
        values = rng.standard_normal((rows, cols), dtype=np.float32) / np.float32(np.sqrt(cols))
        writer.add_tensor(f"{name}.weight", quantize(values, GGMLQuantizationType.BF16), raw_dtype=GGMLQuantizationType.BF16)

    def vector(name, values):
        writer.add_tensor(name, values.astype(np.float32))

    matrix("token_embd", args.vocab_size, hidden)
    if not tied:
        matrix("output", args.vocab_size, hidden)
    vector("output_norm.weight", np.ones(hidden))
    for layer in range(layers):
        block = f"blk.{layer}"
        vector(f"{block}.attn_norm.weight", np.ones(hidden))
        vector(f"{block}.ffn_norm.weight", np.ones(hidden))
        for name, rows in [("attn_q", hidden), ("attn_k", kv_heads * head_dim), ("attn_v", kv_heads * head_dim)]:
            matrix(f"{block}.{name}", rows, hidden)
            vector(f"{block}.{name}.bias", 0.1 * rng.standard_normal(rows))
        matrix(f"{block}.attn_output", hidden, hidden)
        matrix(f"{block}.ffn_gate", intermediate, hidden)
        matrix(f"{block}.ffn_up", intermediate, hidden)
        matrix(f"{block}.ffn_down", hidden, intermediate)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
