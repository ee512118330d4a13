#!/usr/bin/env bash
# The HTTP API with curl alone: both modes, a thinking budget, a stream, JSON by a schema.
#
#   examples/curl.sh
#
# TWOGEAR_URL is where the server is, TWOGEAR_API_KEY the key, if it needs one.
set -euo pipefail
url=${TWOGEAR_URL:-http://127.0.0.1:8000}

post() { # PATH BODY
    curl -sS --no-buffer --fail-with-body "$url$1" -H "Authorization: Bearer ${TWOGEAR_API_KEY:-none}" \
        -H 'Content-Type: application/json' -d "$2"
    echo
}

echo "# What is served: the model, and an alias for each mode"
curl -sS --fail-with-body "$url/v1/models" -H "Authorization: Bearer ${TWOGEAR_API_KEY:-none}"
echo

echo "# Standard mode answers at once"
post /v1/chat/completions '{
  "messages": [{"role": "user", "content": "What is 38 + 45?"}], "reasoning_mode": "standard"
}'

echo "# Reasoning mode thinks first, here with 40 tokens at most"
post /v1/chat/completions '{
  "messages": [{"role": "user", "content": "What is 303 + 948 - 105?"}],
  "reasoning_mode": "reasoning", "thinking_token_budget": 40
}'

echo "# The same as a stream of events"
post /v1/chat/completions '{
  "messages": [{"role": "user", "content": "What is 38 + 45?"}],
  "reasoning_mode": "reasoning", "stream": true, "stream_options": {"include_usage": true}
}'

echo "# JSON by a schema"
post /v1/chat/completions '{
  "messages": [{"role": "user", "content": "Extract the person as JSON: Paul lives in Lisbon and is 27."}],
  "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"], "additionalProperties": false
  }}}
}'
