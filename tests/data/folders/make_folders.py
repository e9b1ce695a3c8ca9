#!/usr/bin/env python3
"""Write the folders of tests/it/folder.rs: tiny models with random weights as transformers saves them, and its logits.

    pip install torch transformers numpy safetensors
    python make_folders.py [NAME…]

Those of GROUPED hold integers in groups as GPTQ, AWQ and compressed-tensors lay them out (grouped.py).
Each folder has config.json, model.safetensors (one of them shards with an index) and logits.npy: float32 [tokens, vocabulary], computed in
float64 from the weights as they were saved. None has a tokenizer.
"""
import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from grouped import CONFIGS, quantise
from safetensors.torch import load_file, save_file

TOKENS = [3, 17, 44, 0, 61, 8, 9, 30, 30, 5, 52, 11]
BASE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=False,
)
ROPE = dict(rope_type="default", rope_theta=10000.0)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LINEAR = dict(
    head_dim=16, num_hidden_layers=4, linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=8, linear_value_head_dim=8,
    linear_conv_kernel_dim=4, rope_parameters=dict(ROPE, partial_rotary_factor=0.25),
)
SHARED = dict(MOE, shared_expert_intermediate_size=24)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16,
)
GPT2 = dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
# name: (class of the configuration, its fields, dtype)
MODELS = {
    "qwen2": ("Qwen2Config", dict(BASE, rope_parameters=YARN), "bfloat16"),
    "qwen3": ("Qwen3Config", dict(BASE, head_dim=16, tie_word_embeddings=True, rope_parameters=ROPE), "float16"),
    "qwen3-fp8": ("Qwen3Config", dict(BASE, hidden_size=160, intermediate_size=144, head_dim=16, num_hidden_layers=1, rope_parameters=ROPE), "fp8"),
    "llama": ("LlamaConfig", dict(BASE, rope_parameters=LLAMA3), "float32"),
    "gpt2": ("GPT2Config", GPT2, "bfloat16"),
    "qwen2moe": ("Qwen2MoeConfig", dict(BASE, **SHARED, norm_topk_prob=False, rope_parameters=ROPE), "bfloat16"),
    "qwen3moe": ("Qwen3MoeConfig", dict(BASE, **MOE, head_dim=16, norm_topk_prob=True, rope_parameters=ROPE), "bfloat16"),
    "qwen35": ("Qwen3_5TextConfig", dict(BASE, **LINEAR), "bfloat16"),
    "qwen35moe": ("Qwen3_5MoeTextConfig", dict(BASE, **dict(SHARED, **LINEAR)), "bfloat16"),
    "qwen3next": ("Qwen3NextConfig", dict(BASE, **dict(SHARED, **LINEAR), norm_topk_prob=True), "bfloat16"),
}
# Models that read pictures, of whose rest they have as little as there can be: the text part's class of the configuration and its fields.
VISION = dict(
    depth=1, hidden_size=8, intermediate_size=8, num_heads=1, in_channels=1, patch_size=2, spatial_merge_size=1, temporal_patch_size=1,
    out_hidden_size=32, num_position_embeddings=4, deepstack_visual_indexes=[],
)
TEXT = dict(BASE, head_dim=16, rope_parameters=dict(ROPE, mrope_section=[4, 2, 2], mrope_interleaved=True))
TEXT_MOE = dict(TEXT, **dict(MOE, moe_intermediate_size=24))
PICTURES = {
    "qwen3vl": ("Qwen3VL", TEXT),
    "qwen3vlmoe": ("Qwen3VLMoe", TEXT_MOE),
    # Its experts as transformers 5 saves them; they are published with rows as columns.
    "qwen3vlmoe-saved": ("Qwen3VLMoe", TEXT_MOE),
}
# Integers in groups: what one of their writers would save of the projections of a model (grouped.py).
WIDE = dict(BASE, hidden_size=64, intermediate_size=96, rope_parameters=ROPE)
GROUPED = {
    "qwen2-gptq": ("Qwen2Config", WIDE, dict(form="gptq", bits=4, group=32)),
    "qwen3-gptq-sorted": ("Qwen3Config", dict(WIDE, head_dim=16), dict(form="gptq_v2", bits=4, group=32, zeros=True, sorted=True)),
    "qwen2-gptq-int8": ("Qwen2Config", WIDE, dict(form="gptq", bits=8, group=None)),
    "qwen3moe-awq": ("Qwen3MoeConfig", dict(WIDE, **dict(MOE, moe_intermediate_size=32), head_dim=16, norm_topk_prob=True), dict(form="awq", bits=4, group=32, zeros=True)),
    "llama-packed": ("LlamaConfig", WIDE, dict(form="packed", bits=4, group=32, zeros=True)),
    "qwen3-int8": ("Qwen3Config", dict(WIDE, head_dim=16), dict(form="bytes", bits=8, group=None)),
}
SHARDED = "qwen3moe"
# As it is published: in a model that reads pictures, the experts of a layer in two tensors.
PUBLISHED = "qwen35moe"
# With hidden.npy: what the last norm makes, float32 [tokens, hidden_size].
EMBEDDED = ["qwen3", "gpt2", "qwen35"]
BLOCK = 128


