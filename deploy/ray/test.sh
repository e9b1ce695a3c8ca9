#!/usr/bin/env bash
# Replicas behind Ray Serve under load, while some of them are killed (fleet_test.py says what must hold): no part of `cargo test`.
#
#   deploy/ray/test.sh [SECONDS [STREAMS]]        60 and 200 where nothing is said
#
# Makes an environment of the versions in requirements.txt in QERNEL_RAY_ENV (the user's cache, where nothing is said), and builds the program
# unless QERNEL names one.
set -euo pipefail
cd "$(dirname "$0")"
source ../../tests/environment.sh
environment=${QERNEL_RAY_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/qernel-ray}
environment requirements.txt "$environment"
QERNEL=$(program ../..)
# A copy of its own: the test counts its processes.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp "$QERNEL" "$copy/qernel"
QERNEL=$copy/qernel "$environment/bin/python" fleet_test.py "$@"
