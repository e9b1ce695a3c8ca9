#!/usr/bin/env python3
"""Errors of llama.cpp's quantiser, which the encoders here are held against: writes rmse.json beside this file.

    pip install numpy
    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz   # ggml of llama.cpp v0.5.0, MIT
    LD_LIBRARY_PATH=package/bins/linux-x64 python3 make_rmse.py package/bins/linux-x64/libggml-base.so

Any other build of ggml will do as well (`libggml-base.so` of `cmake -DBUILD_SHARED_LIBS=ON`). The 65,536 values are those of
`qernel::testing::Random` with seed 1 and the name "normal", in 64 rows. `rmse` is the root mean square error of each type without
an importance matrix; `weighted` has the root of the weighted mean of squares with one: importances are the squares of the first
1,024 values of the name "importance".
"""
import ctypes
import json
import os
import pathlib
import sys

import numpy as np

from make_golden import engine_random

ROWS, COLS = 64, 1024
TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16,
    "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "IQ1_M": 29, "TQ1_0": 34,
    "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40,
}
# The library refuses to encode these without an importance matrix.
NEED_IMPORTANCE = {"IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"}


class Traits(ctypes.Structure):
    """The beginning of `struct ggml_type_traits`."""
    _fields_ = [("name", ctypes.c_char_p), ("blck_size", ctypes.c_int64), ("blck_size_interleave", ctypes.c_int64),
                ("type_size", ctypes.c_size_t), ("is_quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p)]


def load(path):
    ggml = ctypes.CDLL(path, os.RTLD_LAZY)
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    ggml.ggml_row_size.restype = ctypes.c_size_t
    ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    return ggml


def round_trip(ggml, kind, values, importance):
    """The values that the library makes of `values` `[ROWS, COLS]`, encoded and decoded."""
    blocks = np.zeros(ROWS * ggml.ggml_row_size(kind, COLS), np.uint8)
    weights = importance.ctypes.data if importance is not None else None
    written = ggml.ggml_quantize_chunk(kind, values.ctypes.data, blocks.ctypes.data, 0, ROWS, COLS, weights)
    assert written == blocks.size, (kind, written)
    decoded = np.full(values.shape, np.nan, np.float32)
    decode = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(ggml.ggml_get_type_traits(kind)[0].to_float)
    decode(blocks.ctypes.data, decoded.ctypes.data, values.size)
    return decoded


def error(values, decoded, weights):
    """The root of the weighted mean of the squared differences."""
    squares = (values.astype(np.float64) - decoded) ** 2
    weights = np.broadcast_to(weights, values.shape).astype(np.float64)
    return float(np.sqrt((weights * squares).sum() / weights.sum()))


def main():
    ggml = load(sys.argv[1])
    values = engine_random(1, "normal", ROWS * COLS).reshape(ROWS, COLS)
    importance = engine_random(1, "importance", COLS) ** 2
    rmse, weighted = {}, {}
    for name, kind in TYPES.items():
        if name not in NEED_IMPORTANCE:
            rmse[name] = error(values, round_trip(ggml, kind, values, None), 1.0)
        weighted[name] = error(values, round_trip(ggml, kind, values, importance), importance)
    path = pathlib.Path(__file__).with_name("rmse.json")
    path.write_text(json.dumps({"rmse": rmse, "weighted": weighted}, indent=1) + "\n")


if __name__ == "__main__":
    main()
