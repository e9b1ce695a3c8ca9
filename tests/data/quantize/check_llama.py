#!/usr/bin/env python3
"""Files of `qernel quantize` in llama.cpp: it loads them, makes its own of the same types, and measures both. Not run by `cargo test`.

    pip install numpy
    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz   # llama.cpp v0.5.0, MIT
    LD_LIBRARY_PATH=package/bins/linux-x64 python3 check_llama.py package/bins/linux-x64 QERNEL MODEL TEXT [--context 512] [--types TYPE ...]

For each type of file: the size and the perplexity (llama-perplexity's conventions) of its file and of ours, both computed by llama.cpp, ours
computed by `QERNEL perplexity`, and the ratios. Exit status 1 if one is beyond half a hundredth.
"""
import argparse
import ctypes
import glob
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

from make_mixtures import MIXTURES, Params

SLACK = 0.005


class ModelParams(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 256)]


class ContextParams(ctypes.Structure):
    """The beginning of `llama_context_params`; the rest stays as it is given."""
    _fields_ = [("n_ctx", ctypes.c_uint32), ("n_batch", ctypes.c_uint32), ("n_ubatch", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 244)]


class Batch(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
                ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
                ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8))]


class Llama:
    def __init__(self, folder):
        self.llama = ctypes.CDLL(sorted(glob.glob(f"{folder}/libllama.v*.so"))[-1], os.RTLD_LAZY)
        ggml = ctypes.CDLL(sorted(glob.glob(f"{folder}/libggml.v*.so"))[-1], os.RTLD_LAZY)
        log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self.log = log(lambda *_: None)
        self.llama.llama_log_set(self.log, None)
        ggml.ggml_backend_load_all_from_path(folder.encode())
        for name in ["llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab", "llama_get_memory"]:
            getattr(self.llama, name).restype = ctypes.c_void_p
        self.llama.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
        self.llama.llama_get_logits_ith.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self.llama.llama_model_default_params.restype = ModelParams
        self.llama.llama_context_default_params.restype = ContextParams
        self.llama.llama_model_quantize_default_params.restype = Params
        self.llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
        self.llama.llama_batch_init.restype = Batch

    def quantize(self, source, target, file_type):
        params = self.llama.llama_model_quantize_default_params()
        params.ftype, params.nthread = file_type, os.cpu_count()
        return self.llama.llama_model_quantize(source.encode(), target.encode(), params) == 0

    def perplexity(self, path, text, n_ctx):
        model = ctypes.c_void_p(self.llama.llama_model_load_from_file(path.encode(), self.llama.llama_model_default_params()))
        assert model, f"llama.cpp does not load {path}"
        vocab = ctypes.c_void_p(self.llama.llama_model_get_vocab(model))
        params = self.llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        context = ctypes.c_void_p(self.llama.llama_init_from_model(model, params))
        self.llama.llama_set_n_threads(context, 1, 1)
        room = (ctypes.c_int32 * (len(text) + 8))()
        count = self.llama.llama_tokenize(vocab, text, len(text), room, len(room), ctypes.c_bool(True), ctypes.c_bool(False))
        tokens, n_vocab = list(room[:count]), self.llama.llama_vocab_n_tokens(vocab)
        add_bos = bool(self.llama.llama_vocab_get_add_bos(vocab) & 1)
        batch = self.llama.llama_batch_init(n_ctx, 0, 1)
        total, scored = 0.0, 0
        for chunk in range(count // n_ctx):
            self.llama.llama_memory_clear(ctypes.c_void_p(self.llama.llama_get_memory(context)), ctypes.c_bool(True))
            part = tokens[chunk * n_ctx:(chunk + 1) * n_ctx]
            batch.n_tokens = n_ctx
            for i, token in enumerate(part):
                batch.token[i] = self.llama.llama_vocab_bos(vocab) if add_bos and i == 0 else token
                batch.pos[i], batch.n_seq_id[i], batch.logits[i] = i, 1, i >= n_ctx // 2
                batch.seq_id[i][0] = 0
            assert self.llama.llama_decode(context, batch) == 0
            for i in range(n_ctx // 2, n_ctx - 1):
                logits = np.ctypeslib.as_array(self.llama.llama_get_logits_ith(context, i), (n_vocab,)).astype(np.float64)
                total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[part[i + 1]]
                scored += 1
        self.llama.llama_free(context)
        self.llama.llama_model_free(model)
        return float(np.exp(total / scored))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("libraries")
    parser.add_argument("qernel")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--types", nargs="+", default=["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K"])
    args = parser.parse_args()
    llama = Llama(args.libraries)
    text = open(args.text, "rb").read()
    run = lambda *words: subprocess.run([args.qernel, *words], check=True, capture_output=True, text=True).stdout
    failed = False
    print("type      bytes here  there   perplexity there of theirs, of ours   here of ours   ours/theirs  here/there")
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.types:
            ours, theirs = f"{folder}/ours.gguf", f"{folder}/theirs.gguf"
            run("quantize", args.model, ours, kind, "--force")
            assert llama.quantize(args.model, theirs, MIXTURES[kind]), kind
            of_theirs, of_ours = [llama.perplexity(path, text, args.context) for path in (theirs, ours)]
            words = ["-m", ours, "-f", args.text, "-c", str(args.context), "--device", "cpu", "--json"]
            here = json.loads(run("perplexity", *words))["ppl"]
            sizes = [os.path.getsize(path) for path in (ours, theirs)]
            ratios = [of_ours / of_theirs, here / of_ours]
            failed |= abs(ratios[1] - 1) > SLACK or ratios[0] - 1 > SLACK
            print(f"{kind:8} {sizes[0]:10} {sizes[1]:10} {of_theirs:12.4f} {of_ours:12.4f} {here:12.4f} {ratios[0]:12.4f} {ratios[1]:12.4f}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
