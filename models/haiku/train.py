#!/usr/bin/env python3
"""Train the model on the corpus.

    train.py CORPUS_DIR TOKENIZER.json OUT_DIR [--steps N] [--seconds S] [--batch 512] [--device cuda|cpu]

Stops after --steps, or sooner when --seconds would not suffice: the learning rate follows whichever is nearer its end, so
that it always reaches zero. Writes OUT_DIR/model.pt, loss.csv and loss.svg.
"""
import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from model import Config, Qwen2

ROW = 192
CHATML_USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def encode_shard(job):
    """A shard as rows of ROW + 1 tokens, each a conversation of whole turns from its first token on, and the same shape
    of flags that say which tokens are the assistant's."""
    path, tokenizer_path = job
    tokenizer = Tokenizer.from_file(tokenizer_path)
    entries = [json.loads(line) for line in open(path, encoding="utf-8")]
    newline = tokenizer.encode("\n").ids
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    prompts = tokenizer.encode_batch([CHATML_USER.format(e["prompt"]) for e in entries])
    answers = tokenizer.encode_batch([e["answer"] for e in entries])
    rows, flags = [], []
    row, flag = [], []

    def flush():
        nonlocal row, flag
        space = ROW + 1 - len(row)
        rows.append(np.array(row + [pad] * space, dtype=np.uint16))
        flags.append(np.array(flag + [0] * space, dtype=np.uint8))
        row, flag = [], []

    for prompt, answer in zip(prompts, answers):
        given, said = prompt.ids, answer.ids + [end]
        turn = given + said + newline
        if len(turn) > ROW + 1:
            continue
        if len(row) + len(turn) > ROW + 1:
            flush()
        row += turn
        flag += [0] * len(given) + [1] * len(said) + [0] * len(newline)
    if row:
        flush()
    return np.stack(rows), np.stack(flags)


def draw_curve(points, path):
    """The loss over the steps as an SVG picture: points are (step, loss)."""
    width, height, left, bottom = 720, 360, 56, 36
    losses = [p[1] for p in points]
    top, low = min(max(losses), 4.0), min(losses)
    span = max(top - low, 1e-6)
    last = max(points[-1][0], 1)
    x = lambda s: left + (width - left - 12) * s / last
    y = lambda v: 12 + (height - bottom - 12) * (top - min(v, top)) / span
    line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points)
    labels = []
    for i in range(5):
        value = low + span * i / 4
        labels.append(f'<line x1="{left}" x2="{width - 12}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
                      f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>'
                      f'<text x="{x(last * i / 4):.1f}" y="{height - 14}" text-anchor="middle">{round(last * i / 4)}</text>')
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
                    f'<rect width="{width}" height="{height}" fill="white"/>{"".join(labels)}'
                    f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="1.5"/>'
                    f'<text x="{width / 2}" y="{height - 1}" text-anchor="middle">step</text>'
                    f'<text x="{left + 8}" y="24">loss, nats a token of the answer</text></svg>\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("tokenizer")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--batch", type=int, default=512, help="rows of 192 tokens")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.time()

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    jobs = [(path, args.tokenizer) for path in sorted(args.corpus.glob("shard-*.jsonl"))]
    with multiprocessing.Pool(args.workers) as pool:
        parts = pool.map(encode_shard, jobs, chunksize=1)
    device = torch.device(args.device)
    tokens = torch.from_numpy(np.concatenate([p[0] for p in parts]).astype(np.int16)).to(device)
    flags = torch.from_numpy(np.concatenate([p[1] for p in parts])).to(device)
    print(f"encoded {len(tokens)} rows of {ROW} tokens, {flags.float().mean():.2f} of them answers, in {time.time() - started:.0f} s", flush=True)

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    config = Config(vocab_size=Tokenizer.from_file(args.tokenizer).get_vocab_size())
    model = Qwen2(config).to(device)
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=args.lr,
                                  betas=(0.9, 0.98), fused=device.type == "cuda")

    def loss_of(rows, mask):
        hidden = model(rows[:, :-1])
        logits = model.logits(hidden).float()
        losses = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        weight = mask[:, 1:].flatten().float()
        return (losses * weight).sum() / weight.sum()

    step_loss = loss_of
    if device.type == "cuda" and not args.no_compile:
        step_loss = torch.compile(loss_of)
    order, at, log, step = None, 0, [], 0
    train_started = time.time()
    progress = 0.0
    generator = torch.Generator().manual_seed(args.seed)
    while step < args.steps:
        if order is None or at + args.batch > len(order):
            order, at = torch.randperm(len(tokens), generator=generator).to(device), 0
        pick = order[at : at + args.batch]
        at += args.batch
        rate = args.lr * min(1.0, (step + 1) / args.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows, mask = tokens[pick].long(), flags[pick]
        try:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = step_loss(rows, mask)
            loss.backward()
        except Exception as error:  # torch.compile needs a compiler on the machine; without one the step is only slower
            if step_loss is loss_of or step:
                raise
            print(f"no torch.compile here ({type(error).__name__}): training eagerly", flush=True)
            step_loss = loss_of
            optimizer.zero_grad(set_to_none=True)
            continue
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 20 == 0 or step in (1, args.steps):
            value = loss.item()
            log.append((step, value))
            spent = time.time() - train_started
            if step % 500 == 0 or step in (1, 100):
                print(f"step {step} loss {value:.4f} lr {rate:.2e} {spent:.0f} s", flush=True)
            progress = max(step / args.steps, spent / args.seconds)
            if progress >= 1:
                break
    print(f"trained {step} steps of {args.batch} rows in {time.time() - train_started:.0f} s, loss {log[-1][1]:.4f}", flush=True)
    model.float()
    torch.save({"config": dataclasses.asdict(config), "state": {k: v.cpu() for k, v in model.state_dict().items()},
                "steps": step, "seed": args.seed}, args.out / "model.pt")
    with open(args.out / "loss.csv", "w") as f:
        f.write("step,loss\n")
        f.writelines(f"{s},{v:.5f}\n" for s, v in log)
    draw_curve(log, args.out / "loss.svg")


if __name__ == "__main__":
    main()
