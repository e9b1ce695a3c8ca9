#!/usr/bin/env bash
# `sglang-router` in front of three servers (router_test.py says what must hold): no part of `cargo test`.
#
#   deploy/router/test.sh
#
# Makes an environment of the versions in requirements.txt in QERNEL_ROUTER_ENV (the user's cache, where nothing is said), and builds the program
# unless QERNEL names one.
set -euo pipefail
cd "$(dirname "$0")"
source ../../tests/environment.sh
environment=${QERNEL_ROUTER_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/qernel-router}
environment requirements.txt "$environment"
QERNEL=$(program ../..)
QERNEL=$QERNEL "$environment/bin/python" router_test.py
