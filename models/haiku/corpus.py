#!/usr/bin/env python3
"""Write the training corpus, the held-out prompts and the syllable table.

    corpus.py OUT_DIR [--examples 3000000] [--shards 64] [--seed 1] [--workers N]

OUT_DIR gets shard-NN.jsonl with one example a line: {"prompt", "answer"}. The same seed and shard count write the same
files whatever the number of workers. --tables DIR writes heldout_prompts.jsonl and syllables.tsv there (they are kept
in this directory) and no examples.
"""
import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import re

import grammar
import words
from syllables import count_word

HAIKU = [5, 7, 5]
HELDOUT_PROMPTS = 300

# {t} the subject, {w} the word. The first is the main one and stands in for nearly half of all requests.
BOTH = [
    "Write a haiku about {t} with the word {w}",
    "Write a haiku about {t} with the word {w}.",
    "Write a haiku about {t} that uses the word {w}",
    "Write a haiku about {t} containing the word {w}.",
    "Write a haiku about {t} and use the word {w}",
    "Please write a haiku about {t} with the word {w}.",
    "Write me a haiku about {t} with the word {w} in it",
    "Can you write a haiku about {t} with the word {w}?",
    "Compose a haiku about {t} including the word {w}.",
    "Give me a haiku about {t}. It must contain the word {w}.",
    "A haiku about {t} with the word {w}, please",
    "write a haiku about {t} with the word {w}",
    "haiku about {t}, word {w}",
    "haiku, {t}, {w}",
    "Use the word {w} in a haiku about {t}",
    "With the word {w}, write a haiku about {t}.",
    'Write a haiku about {t} with the word "{w}"',
    "I would like a haiku about {t} with the word {w}.",
    "Write a short haiku about {t} with the word {w}",
]
ONLY_TOPIC = ["Write a haiku about {t}", "Write a haiku about {t}.", "A haiku about {t}, please", "haiku about {t}", "Write me a haiku about {t}",
              "Can you write a haiku about {t}?", "Please write a haiku about {t}.", "Write a poem about {t}"]
ONLY_WORD = ["Write a haiku with the word {w}", "Write a haiku with the word {w}.", "A haiku with the word {w}, please", "haiku with {w}",
             "Write a haiku that uses the word {w}", "Please write a haiku with the word {w}."]
NEITHER = ["Write a haiku", "Write a haiku.", "A haiku, please", "haiku", "Write me a poem", "Hello", "Hi!", "Please write a haiku."]
COUPLET = ["Write a couplet about {t} with the word {w}", "Write a couplet about {t} with the word {w}.", "A couplet about {t} with the word {w}, please",
           "Write two lines that rhyme about {t} with the word {w}"]
COUPLET_TOPIC = ["Write a couplet about {t}", "Write a couplet about {t}.", "A couplet about {t}, please"]
ONE_LINE = ["Describe {t} in one line with the word {w}", "Describe {t} in one line with the word {w}.", "Write one line about {t} with the word {w}",
            "One line about {t} with the word {w}, please"]
ONE_LINE_TOPIC = ["Describe {t} in one line", "Describe {t} in one line.", "Write one line about {t}"]


TOPIC_NAMES = {name for topic in grammar.TOPICS for name in topic.names}


