#!/usr/bin/env python3
"""Writes tokenizer_golden.json and qwen2_vocabulary.txt for tests/it/tokenizer.rs.

The first has texts and their ids by the Python package `tokenizers`. The tokenizer is put together here from the vocabulary
alone, through the `gguf` package, with the settings of Qwen2's published tokenizer.json, so that it shares nothing with the
engine but the file.

The second is the part of that vocabulary which those texts can come to, with the same ids: the bytes, the special tokens,
and every token that stands somewhere in a text, whether encoding it takes that token or not. So whatever order merges are
taken in, and wherever a text is cut into words, right or wrong, the ids are those of the whole vocabulary.

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 tokenizers==0.23.3
    venv/bin/python tests/data/make_tokenizer_golden.py qwen2-vocab.gguf

The argument is any GGUF file with Qwen2's vocabulary.
"""

import json
import random
import sys
import unicodedata
from pathlib import Path

import tokenizers
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read(path):
    """The tokens that BPE makes with their ids, the special ones, the merges in their order, and the number of ids."""
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    # Type 1 are BPE's own tokens, 3 the special ones; the rest of this file is padding.
    vocab, specials = ({token: i for i, (token, kind) in enumerate(zip(tokens, types)) if kind == wanted} for wanted in (1, 3))
    return vocab, specials, merges, len(tokens)


