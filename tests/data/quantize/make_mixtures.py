#!/usr/bin/env python3
"""Which tensor gets which type, by llama-quantize: writes mixtures.json beside this file.

    pip install gguf==0.19.0 numpy
    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz   # llama.cpp v0.5.0, MIT
    LD_LIBRARY_PATH=package/bins/linux-x64 python3 make_mixtures.py package/bins/linux-x64 [MODEL MIXTURE]

For each of the models below, whose tensors have two rows each, and for each type of file: the first 16 hexadecimal digits of the SHA-256 of
a line "NAME TYPE" for each matrix, in the order of their names. With a model and a type of file the lines are printed instead.
"""
import ctypes
import glob
import hashlib
import json
import os
import pathlib
import re
import sys
import tempfile

import gguf
import numpy as np

# name: architecture, layers, heads, key heads, experts, columns, tied
MODELS = {
    "qwen2": ("qwen2", 28, 28, 4, 0, 256, False),
    "small": ("qwen2", 24, 14, 2, 0, 896, True),
    "qwen3": ("qwen3", 5, 16, 8, 0, 256, True),
    "hybrid": ("qwen35", 32, 16, 4, 0, 256, False),
    "experts": ("qwen3moe", 48, 32, 4, 128, 256, False),
    "eight": ("llama", 16, 32, 8, 8, 256, False),
    "large": ("llama", 80, 64, 8, 0, 256, False),
}
MIXTURES = {
    "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8, "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3,
    "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30, "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "Q2_K": 10, "Q2_K_S": 21, "IQ3_M": 27, "IQ3_S": 26,
    "IQ3_XS": 22, "IQ3_XXS": 23, "IQ2_M": 29, "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19, "IQ1_M": 31, "IQ1_S": 24, "TQ2_0": 37,
    "TQ1_0": 36, "MXFP4_MOE": 38,
}


def tensors(architecture, layers, experts, cols, tied):
    """Names and shapes of the matrices."""
    yield "token_embd.weight", (2, cols)
    if not tied:
        yield "output.weight", (2, cols)
    for i in range(layers):
        names = ["attn_q", "attn_k", "attn_v", "attn_output"]
        if architecture == "qwen35" and i % 4 != 3:
            names = ["attn_qkv", "attn_gate", "ssm_out", "ssm_alpha", "ssm_beta"]
        if experts:
            yield f"blk.{i}.ffn_gate_inp.weight", (2, cols)
        for name in ["ffn_gate", "ffn_up", "ffn_down"]:
            if experts:
                yield f"blk.{i}.{name}_exps.weight", (2, 2, cols)
            else:
                yield f"blk.{i}.{name}.weight", (2, cols)
        for name in names:
            yield f"blk.{i}.{name}.weight", (2, cols)
        yield f"blk.{i}.attn_norm.weight", (cols,)


def write_model(path, architecture, layers, heads, kv_heads, experts, cols, tied):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(cols)
    writer.add_feed_forward_length(cols)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(2)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(cols)
    if architecture == "qwen35":
        writer.add_key_length(64)
        writer.add_value_length(64)
        writer.add_rope_dimension_sections([11, 11, 10, 0])
        for key, value in [("conv_kernel", 4), ("state_size", 64), ("group_count", 2), ("time_step_rank", 2), ("inner_size", 128)]:
            writer.add_uint32(f"qwen35.ssm.{key}", value)
        writer.add_uint32("qwen35.full_attention_interval", 4)
    for name, shape in tensors(architecture, layers, experts, cols, tied):
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Params(ctypes.Structure):
    """`llama_model_quantize_params`."""
    _fields_ = [("nthread", ctypes.c_int32), ("ftype", ctypes.c_int), ("output_tensor_type", ctypes.c_int),
                ("token_embedding_type", ctypes.c_int), ("allow_requantize", ctypes.c_bool), ("quantize_output_tensor", ctypes.c_bool),
                ("only_copy", ctypes.c_bool), ("pure", ctypes.c_bool), ("keep_split", ctypes.c_bool), ("dry_run", ctypes.c_bool),
                ("imatrix", ctypes.c_void_p), ("kv_overrides", ctypes.c_void_p), ("tt_overrides", ctypes.c_void_p),
                ("prune_layers", ctypes.c_void_p), ("rest", ctypes.c_uint64 * 4)]


class Llama:
    def __init__(self, folder):
        self.lines = []
        self.library = ctypes.CDLL(sorted(glob.glob(f"{folder}/libllama.v*.so"))[-1], os.RTLD_LAZY)
        log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self.log = log(lambda level, text, _: self.lines.append(text.decode(errors="replace")))
        self.library.llama_log_set(self.log, None)
        self.library.llama_model_quantize_default_params.restype = Params
        self.library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]

    def types(self, path, file_type):
        """The type of each tensor, as a dry run tells it."""
        self.lines = []
        params = self.library.llama_model_quantize_default_params()
        params.nthread, params.ftype, params.dry_run = 1, file_type, True
        result = self.library.llama_model_quantize(path.encode(), b"/dev/null", params)
        text = "".join(self.lines)
        assert result == 0, text
        line = re.compile(r"\] +(\S+) +- \[[^]]*\], type = +(\w+), .*?size = [^\n]*?(?:\((\w+)\))?\n")
        return {name: (to or old).upper() for name, old, to in line.findall(text)}


def listing(types):
    return "".join(f"{name} {kind}\n" for name, kind in sorted(types.items()))


def main():
    llama = Llama(sys.argv[1])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for model, shape in MODELS.items():
            path = f"{folder}/{model}.gguf"
            write_model(path, *shape)
            names = [name for name, dims in tensors(shape[0], shape[1], *shape[4:]) if len(dims) > 1]
            found[model] = {}
            for mixture, file_type in MIXTURES.items():
                if len(sys.argv) > 2 and sys.argv[2:] != [model, mixture]:
                    continue
                types = llama.types(path, file_type)
                assert set(names) <= set(types), (model, mixture, set(names) - set(types))
                text = listing({name: types[name] for name in names})
                if len(sys.argv) > 2:
                    print(text, end="")
                found[model][mixture] = hashlib.sha256(text.encode()).hexdigest()[:16]
    if len(sys.argv) == 2:
        path = pathlib.Path(__file__).with_name("mixtures.json")
        path.write_text(json.dumps({"models": MODELS, "types": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
