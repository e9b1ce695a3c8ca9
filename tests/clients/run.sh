#!/usr/bin/env bash
# The server with clients that people use, and with tools that try it out: no part of `cargo test`.
#
#   tests/clients/run.sh [NAME]...
#
# Each name is a test of its own; without any, all are run:
#
#   openai         OpenAI's client for Python
#   anthropic      Anthropic's client for Python
#   agent          mini-swe-agent, which mends a program with its tool; the model is a file that says a script
#   page           the chat page in headless Chromium (Debian's package `chromium`)
#   schemathesis   requests made of the OpenAPI document; EXAMPLES says how many of each kind
#   litellm langchain instructor pydantic_ai llm    what is built on it
#   lm_eval        EleutherAI's lm-eval: tasks scored by log-probabilities of prompts, and one of answers (tests/clients/lm_eval)
#   mixed          many clients of all interfaces at once, some of which leave; CLIENTS and DURATION (seconds) say how many and how long
#   aiperf         NVIDIA's AIPerf: streams of three interfaces under load, its figures beside the server's metrics (1.3 GB)
#   vllm_bench     `vllm bench serve`, the same; only where it is named, since vLLM imports torch with all of CUDA (7 GB)
#   npm_openai npm_ai                               OpenAI's client for JavaScript, and the package `ai`
#
# Makes environments in target/clients/ of the versions in requirements/ and npm/package-lock.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/environment.sh
work=target/clients
mkdir -p "$work"
names=("$@")
[ $# -gt 0 ] || names=(openai anthropic agent page schemathesis litellm langchain instructor pydantic_ai llm lm_eval aiperf mixed npm_openai npm_ai)

# The folder of a client's Python environment. Each has its own: they ask for different versions of OpenAI's.
environment_of() {
    environment "tests/clients/requirements/$1.txt" "$work/$1"
    echo "$work/$1"
}

# The folder of the JavaScript clients with their packages.
packages() {
    local folder=$work/npm
    mkdir -p "$folder"
    cp tests/clients/npm/*.mjs "$folder"
    if ! cmp --silent tests/clients/npm/package-lock.json "$folder/package-lock.json"; then
        cp tests/clients/npm/package.json tests/clients/npm/package-lock.json "$folder"
        (cd "$folder" && npm ci --silent --no-audit --no-fund >&2) || { rm "$folder/package-lock.json"; return 1; }
    fi
    echo "$folder"
}

cargo build --release --locked --quiet
# The haiku model with a template that has a place for tools; without tools it says what the embedded one says.
base_environment=$(environment_of openai)
"$base_environment/bin/gguf-new-metadata" --force --chat-template-file tests/data/tools.jinja models/haiku/haiku.gguf \
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
for name in "${names[@]}"; do
    echo "== $name"
    case $name in
    openai) "$base_environment/bin/python" tests/clients/openai_client.py "$base" $key ;;
    agent)
        folder=$(environment_of mini_swe_agent)
        "$base_environment/bin/python" tests/clients/agent.py target/release/qernel "$folder/bin/mini" "$work"
        ;;
    mixed) python3 tests/clients/mixed.py "$base" $key $server ;;
    page) "$base_environment/bin/python" tests/clients/page "$base" $key "$work" ;;
    schemathesis)
        "$base_environment/bin/schemathesis" --config-file tests/clients/schemathesis.toml run "$base/openapi.json" \
            --header "Authorization: Bearer $key" --workers 2 --suppress-health-check filter_too_much \
            --max-examples "${EXAMPLES:-60}"
        ;;
    anthropic | litellm | langchain | instructor | pydantic_ai)
        folder=$(environment_of "$name")
        "$folder/bin/python" "tests/clients/${name}_client.py" "$base" $key
        ;;
    llm)
        folder=$(environment_of llm)
        tests/clients/llm_client.sh "$base" $key "$folder"
        ;;
    lm_eval)
        folder=$(environment_of lm_eval)
        "$folder/bin/python" tests/clients/lm_eval_client.py "$base" $key target/release/qernel
        ;;
    aiperf | vllm_bench)
        folder=$(environment_of "$name")
        "$base_environment/bin/python" tests/clients/hub_tokenizer.py "$work/haiku.gguf" "$work/tokenizer"
        python3 tests/clients/load_client.py "${name%_bench}" "$folder" "$base" $key "$(realpath "$work/tokenizer")" "$work"
        ;;
    npm_openai | npm_ai)
        folder=$(packages)
        node "$folder/${name#npm_}.mjs" "$base" $key
        ;;
    *) echo "no test has the name $name; see the head of this file" >&2 && exit 2 ;;
    esac
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