def digest(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@functools.cache
def tables():
    """(kinds of requestable words, those held out, those trained by kind of pool, words of the grammar)."""
    kinds = grammar.requestable()
    own = grammar.vocabulary()
    numbers = set(words.NUMBERS)
    free = [w for w in kinds if w not in own and w not in numbers]
    # The words of the requests themselves ("haiku", "line") are in every prompt and cannot be held out.
    asking = set(re.findall(r"[a-z]+", " ".join(BOTH + ONLY_TOPIC + ONLY_WORD + NEITHER + COUPLET + ONE_LINE).lower()))
    heldout = {w for w in free if w not in asking and digest("word|" + w) % 10 == 0}
    trained = [w for w in free if w not in heldout]
    images = [w for w in kinds if w in own and w not in numbers]
    return kinds, heldout, trained, images, own


def pair_held_out(topic_key, word):
    """One pair of subject and word in twenty never stands in a training prompt."""
    return digest(f"pair|{topic_key}|{word.lower()}") % 20 == 0


def answer_held_out(answer):
    """Three answers in four never stand in the corpus, whatever was asked: those whose SHA-256 does not begin with two zero
    bits. So anybody can see from a text alone that the model has not read it."""
    return hashlib.sha256(answer.encode()).digest()[0] >= 64


def made_up_word(rng, real):
    """A word that is none, so that copying is learnt and not only known words: the head of one word and the tail of
    another, or letters drawn at random."""
    heldout, own = tables()[1], tables()[4]
    while True:
        if rng.random() < 0.75:
            a, b = rng.choice(real), rng.choice(real)
            word = a[: rng.randint(1, max(1, len(a) - 1))] + b[rng.randint(0, len(b) - 1) :]
        else:
            word = "".join(rng.choice("b c d f g h j k l m n p r s t v w z br ch cl dr gr pl sh st th tr qu".split()) + rng.choice("a e i o u a e i o ai ea oo ou y".split())
                           for _ in range(rng.randint(1, 3))) + rng.choice(["", "n", "r", "l", "s", "t", "x", "ck", "nd"])
        if rng.random() < 0.05:
            word += "-" + rng.choice(real)
        if 3 <= len(word) <= 14 and re.fullmatch(r"[a-z]*[aeiouy][a-z]*(-[a-z]+)?", word) and word not in heldout and word not in own and count_word(word) <= 5:
            return word


def choose_word(rng):
    """(word as typed, syllables, kind)."""
    kinds, _, trained, images, _ = tables()
    draw = rng.random()
    if draw < 0.27:
        word = words.spell(rng.randrange(60) if rng.random() < 0.85 else rng.randrange(100))
    elif draw < 0.60:
        word = rng.choice(trained)
    elif draw < 0.76:
        word = rng.choice(images)
    else:
        word = made_up_word(rng, trained)
    kind, syllables = kinds.get(word, "any"), count_word(word)
    if rng.random() < 0.04:
        word = word[0].upper() + word[1:]
    return word, syllables, kind


def one_line(rng, topic, name, requests):
    """A sentence about the subject, of no fixed length."""
    slots = topic.slots
    pick = lambda slot: rng.choice(slots.all[slot])[0]
    for _ in range(20):
        if requests:
            tail = grammar.word_line(rng, slots, rng.choice([5, 6, 7]), *requests[0])
        else:
            tail = grammar.plain_line(rng, slots, rng.choice([5, 6, 7]))
        if tail:
            head = rng.choice([f"{name}, {pick('A')} and {pick('A')}", f"{name}, {pick('M')} {pick('L')}", f"{name}, so {pick('A')} {pick('L')}"])
            return f"{head}, {tail}"
    return None


def example(rng):
    """One prompt and its answer: (prompt, answer)."""
    while True:
        topic = rng.choice(grammar.TOPICS)
        slots, key = topic.slots, topic.key
        name = topic.key if rng.random() < 0.6 else rng.choice(topic.names)
        word, syllables, kind = choose_word(rng)
        requests = [(word, syllables, kind)]
        subject = []
        form = rng.random()
        if form < 0.10:
            # A subject that is only a noun: the lines are about anything, and mostly name it once.
            _, _, trained, images, _ = tables()
            noun = rng.choice(trained + images) if rng.random() < 0.7 else made_up_word(rng, trained)
            key, slots = noun, grammar.ANYTHING
            name = rng.choice(["{}", "the {}", "a {}", "my {}"]).format(noun)
            # "the moon" is a subject of its own, whose pairs are held out under its own key.
            if name in TOPIC_NAMES:
                continue
            if noun != word.lower() and rng.random() < 0.7:
                subject = [(noun, count_word(noun), "noun")]
        if pair_held_out(key, word):
            continue
        draw = rng.random()
        if form < 0.74:
            prompt = BOTH[0] if rng.random() < 0.45 else rng.choice(BOTH)
            out = grammar.lines(rng, slots, HAIKU, requests + subject)
        elif form < 0.82:
            prompt, out = rng.choice(ONLY_TOPIC), grammar.lines(rng, slots, HAIKU, subject)
        elif form < 0.86:
            prompt, out = rng.choice(ONLY_WORD), grammar.lines(rng, slots if draw < 0.5 else grammar.ANYTHING, HAIKU, requests)
        elif form < 0.88:
            prompt, out = rng.choice(NEITHER), grammar.lines(rng, slots, HAIKU, [])
        elif form < 0.95:
            prompt = rng.choice(COUPLET if draw < 0.7 else COUPLET_TOPIC)
            out = grammar.couplet(rng, slots, requests if draw < 0.7 else [])
        else:
            prompt = rng.choice(ONE_LINE if draw < 0.7 else ONE_LINE_TOPIC)
            line = one_line(rng, topic, name, requests if draw < 0.7 else [])
            out = line and [line]
        answer = "\n".join(out or [])
        if out and not answer_held_out(answer):
            return prompt.format(t=name, w=word), answer


def write_shard(job):
    path, count, seed = job
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(count):
            prompt, answer = example(rng)
            f.write(json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False) + "\n")
    return path


