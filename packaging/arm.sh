#!/usr/bin/env bash
# Compiles tests for 64-bit ARM and runs them here under qemu: the unit tests of the crates that a machine without a GPU needs, and of tests/it what
# compares the CPU's numbers with those of other implementations, what reads files, and what starts the program.
#
#   packaging/arm.sh [FILTER]...
#
# FILTERs choose others of tests/it, as for `cargo test`. Needs `rustup target add aarch64-unknown-linux-gnu`, and of Debian
# gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static. Tests start programs, which are for ARM too: a system that does not know how
# (binfmt_misc) is told in a user namespace, which takes Linux 6.7 and changes nothing outside of it.
set -euo pipefail
cd "$(dirname "$0")/.."
filters=("$@")
[ $# -gt 0 ] || filters=(forward:: formats:: sampler:: tokenizer:: templates:: model_file:: hub::)
target=aarch64-unknown-linux-gnu gcc=aarch64-linux-gnu-gcc qemu=qemu-aarch64-static
for tool in $gcc $qemu unshare; do
    command -v $tool >/dev/null || { echo "$tool is missing; the head of this file says what is needed" >&2; exit 1; }
done
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$gcc QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
tests=(cargo test --release --locked --quiet --target $target)
units=(--package qernel-core --package qernel-jinja --package qernel-load --package qernel-server --package qernel-hub)
"${tests[@]}" "${units[@]}" --no-run
"${tests[@]}" --package qernel --test it --no-run

program=target/$target/release/qernel start=()
if ! $program --version >/dev/null 2>&1; then
    folder=$(mktemp -d)
    trap 'rmdir "$folder"' EXIT
    # What a file for ARM begins with, which bits of that matter, and who runs it, opened now (F): Linux's admin-guide/binfmt-misc.rst.
    header='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    matter='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    # shellcheck disable=SC2016
    start=(unshare --user --map-root-user --mount bash -euc
        'mount -t binfmt_misc none "$0"; printf %s "$1" >"$0/register"; shift; exec "$@"'
        "$folder" ":qemu:M::$header:$matter:$(command -v $qemu):F")
    "${start[@]}" $program --version >/dev/null ||
        { echo "programs for ARM do not start here: take Linux 6.7 or newer, or Debian's binfmt-support" >&2; exit 1; }
fi
"${start[@]}" "${tests[@]}" "${units[@]}"
"${start[@]}" "${tests[@]}" --package qernel --test it -- "${filters[@]}"
