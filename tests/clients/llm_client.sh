#!/usr/bin/env bash
# The command `llm`, against a running server with the haiku model.
#
# Called by run.sh with the server's address, its key, and the folder of the environment; see docs/server.md.
set -euo pipefail
base=$1 key=$2 bin=$3/bin
LLM_USER_PATH=$(mktemp -d)
export LLM_USER_PATH
trap 'rm -r "$LLM_USER_PATH"' EXIT
cat > "$LLM_USER_PATH/extra-openai-models.yaml" <<YAML
- model_id: haiku
  model_name: haiku
  api_base: "$base/v1"
  api_key_name: qernel
  supports_tools: true
  supports_schema: true
YAML
"$bin/llm" keys set qernel --value "$key"
prompt="Write a haiku about the sea with the word forty-two"
for more in "" "--no-stream"; do
    # shellcheck disable=SC2086
    "$bin/llm" -m haiku -o seed 1 -o temperature 0.7 $more "$prompt" | grep forty-two > /dev/null
done
"$bin/llm" -m haiku -o max_tokens 5 -c "Another" > /dev/null
schema='{"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"], "additionalProperties": false}'
"$bin/llm" -m haiku --schema "$schema" "Go" | grep '"days"' > /dev/null
echo "ok llm"
