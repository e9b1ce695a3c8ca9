#!/usr/bin/env python3
"""Write the trained model as GGUF: matrices f16, norms and biases f32, the metadata that Qwen2.5 files have.

    export.py MODEL.pt TOKENIZER.json OUT.gguf
"""
import json
import sys

import gguf
import numpy as np
import torch

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = {
    "input_layernorm": "attn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}


def tensor_name(name):
    if name == "embed_tokens.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, layer, part, leaf = name.split(".")
    return f"blk.{layer}.{NAMES[part]}.{leaf}"


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    model_path, tokenizer_path, out = sys.argv[1:]
    saved = torch.load(model_path, map_location="cpu", weights_only=True)
    c = saved["config"]
    tokenizer = json.load(open(tokenizer_path, encoding="utf-8"))
    vocabulary = dict(tokenizer["model"]["vocab"])
    special = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    vocabulary.update(special)
    tokens = sorted(vocabulary, key=vocabulary.get)
    if [vocabulary[t] for t in tokens] != list(range(c["vocab_size"])):
        sys.exit("the tokenizer's ids are not 0..vocab_size: train both on the same tokenizer file")
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]

    w = gguf.GGUFWriter(out, "qwen2")
    w.add_type("model")
    w.add_name("qernel haiku")
    w.add_description("Writes haiku, couplets and one-line descriptions with a requested word")
    w.add_license("MIT OR Apache-2.0")
    w.add_size_label(f"{sum(v.numel() for v in saved['state'].values()) / 1e6:.1f}M")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_rope_freq_base(c["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    w.add_token_merges(merges)
    w.add_eos_token_id(special["<|im_end|>"])
    w.add_pad_token_id(special["<|endoftext|>"])
    w.add_bos_token_id(special["<|endoftext|>"])
    w.add_add_bos_token(False)
    w.add_chat_template(CHATML)
    for name, value in saved["state"].items():
        w.add_tensor(tensor_name(name), value.numpy().astype(np.float16 if value.dim() == 2 else np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
