#!/bin/sh
# Corpus, tokenizer, training, export and a first evaluation in one go:
#     make.sh OUT_DIR
# Needs python3 with torch, numpy, tokenizers and gguf. For a smoke run set EXAMPLES, STEPS, BATCH, VOCAB, SEEDS, LIMIT small.
set -eu
out=${1:?usage: make.sh OUT_DIR}
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}
mkdir -p "$out"
"$python" "$here/corpus.py" "$out/corpus" --examples "${EXAMPLES:-3000000}" --seed "${SEED:-1}"
"$python" "$here/train_tokenizer.py" "$out/corpus" "$out/tokenizer.json" --vocab-size "${VOCAB:-2048}"
"$python" "$here/train.py" "$out/corpus" "$out/tokenizer.json" "$out" --steps "${STEPS:-12000}" --seconds "${SECONDS_BUDGET:-300}" --batch "${BATCH:-512}" --seed "${SEED:-1}" ${TRAIN_FLAGS:-}
"$python" "$here/export.py" "$out/model.pt" "$out/tokenizer.json" "$out/haiku.gguf"
ls -l "$out/haiku.gguf"
"$python" "$here/evaluate.py" "$out/model.pt" "$out/tokenizer.json" "$out/corpus" "$out/metrics.json" --seeds "${SEEDS:-4}" --limit "${LIMIT:-300}"
