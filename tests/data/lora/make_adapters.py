#!/usr/bin/env python3
"""Write the adapters of tests/it/lora.rs: random updates as PEFT saves them, and the logits that it computes with them.

    pip install torch transformers peft numpy
    python make_adapters.py

Each is for the model of that name in ../folders, and has logits.npy: float32 [tokens, vocabulary], computed in float64 from the weights as
they were saved.
"""
import pathlib

import numpy as np
import peft
import torch
import transformers

TOKENS = [3, 17, 44, 0, 61, 8, 9, 30, 30, 5, 52, 11]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ATTENTION + ["gate_proj", "up_proj", "down_proj"]
# name: (LoraConfig's fields, dtype of the updates)
ADAPTERS = {
    "qwen2": (dict(r=4, lora_alpha=8, target_modules=ALL), "float32"),
    "qwen3": (dict(r=3, lora_alpha=5, use_rslora=True, target_modules=ALL), "bfloat16"),
    # Heads whose rows GGUF has in another order; ranks and alphas of their own.
    "llama": (
        dict(
            r=2, lora_alpha=4, target_modules=ALL, rank_pattern={"q_proj": 5, "layers.1.mlp.down_proj": 1},
            alpha_pattern={"k_proj": 7, "layers.1.mlp.down_proj": 3},
        ),
        "float16",
    ),
    "gpt2": (dict(r=4, lora_alpha=4, fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"]), "float32"),
    # A hybrid: what its attention is gated by is in q_proj too. Layers of linear attention have no updates.
    "qwen35": (dict(r=4, lora_alpha=8, target_modules=ALL), "bfloat16"),
}


def make(name):
    fields, dtype = ADAPTERS[name]
    here = pathlib.Path(__file__).parent
    model = transformers.AutoModelForCausalLM.from_pretrained(
        here.parent / "folders" / name, dtype=torch.float64, attn_implementation="eager"
    )
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **fields)).eval()
    generator = torch.Generator().manual_seed(sum(name.encode()))
    dtype = getattr(torch, dtype)
    for key, value in model.named_parameters():
        if "lora_" in key:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.data = (noise * value.shape[-1] ** -0.5).to(dtype).double()
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
        with model.disable_adapter():
            without = model(torch.tensor([TOKENS])).logits[0]
    # They are saved as they are.
    for key, value in model.named_parameters():
        if "lora_" in key:
            value.data = value.data.to(dtype)
    # The model's place on this machine says nothing.
    model.peft_config["default"].base_model_name_or_path = name
    folder = here / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    np.save(folder / "logits.npy", logits.float().numpy())
    print(name, "largest logit", float(logits.abs().max()), "largest change", float((logits - without).abs().max()))


for each in ADAPTERS:
    make(each)