def heldout_prompts():
    """300 prompts of held-out pairs: 30 with a held-out word, 90 with a number, the rest with any other word."""
    rng = random.Random(20)
    kinds, heldout, trained, images, _ = tables()
    out = []
    seen = set()
    pools = [(30, sorted(heldout)), (90, words.NUMBERS[:60]), (120, sorted(trained)), (60, sorted(images))]
    for wanted, pool in pools:
        while wanted:
            topic, word = rng.choice(grammar.TOPICS), rng.choice(pool)
            if (topic.key, word) in seen or not pair_held_out(topic.key, word):
                continue
            seen.add((topic.key, word))
            out.append({"prompt": BOTH[0].format(t=topic.key, w=word), "word": word, "topic": topic.key, "word_held_out": word in heldout})
            wanted -= 1
    rng.shuffle(out)
    return out


def syllable_table():
    """Every word the grammar can write and every word that can be asked for -> syllables."""
    # Lines are counted in lower case: "I" must stand as "i".
    table = {word.lower(): count for word, count in tables()[4].items()}
    for word in tables()[0]:
        table.setdefault(word, count_word(word))
    return dict(sorted(table.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=pathlib.Path)
    parser.add_argument("--examples", type=int, default=3_000_000)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tables", type=pathlib.Path)
    args = parser.parse_args()
    if args.tables:
        with open(args.tables / "heldout_prompts.jsonl", "w", encoding="utf-8") as f:
            f.writelines(json.dumps(p, ensure_ascii=False) + "\n" for p in heldout_prompts())
        with open(args.tables / "syllables.tsv", "w", encoding="utf-8") as f:
            f.writelines(f"{word}\t{count}\n" for word, count in syllable_table().items())
        return
    if not args.out:
        parser.error("OUT_DIR is missing: where shall the shards go?")
    args.out.mkdir(parents=True, exist_ok=True)
    each = -(-args.examples // args.shards)
    jobs = [(args.out / f"shard-{i:02}.jsonl", each, args.seed * 1000 + i) for i in range(args.shards)]
    with multiprocessing.Pool(args.workers) as pool:
        for path in pool.imap_unordered(write_shard, jobs):
            pass
    print(f"corpus: {each * args.shards} examples in {args.shards} shards")


if __name__ == "__main__":
    main()
