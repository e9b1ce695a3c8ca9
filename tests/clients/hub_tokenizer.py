"""Writes the vocabulary of a GGUF file as a folder that Hugging Face's tokenizers read, for tools that count tokens by themselves.

    hub_tokenizer.py MODEL.gguf FOLDER
"""

import json
import pathlib
import sys

import gguf

CONTROL = 3


def main(model, folder):
    fields = gguf.GGUFReader(model).fields
    tokens, merges, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": tokens[i]} | plain for i, kind in enumerate(types) if kind == CONTROL],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges},
    }
    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


main(*sys.argv[1:])