def build(vocab, specials, merges):
    # The special ones stand in the vocabulary for their ids' sake; no merge makes them.
    tokenizer = Tokenizer(models.BPE(vocab=vocab | specials, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    for token, i in specials.items():
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        assert tokenizer.token_to_id(token) == i
    return tokenizer


def cut_down(vocab, merges, texts):
    """The bytes' tokens and what stands in one of `texts`, as it is or in NFC; and the merges that make those tokens."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    forms = {form for text in texts for form in (text, unicodedata.normalize("NFC", text))}
    # Neither a space nor a newline is a letter of the byte alphabet.
    haystack = "\n".join(word for form in forms for word, _ in level.pre_tokenize_str(form))
    vocab = {token: i for token, i in vocab.items() if len(token) == 1 or token in haystack}
    return vocab, [(left, right) for left, right in merges if left + right in vocab]


def write_vocabulary(path, vocab, specials, merges, size):
    """A line a token by its id: a byte's or a special token's text, or the two tokens that are merged to it."""
    # In Qwen2's vocabulary tokens are in the order of their merges, so that one list gives both.
    merged = [vocab[left + right] for left, right in merges]
    assert merged == sorted(merged) and len(merged) + 256 == len(vocab)
    lines = {i: token for token, i in (vocab | specials).items()}
    lines |= {vocab[left + right]: f"{left} {right}" for left, right in merges}
    head = f"# {size} ids; see make_tokenizer_golden.py"
    path.write_text("\n".join([head, *(f"{i} {lines[i]}" for i in sorted(lines))]) + "\n")
    print(f"{path.name}: {len(lines)} tokens of {size}, {path.stat().st_size} bytes")


def texts(rng):
    yield from [
        "", " ", "  ", "\n", "\r\n", "\t", "a", " a", "a ", "\0", "a\0b", "\x01\x02\x1f\x7f\x80\x9f", "\ufeffbom", "\ufffd",
        "Hello, world!", "Hello,  world !\n\n\nBye.\n", "I'll we'Ve it'S THEY'RE don'T o'clock 'tis l'été 'ſ 'K 'd",
        "1 12 123 1234567890 3.14159 -1e-9 0x1F 1,000,000 ½ ² ٣٤٥ ७८९ ⅷ Ⅻ 一二三 ①②",
        "a" * 300, " " * 300 + "x", "\n" * 100, "\r" * 7 + "\n", " \n \n  \n", "\t\t\tif x:\n\t\t\t\treturn\t1", "x   \r\n   y",
        "\u00a0\u2003\u2009\u200b\u202f\u3000x\u2028y\u2029z\x0b\x0c\x85w", "a\u00a0 b \u00a0c", "...!!!???\n\n", "-----\n=====\r\n",
        "def fib(n: int) -> int:\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
        "fn main() {\n    println!(\"{:?}\", vec![1u8; 4]);\n}\n", "#include <stdio.h>\nint main(void)\n{\n\treturn 0;\n}\n",
        "SELECT * FROM t WHERE a='it''s' AND b<>\"x\";-- comment", "<html><body class=\"a b\">&amp;</body></html>",
        "{\"key\": [1, 2.5e10, null, true], \"é\": \"\\u00e9\"}", "https://example.org/a/b?c=d&e=%20#frag user@example.org",
        "C:\\Users\\x\\file.txt && ls -la | grep '^d' > /dev/null 2>&1", "\\frac{\\partial f}{\\partial x} = \\alpha^{2} \\in \\mathbb{R}",
        "你好，世界！今天天气怎么样？", "吾輩は猫である。名前はまだ無い。", "안녕하세요 세계 여러분", "한국어", unicodedata.normalize("NFD", "한국어 텍스트"),
        "مرحبا بالعالم، كيف حالك؟", "السَّلَامُ عَلَيْكُمْ", "שלום עולם", "שָׁלוֹם", "Привет, мир! Ёлки-палки", "Γειά σου Κόσμε", "Ἀρχιμήδης",
        "नमस्ते दुनिया क्षत्रिय", "হ্যালো বিশ্ব", "வணக்கம் உலகம்", "สวัสดีชาวโลก", "ສະບາຍດີ", "မင်္ဂလာပါ", "ជំរាបសួរ", "გამარჯობა", "Բարեւ աշխարհ",
        "ሰላም ዓለም", "ᚠᛇᚻ᛫ᛒᛦᚦ", "𐌼𐌰𐌲 𐌲𐌻𐌴𐍃", "𒀀𒀁", "Việt Nam: Tiếng Việt có dấu", "Zażółć gęślą jaźń", "Çalışkan öğrenci İIıi", "Straße ﬁne ǅ",
        unicodedata.normalize("NFD", "Café naïve résumé Ünïcödé Việt"), "e\u0301\u0323 \u0323\u0301 a\u0308\u0304", "\u0301leading", "Å Å Å Ω Ω",
        "😀 😃😄 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ❤️ ☺︎ 🧑🏿‍🚀", "👨\u200d💻" * 5, "\u200d\u200c\ufe0f", "\U0010ffff\ue000\U000f0000", "�\ufffe",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<|endoftext|>", "a<|endoftext|>b", " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_end", "<|im_start|", "<<|im_end|>>", "<|IM_END|>",
        "e<|im_end|>\u0301", "[PAD151646]", "<tool_call>\n{}\n</tool_call>", "<|fim_prefix|>a<|fim_suffix|>",
    ]
    words = "the of and Ġ 's I'm über naïve 東京 москва العربية हिन्दी ไทย 한글 😀 🏳️‍🌈 e\u0301 ﬀ ſ K 0 42 2024-01-31 3.14 _x_ __init__ foo_bar fooBar HTTPServer <|im_end|> <|endoftext|>".split(" ")
    gaps = ["", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\u3000", "\u00a0", ", ", ". ", "-", "/", "'", "\""]
    for _ in range(120):
        yield "".join(rng.choice(words) + rng.choice(gaps) for _ in range(rng.randint(1, 30)))
    # Ranges of Unicode, assigned or not; surrogates are no characters.
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x250, 0x52F), (0x530, 0x8FF), (0x900, 0x109F), (0x10A0, 0x1FFF), (0x2000, 0x2BFF),
              (0x2C00, 0x33FF), (0x3400, 0x9FFF), (0xA000, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x10FFFF)]
    for low, high in ranges:
        for _ in range(6):
            yield "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 40)))
    for _ in range(40):
        yield "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 40)))
    for _ in range(60):
        yield "".join(rng.choice(" \n\r\ta1.'<|é中\u0301") for _ in range(rng.randint(1, 60)))


def golden(tokenizer, text):
    tokenizer.encode_special_tokens = False
    case = {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
    case["decoded"] = tokenizer.decode(case["ids"], skip_special_tokens=False)
    tokenizer.encode_special_tokens = True
    case["plain_ids"] = tokenizer.encode(text, add_special_tokens=False).ids
    if case["plain_ids"] == case["ids"]:
        del case["plain_ids"]
    if case["decoded"] == text:
        del case["decoded"]
    return case


def main():
    vocab, specials, merges, size = read(sys.argv[1])
    all_texts = list(dict.fromkeys(texts(random.Random(20240607))))
    tokenizer = build(vocab, specials, merges)
    cases = [golden(tokenizer, text) for text in all_texts]
    lines = ",\n".join(json.dumps(case) for case in cases)
    out = Path(__file__).with_name("tokenizer_golden.json")
    out.write_text(f'{{"tokenizers": "{tokenizers.__version__}", "cases": [\n{lines}\n]}}\n')
    print(f"{out.name}: {len(cases)} cases, {sum(len(case['ids']) for case in cases)} ids")

    vocab, merges = cut_down(vocab, merges, all_texts)
    tokenizer = build(vocab, specials, merges)
    assert cases == [golden(tokenizer, text) for text in all_texts]
    write_vocabulary(Path(__file__).with_name("qwen2_vocabulary.txt"), vocab, specials, merges, size)


main()
