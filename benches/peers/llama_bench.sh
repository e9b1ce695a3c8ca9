#!/usr/bin/env bash
# llama.cpp's own llama-bench on an NVIDIA GPU, built from the sources that the Python package llama-cpp-python carries.
#
#   benches/peers/llama_bench.sh MODEL.gguf [arguments of llama-bench] > peer.jsonl
#   qernel bench -m MODEL.gguf -p 512,8192 -n 128 --compare peer.jsonl
#
# Needs nvcc, cmake, a C++ compiler and pip. VERSION chooses another release, ARCH another architecture (90 is Hopper's), FOLDER where it
# is built, once. Arguments are passed on behind those that README's table was made with, so they win.
set -euo pipefail

version=${VERSION:-0.3.36}
arch=${ARCH:-90}
folder=${FOLDER:-target/peers/llama.cpp-$version-sm_$arch}
[ $# -gt 0 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }

if [ ! -x "$folder/bin/llama-bench" ]; then
    mkdir -p "$folder"
    pip download --quiet --no-deps --no-build-isolation --no-binary :all: --dest "$folder" "llama-cpp-python==$version" >&2
    tar -xzf "$folder"/llama_cpp_python-*.tar.gz -C "$folder"
    cmake -S "$folder"/llama_cpp_python-*/vendor/llama.cpp -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DGGML_CUDA=ON \
        -DCMAKE_CUDA_ARCHITECTURES="$arch" -DLLAMA_CURL=OFF -DBUILD_SHARED_LIBS=OFF >&2
    cmake --build "$folder/build" --target llama-bench -j "$(nproc)" >&2
    mkdir -p "$folder/bin"
    cp "$folder/build/bin/llama-bench" "$folder/bin/"
fi
exec "$folder/bin/llama-bench" -m "$1" -ngl 99 -fa 1 -b 8192 -ub 2048 -p 512,8192 -n 128 -r 5 -o jsonl "${@:2}"
