#!/usr/bin/env bash
# Replicas behind Ray Serve under load, while some of them are killed (fleet_test.py says what must hold): no part of `cargo test`.
#
#   deploy/ray/test.sh [SECONDS [STREAMS]]        60 and 200 where nothing is said
#
# Makes an environment of the versions in requirements.txt in QERNEL_RAY_ENV (the user's cache, where nothing is said), and builds the program
# unless QERNEL names one.
set -euo pipefail
cd "$(dirname "$0")"
environment=${QERNEL_RAY_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/qernel-ray}
if ! cmp --silent requirements.txt "$environment/requirements.txt"; then
    python3 -m venv --clear "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement requirements.txt
    cp requirements.txt "$environment"
fi
if [ -z "${QERNEL:-}" ]; then
    cargo build --release --locked --quiet
    QERNEL=$(realpath ../../target/release/qernel)
fi
# A copy of its own: the test counts its processes.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp "$QERNEL" "$copy/qernel"
QERNEL=$copy/qernel "$environment/bin/python" fleet_test.py "$@"
