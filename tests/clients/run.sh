#!/usr/bin/env bash
# Tests of the server that need Python: OpenAI's client, schemathesis, the chat page in headless Chromium.
#
#   tests/clients/run.sh [openai|page|schemathesis]...
#
# Makes a virtual environment in target/clients/. The page needs Debian's package `chromium`.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=target/clients
mkdir -p "$work"
if ! cmp --silent tests/clients/requirements.txt "$work/requirements.txt"; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --requirement tests/clients/requirements.txt
    cp tests/clients/requirements.txt "$work"
fi
cargo build --release --locked --quiet
# The haiku model with a template that has a place for tools; without tools it says what the embedded one says.
"$work/venv/bin/gguf-new-metadata" --force --chat-template-file tests/data/tools.jinja models/haiku/haiku.gguf \
    "$work/haiku.gguf" 2> "$work/haiku.log" > /dev/null || { cat "$work/haiku.log" >&2; exit 1; }
key=sesame
target/release/qernel serve --model "$work/haiku.gguf" --device cpu --port 0 --api-key $key --max-n 8 2> "$work/server.log" &
server=$!
trap 'kill $server 2> /dev/null || true' EXIT
for _ in $(seq 100); do
    base=$(sed -n 's/.*listening on \(http[^ ]*\).*/\1/p' "$work/server.log")
    if [ -n "$base" ] && curl --silent --fail "$base/health" > /dev/null; then break; fi
    sleep 0.1
done
for test in "${@:-openai page schemathesis}"; do
    for name in $test; do
        case $name in
        openai) "$work/venv/bin/python" tests/clients/openai_client.py "$base" $key ;;
        page) "$work/venv/bin/python" tests/clients/page.py "$base" $key "$work" ;;
        schemathesis)
            "$work/venv/bin/schemathesis" --config-file tests/clients/schemathesis.toml run "$base/openapi.json" \
                --header "Authorization: Bearer $key" --workers 2 --suppress-health-check filter_too_much \
                --max-examples "${EXAMPLES:-60}"
            ;;
        *) echo "expected openai, page or schemathesis, found $name" >&2 && exit 2 ;;
        esac
    done
done
# What the clients left behind: nothing.
metrics=$(curl --silent --header "Authorization: Bearer $key" "$base/metrics")
for gauge in requests_waiting requests_running kv_pages_used; do
    grep --quiet "^qernel_$gauge 0\$" <<< "$metrics" || { echo "qernel_$gauge is not 0" >&2; exit 1; }
done
# 503 is what /health said while the model was being loaded.
if grep 'http_responses_total{status="5' <<< "$metrics" | grep --invert-match '"503"'; then
    echo "the server answered with the above" >&2
    exit 1
fi
kill -TERM $server
wait $server
echo "all passed"
