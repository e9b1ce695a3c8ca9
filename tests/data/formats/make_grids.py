#!/usr/bin/env python3
"""The code books of the IQ1, IQ2 and IQ3 formats, from the `gguf` package: writes gpu-kernels/src/blocks/grids.rs.

    pip install gguf==0.19.0 numpy
    python3 make_grids.py && cargo fmt -p gpu-kernels

The books are part of the formats (`iq2xxs_grid` and its like in ggml/src/ggml-common.h). A word here has one entry: the places of its
values among the few that the book uses, two bits each of eight values or three bits each of four, the first lowest.
"""
import pathlib

import gguf
import numpy as np

BOOKS = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"]
HEAD = """//! The code books of the IQ1, IQ2 and IQ3 formats: written by tests/data/formats/make_grids.py. The host's half of those formats includes
//! this file too.
//!
//! A word is an entry: two bits of each of eight values, or three bits of each of four, the first lowest. What they stand for: IQ1 -1, 0, 1;
//! IQ2 8, 25, 43; IQ3_XXS 4, 12, 20, 28, 36, 44, 52, 62; IQ3_S the odd numbers from 1.
"""


def main():
    text = HEAD
    for name in BOOKS:
        book = getattr(gguf.quants, name)
        book.init_grid()
        entries = book.grid.reshape(book.grid_shape)
        places = np.searchsorted(np.array(book.grid_map, np.float32), entries)
        bits = 3 if len(book.grid_map) > 4 else 2
        words = (places << bits * np.arange(entries.shape[1])).sum(axis=1)
        text += f"\npub static {name}: [u16; {len(words)}] = [{', '.join(f'0x{word:04x}' for word in words)}];\n"
    root = pathlib.Path(__file__).resolve().parents[3]
    (root / "gpu-kernels/src/blocks/grids.rs").write_text(text)


if __name__ == "__main__":
    main()