def draw(model, seed):
    """Random weights, those of norms and biases too, rounded to what will be saved."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        rest = 1.0 if value.ndim == 1 and "norm" in name.lower() or ".ln_" in name else 0.0
        if "A_log" in name:
            noise, rest = noise * 5, 0.5
        scale = 0.1 if value.ndim == 1 else 1.2 * value.shape[-1] ** -0.5
        value.data = rest + noise * scale


def to_fp8(x):
    """What is saved of a matrix (codes, scales), and the values it stands for."""
    rows, cols = x.shape
    padded = torch.nn.functional.pad(x, (0, -cols % BLOCK, 0, -rows % BLOCK))
    blocks = padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    scale = (blocks.abs().amax((1, 3)) / 448).to(torch.bfloat16)
    wide = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :cols]
    codes = (x / wide.double()).to(torch.float8_e4m3fn)
    return codes, scale, codes.double() * wide.double()


def publish(folder):
    """Renames the tensors and nests the configuration as published files have them."""
    tensors, experts = load_file(folder / "model.safetensors"), {}
    for key in list(tensors):
        if ".mlp.experts." in key:
            layer, rest = key.split(".mlp.experts.")
            experts.setdefault(layer, {})[rest] = tensors.pop(key)
    tensors = {key.replace("model.", "model.language_model.", 1): value for key, value in tensors.items()}
    for layer, parts in experts.items():
        count = len(parts) // 3
        both = [torch.cat([parts[f"{i}.gate_proj.weight"], parts[f"{i}.up_proj.weight"]]) for i in range(count)]
        layer = layer.replace("model.", "model.language_model.", 1) + ".mlp.experts."
        tensors[layer + "gate_up_proj"] = torch.stack(both)
        tensors[layer + "down_proj"] = torch.stack([parts[f"{i}.down_proj.weight"] for i in range(count)])
    tensors["model.visual.patch_embed.proj.bias"] = torch.zeros(3, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    whole = dict(architectures=["Qwen3_5MoeForConditionalGeneration"], model_type="qwen3_5_moe", text_config=text, tie_word_embeddings=False)
    (folder / "config.json").write_text(json.dumps(whole, indent=2) + "\n")


def save_logits(model, name, folder):
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
        np.save(folder / "logits.npy", logits.float().numpy())
        if name in EMBEDDED:
            np.save(folder / "hidden.npy", model.base_model(torch.tensor([TOKENS])).last_hidden_state[0].float().numpy())
    print(name, sum(path.stat().st_size for path in folder.iterdir()), "bytes so far, largest logit", float(logits.abs().max()))


def make(name):
    kind, fields, dtype = MODELS[name]
    config = getattr(transformers, kind)(**fields)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    draw(model, sum(name.encode()))
    folder = pathlib.Path(__file__).parent / name
    folder.mkdir(exist_ok=True)
    if dtype == "fp8":
        tensors = {}
        for key, value in model.named_parameters():
            if value.ndim == 2 and "proj" in key:
                tensors[key], tensors[key + "_scale_inv"], value.data = to_fp8(value.data)
            else:
                tensors[key] = value.data.to(torch.bfloat16)
                value.data = tensors[key].double()
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
        whole = json.loads(config.to_json_string())
        whole["architectures"] = [type(model).__name__]
        whole["quantization_config"] = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[BLOCK, BLOCK])
        (folder / "config.json").write_text(json.dumps(whole, indent=2) + "\n")
        save_logits(model, name, folder)
    else:
        dtype = getattr(torch, dtype)
        for value in model.parameters():
            value.data = value.data.to(dtype).double()
        # Before anything else is rounded: the frequencies of positions are no weights.
        save_logits(model, name, folder)
        shards = dict(max_shard_size=12_000) if name == SHARDED else {}
        model.to(dtype).save_pretrained(folder, **shards)
        (folder / "generation_config.json").unlink(missing_ok=True)
        if name == PUBLISHED:
            publish(folder)


def make_with_pictures(name):
    kind, text = PICTURES[name]
    config = getattr(transformers, kind + "Config")(text_config=text, vision_config=VISION, tie_word_embeddings=False)
    for of in (config, config.text_config):
        of._attn_implementation, of._experts_implementation = "eager", "eager"
    model = getattr(transformers, kind + "ForConditionalGeneration")(config).double().eval()
    draw(model, sum(name.encode()))
    for value in model.parameters():
        value.data = value.data.to(torch.bfloat16).double()
    folder = pathlib.Path(__file__).parent / name
    folder.mkdir(exist_ok=True)
    save_logits(model, name, folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name == "qwen3vlmoe":
        tensors = load_file(folder / "model.safetensors")
        tensors = {key: value.transpose(1, 2).contiguous() if ".mlp.experts." in key else value for key, value in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def make_grouped(name):
    kind, fields, scheme = GROUPED[name]
    config = getattr(transformers, kind)(**fields)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    draw(model, sum(name.encode()))
    folder = pathlib.Path(__file__).parent / name
    folder.mkdir(exist_ok=True)
    tensors = {}

    def quantised(key, matrix):
        parts, values = quantise(matrix.numpy(), np.random.default_rng(sum(key.encode())), **scheme)
        base = key.removesuffix(".weight")
        tensors.update({f"{base}.{part}": torch.from_numpy(value) if isinstance(value, np.ndarray) else value for part, value in parts.items()})
        if scheme["form"] == "gptq" and "self_attn" not in key:
            # AutoGPTQ gives biases to matrices that have none.
            tensors[f"{base}.bias"] = torch.zeros(len(values), dtype=torch.float16)
        return torch.from_numpy(values)

    for key, value in model.named_parameters():
        if ".mlp.experts." in key:
            # Of each expert gate and up one below the other, or down.
            layer, part = key.rsplit(".", 1)
            for i, expert in enumerate(value.data):
                names = ["gate_proj", "up_proj"] if part == "gate_up_proj" else ["down_proj"]
                rows = [quantised(f"{layer}.{i}.{name}.weight", matrix) for name, matrix in zip(names, expert.chunk(len(names)))]
                value.data[i] = torch.cat(rows)
        elif value.ndim == 2 and "proj" in key:
            value.data = quantised(key, value.data)
        else:
            tensors[key] = value.data.to(torch.float16)
            value.data = tensors[key].double()
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    whole = json.loads(config.to_json_string())
    whole["architectures"] = [type(model).__name__]
    whole["quantization_config"] = CONFIGS[scheme["form"]](**scheme)
    (folder / "config.json").write_text(json.dumps(whole, indent=2) + "\n")
    save_logits(model, name, folder)


wanted = sys.argv[1:]
for each in MODELS:
    if not wanted or each in wanted:
        make(each)
for each in PICTURES:
    if not wanted or each in wanted:
        make_with_pictures(each)
for each in GROUPED:
    if not wanted or each in wanted:
        make_grouped(each)
