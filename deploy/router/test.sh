#!/usr/bin/env bash
# `sglang-router` in front of three servers (router_test.py says what must hold): no part of `cargo test`.
#
#   deploy/router/test.sh
#
# Makes an environment of the versions in requirements.txt in QERNEL_ROUTER_ENV (the user's cache, where nothing is said), and builds the program
# unless QERNEL names one.
set -euo pipefail
cd "$(dirname "$0")"
environment=${QERNEL_ROUTER_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/qernel-router}
if ! cmp --silent requirements.txt "$environment/requirements.txt"; then
    python3 -m venv --clear "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement requirements.txt
    cp requirements.txt "$environment"
fi
if [ -z "${QERNEL:-}" ]; then
    cargo build --release --locked --quiet
    QERNEL=$(realpath ../../target/release/qernel)
fi
QERNEL=$QERNEL "$environment/bin/python" router_test.py
