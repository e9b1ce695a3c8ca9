#!/usr/bin/env python3
"""Train the byte-level BPE vocabulary on the corpus: Qwen2's pre-tokenizer and special tokens, a small vocabulary.

    train_tokenizer.py CORPUS_DIR OUT.json [--vocab-size 2048] [--examples 100000]
"""
import argparse
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The split of Qwen2's published tokenizer.json.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def texts(corpus, limit):
    yield from ["system\nYou are a helpful poet.\n"] * 50
    count = 0
    for path in sorted(corpus.glob("shard-*.jsonl")):
        for line in open(path, encoding="utf-8"):
            entry = json.loads(line)
            yield f"user\n{entry['prompt']}"
            yield f"assistant\n{entry['answer']}"
            count += 1
            if count >= limit:
                return


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("out")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--examples", type=int, default=100_000)
    args = parser.parse_args()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=args.vocab_size - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts(args.corpus, args.examples), trainer)
    # Special tokens stand behind the ordinary ones, as in Qwen2's vocabulary.
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.save(args.out)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
