#!/usr/bin/env bash
# The whole suite: the tests that start engines beside those that start none. With arguments: pytest with these.
#
# Up to three tests that fail are run once more when nothing else runs, as CPython's regrtest does: the two halves share
# the cores, with each other and with whoever else is there. What passes then is named, and its failure stays in the log.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Each of the many processes that the tests start would else compile vLLM's six thousand modules anew.
export PYTHONDONTWRITEBYTECODE=
pytest=(.venv/bin/python -m pytest)
[ $# -eq 0 ] || exec "${pytest[@]}" "$@"

most_again=3
work=$(mktemp -d)

# half NAME MARKS: the tests with these marks, and which took longest; what failed is noted under NAME.
half() { "${pytest[@]}" --durations 40 -o cache_dir="$work/$1" -m "$2"; }

# again NAME STATUS: where a half ended with failed tests (1), these alone. Ends as they do, or with the half's status.
again() {
  [ "$2" -eq 1 ] && [ -f "$work/$1/v/cache/lastfailed" ] || return "$2"
  local failed
  failed=$(.venv/bin/python -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' \
    "$work/$1/v/cache/lastfailed") || return 1
  [ "$(wc -l <<<"$failed")" -le "$most_again" ] || return 1
  printf '\ntests/run.sh: once more, alone:\n%s\n' "$failed"
  "${pytest[@]}" -o cache_dir="$work/$1" --last-failed --last-failed-no-failures none
}

# One thread for each engine: two that share their cores with other tests wait for each other at every operator.
(
  export OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind
  half engine engine >"$work/log" 2>&1
) &
engines=$!
trap 'kill "$engines" 2>/dev/null; rm -rf "$work"' EXIT
half others "not engine"
others=$?
tail --pid="$engines" --lines=+1 --follow "$work/log"
wait "$engines"
engine=$?
again others "$others"
others=$?
OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind again engine "$engine"
exit $(($? || others))
