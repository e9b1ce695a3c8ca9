#!/usr/bin/env python3
"""Blocks of every GGUF type as the `gguf` package decodes and encodes them: writes golden.json beside this file.

    pip install gguf==0.19.0 numpy
    python3 make_golden.py

`decoded` has for each type random blocks, as hexadecimal digits, and the SHA-256 of their values as little-endian float32. `encoded` has
for each type that the package can encode the SHA-256 of the blocks of 4,096 values, which `qernel::testing::Random` draws with seed 1
and the name "values".
"""
import hashlib
import json
import pathlib

import gguf
import numpy as np

T = gguf.GGMLQuantizationType
BLOCKS = 8  # of each type
# Byte offsets of the f16 that a block has. IQ1_M's is spread over four nibbles; MXFP4 and NVFP4 have scales that any byte is one of.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2],
    T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0], T.IQ3_S: [0], T.IQ3_XXS: [0], T.IQ2_S: [0], T.IQ2_XS: [0],
    T.IQ2_XXS: [0], T.IQ1_S: [0], T.IQ1_M: [], T.TQ1_0: [52], T.TQ2_0: [64], T.MXFP4: [], T.NVFP4: [],
}
ENCODERS = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.TQ1_0, T.TQ2_0, T.MXFP4]


def finite_halves(rng, count):
    """f16 of any sign and magnitude up to 1,024, the first below the normal numbers."""
    bits = rng.integers(0, 2, count) << 15 | rng.integers(0, 26, count) << 10 | rng.integers(0, 1024, count)
    bits[0] = 0x0123
    return bits.astype(np.uint16)


def random_blocks(rng, kind):
    blocks = rng.integers(0, 256, (BLOCKS, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for offset in SCALES[kind]:
        blocks[:, offset:offset + 2] = finite_halves(rng, BLOCKS).view(np.uint8).reshape(-1, 2)
    if kind == T.IQ1_M:
        halves = finite_halves(rng, BLOCKS)
        for i in range(4):
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | (halves >> 4 * i & 15).astype(np.uint8) << 4
    return blocks


def engine_random(seed, name, count):
    """`qernel::testing::Random`: SplitMix64 of an FNV-1a hash, sums of four 16-bit uniforms."""
    mask = (1 << 64) - 1
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 & mask
    state ^= seed * 0x9E3779B97F4A7C15 & mask
    values = np.empty(count, np.float32)
    for i in range(count):
        state = state + 0x9E3779B97F4A7C15 & mask
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        z ^= z >> 31
        total = sum(z >> 16 * part & 0xFFFF for part in range(4))
        values[i] = (np.float32(total) - np.float32(131070)) / np.float32(37837.23)
    return values


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def main():
    decoded, encoded = {}, {}
    for kind in SCALES:
        blocks = random_blocks(np.random.default_rng(int(kind)), kind)
        values = gguf.quants.dequantize(blocks, kind).astype("<f4")
        assert not np.isnan(values).any(), kind
        decoded[kind.name] = {"blocks": blocks.tobytes().hex(), "values": digest(values)}
    values = engine_random(1, "values", 4096)
    for kind in ENCODERS:
        encoded[kind.name] = digest(gguf.quants.quantize(values.reshape(16, 256), kind))
    path = pathlib.Path(__file__).with_name("golden.json")
    path.write_text(json.dumps({"decoded": decoded, "encoded": encoded}, indent=1) + "\n")


if __name__ == "__main__":
    main()
