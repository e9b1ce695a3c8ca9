"""What the tasks beside this file compute."""

import re

# What an answer comes behind.
PROMPT = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
CHOICES = 4


def with_choices(documents):
    """Adds to each request the words of the next ones, of which only its own was asked for."""
    words = documents["word"]

    def choices(document, place):
        return {
            "context": PROMPT.format(prompt=document["prompt"]),
            "choices": [f"the {words[(place + i) % len(words)]}" for i in range(CHOICES)],
        }

    return documents.select(range(48)).map(choices, with_indices=True)


def few(documents):
    return documents.select(range(48))


def keeps_word(document, results):
    """Whether the word that was asked for is in the answer."""
    return {"acc": float(re.search(rf"(?<![\w-]){re.escape(document['word'])}(?![\w-])", results[0]) is not None)}
