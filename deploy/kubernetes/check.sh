#!/usr/bin/env bash
# Validates qernel.yaml against the schemas of Kubernetes' interface (PyPI's kubernetes-validate, which carries them). Unknown fields fail.
#
#   deploy/kubernetes/check.sh
#
# Makes an environment in QERNEL_KUBERNETES_ENV (the user's cache, where nothing is said).
set -euo pipefail
cd "$(dirname "$0")"
environment=${QERNEL_KUBERNETES_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/qernel-kubernetes}
if [ ! -x "$environment/bin/kubernetes-validate" ]; then
    python3 -m venv --clear "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check kubernetes-validate==1.37.0
fi
"$environment/bin/kubernetes-validate" --strict --kubernetes-version 1.37.0 qernel.yaml
