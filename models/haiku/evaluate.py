#!/usr/bin/env python3
"""Sample answers to the held-out prompts and count what the model is meant to do.

    evaluate.py MODEL.pt TOKENIZER.json CORPUS_DIR METRICS.json [--temperature 0.7] [--seeds 4] [--limit N]

Plain sampling from the whole distribution (no top-k, no top-p), weights rounded to f16 as in the exported file.
"""
import argparse
import hashlib
import json
import pathlib
import re

import torch
from tokenizers import Tokenizer

from model import Config, Qwen2
from train import CHATML_USER

HERE = pathlib.Path(__file__).parent
MAX_NEW = 72


def syllables(table, line):
    """Syllables of a line by the table, or None if a word is not in it."""
    total = 0
    for word in line.lower().split():
        count = table.get(word.strip(".,;:!?\"()"))
        if count is None:
            return None
        total += count
    return total


def stands_in(word, text):
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


@torch.no_grad()
def sample(model, prompts, end, pad, temperature, generator, device):
    """Token ids of each answer. The whole sequence is computed anew at every step: rows are short."""
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest + MAX_NEW), pad, dtype=torch.long, device=device)
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = torch.tensor(prompt, device=device)
    starts = torch.tensor([len(p) for p in prompts], device=device)
    rows = torch.arange(len(prompts), device=device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(MAX_NEW):
        hidden = model(tokens[:, : longest + step])[rows, starts + step - 1]
        logits = model.logits(hidden).float()
        if temperature > 0:
            chances = torch.softmax(logits / temperature, -1).cpu()
            chosen = torch.multinomial(chances, 1, generator=generator)[:, 0].to(device)
        else:
            chosen = logits.argmax(-1)
        tokens[rows, starts + step] = torch.where(done, pad, chosen)
        done |= chosen == end
        if done.all():
            break
    answers = []
    for row, start in zip(tokens.tolist(), starts.tolist()):
        ids = row[start : start + MAX_NEW]
        answers.append(ids[: ids.index(end)] if end in ids else ids)
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokenizer")
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("metrics", type=pathlib.Path)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    saved = torch.load(args.model, map_location="cpu", weights_only=True)
    model = Qwen2(Config(**saved["config"]))
    model.load_state_dict({k: v.half().float() if v.dim() == 2 else v for k, v in saved["state"].items()})
    model.to(args.device).eval()
    tokenizer = Tokenizer.from_file(args.tokenizer)
    table = dict((word, int(count)) for word, count in (line.split("\t") for line in open(HERE / "syllables.tsv", encoding="utf-8")))
    heldout = [json.loads(line) for line in open(HERE / "heldout_prompts.jsonl", encoding="utf-8")][: args.limit]
    digest = lambda text: hashlib.md5(text.encode()).digest()[:8]
    known = set()
    for path in args.corpus.glob("shard-*.jsonl"):
        known.update(digest(json.loads(line)["answer"]) for line in open(path, encoding="utf-8"))

    prompts = [tokenizer.encode(CHATML_USER.format(p["prompt"])).ids for p in heldout]
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    total = {"outputs": 0, "word": 0, "three_lines": 0, "5-7-5": 0, "distinct": 0, "not_in_corpus": 0, "distinct_and_new": 0}
    unseen = {"outputs": 0, "word": 0, "5-7-5": 0}
    examples = []
    for seed in range(args.seeds):
        generator = torch.Generator().manual_seed(seed)
        texts = [tokenizer.decode(ids) for ids in sample(model, prompts, end, pad, args.temperature, generator, args.device)]
        times = {t: texts.count(t) for t in texts}
        for p, text in zip(heldout, texts):
            lines = text.split("\n")
            word = stands_in(p["word"], text)
            haiku = [syllables(table, line) for line in lines] == [5, 7, 5]
            new, distinct = digest(text) not in known, times[text] == 1
            for key, value in (("outputs", 1), ("word", word), ("three_lines", len(lines) == 3 and all(lines)), ("5-7-5", haiku), ("distinct", distinct),
                               ("not_in_corpus", new), ("distinct_and_new", distinct and new)):
                total[key] += value
                if p["word_held_out"] and key in unseen:
                    unseen[key] += value
            examples.append({"prompt": p["prompt"], "text": text, "word": word, "5-7-5": haiku})
    percent = lambda counts: {k: v if k == "outputs" else round(100 * v / max(counts["outputs"], 1), 2) for k, v in counts.items()}
    result = {"temperature": args.temperature, "seeds": args.seeds, "percent": percent(total), "percent_where_word_held_out": percent(unseen), "corpus": len(known),
              "failures": [e for e in examples if not (e["word"] and e["5-7-5"])][:40], "examples": examples[:20]}
    args.metrics.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for e in examples[:8]:
        print(f"{e['prompt']}\n    " + e["text"].replace("\n", "\n    "))
    print(json.dumps({k: result[k] for k in ("temperature", "seeds", "percent", "percent_where_word_held_out")}))


if __name__ == "__main__":
    main()
