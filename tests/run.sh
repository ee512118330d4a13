#!/usr/bin/env bash
# The whole suite: the tests that start engines beside those that start none. With arguments: pytest with these.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Each of the many processes that the tests start would else compile vLLM's six thousand modules anew.
export PYTHONDONTWRITEBYTECODE=
pytest=(.venv/bin/python -m pytest)
[ $# -eq 0 ] || exec "${pytest[@]}" "$@"

log=$(mktemp)
# One thread for each engine: two that share their cores with other tests wait for each other at every operator.
OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind "${pytest[@]}" -m engine >"$log" 2>&1 &
engines=$!
trap 'kill "$engines" 2>/dev/null; rm -f "$log"' EXIT
"${pytest[@]}" -m "not engine"
others=$?
tail --pid="$engines" --lines=+1 --follow "$log"
wait "$engines"
exit $(($? || others))
