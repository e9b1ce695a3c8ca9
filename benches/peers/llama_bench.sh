#!/usr/bin/env bash
# llama.cpp's own llama-bench on an NVIDIA GPU, built once from the sources that the Python package llama-cpp-python carries.
#
#   benches/peers/llama_bench.sh MODEL.gguf [arguments of llama-bench] > peer.jsonl
#   qernel bench -m MODEL.gguf -p 512,8192 -n 128 --compare peer.jsonl
#
# For a machine without a network: `llama_bench.sh --fetch llama.cpp.tar.gz` where there is one writes what a build needs (10 MB), and
#
#   LLAMA_CPP_SRC=llama.cpp.tar.gz benches/peers/llama_bench.sh MODEL.gguf > peer.jsonl
#
# builds from it; a folder of llama.cpp's sources does as well. Needs nvcc, cmake and a C++ compiler, ninja if there is one, and pip
# where it fetches. A build that was interrupted goes on.
#
# VERSION   of the package, 0.3.36 (ggml 0.25.3)          ARCH        of the GPU, 90 (Hopper)
# FOLDER    where it is built, below target/peers         CMAKE_ARGS  more of them, such as -DGGML_CUDA=OFF
#
# Arguments are passed on behind those that README's table was made with, so they win.
set -euo pipefail

version=${VERSION:-0.3.36}
arch=${ARCH:-90}
folder=${FOLDER:-target/peers/llama.cpp-$version-sm_$arch}
usage() { sed -n '2,18s/^# \{0,1\}//p' "$0" >&2; exit 2; }
fail() { echo "llama_bench.sh: $*" >&2; exit 1; }

# Sources in the folder $1: that of the package's archive, or what $LLAMA_CPP_SRC is.
sources() {
    local archive=${LLAMA_CPP_SRC:-} found
    if [ -z "$archive" ]; then
        python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$1" "llama-cpp-python==$version" >&2
        archive=$(echo "$1"/llama_cpp_python-*.tar.gz)
    fi
    [ -e "$archive" ] || fail "$archive: no such file or folder"
    if [ -d "$archive" ]; then
        found=$archive
    else
        mkdir -p "$1/src"
        tar -xzf "$archive" -C "$1/src"
        found=$1/src
    fi
    found=$(find "$found" -maxdepth 5 -path '*/include/llama.h' -print -quit)
    [ -n "$found" ] || fail "$archive: expected llama.cpp's sources, found no include/llama.h in it"
    (cd "$(dirname "$found")/.." && pwd)
}

if [ "${1:-}" = --fetch ]; then
    [ $# -eq 2 ] || usage
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    source=$(LLAMA_CPP_SRC='' sources "$scratch")
    tar -czf "$2" -C "$source" CMakeLists.txt LICENSE cmake common ggml include licenses scripts src tools vendor
    exit
fi
[ $# -gt 0 ] && [ "${1#-}" = "$1" ] || usage
[ -f "$1" ] || fail "$1: no such file"

if [ ! -x "$folder/bin/llama-bench" ]; then
    needed=(cmake c++)
    [[ "${CMAKE_ARGS:-}" == *GGML_CUDA=OFF* ]] || needed+=(nvcc)
    for tool in "${needed[@]}"; do
        command -v "$tool" > /dev/null || fail "$tool is needed to build llama-bench, and is not in PATH"
    done
    mkdir -p "$folder"
    if [ ! -f "$folder/build/CMakeCache.txt" ]; then
        source=$(sources "$folder")
        generator=()
        command -v ninja > /dev/null && generator=(-G Ninja)
        # shellcheck disable=SC2086
        cmake "${generator[@]}" -S "$source" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_CUDA=ON \
            -DCMAKE_CUDA_ARCHITECTURES="$arch" -DGGML_CUDA_NCCL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
            -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF ${CMAKE_ARGS:-} >&2 || { rm -f "$folder/build/CMakeCache.txt"; exit 1; }
    fi
    cmake --build "$folder/build" --target llama-bench -j "$(nproc)" >&2
    mkdir -p "$folder/bin"
    cp "$folder/build/bin/llama-bench" "$folder/bin/"
fi
exec "$folder/bin/llama-bench" -m "$1" -ngl 99 -fa 1 -b 8192 -ub 2048 -p 512,8192 -n 128 -r 5 -o jsonl "${@:2}"
