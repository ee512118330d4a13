# Everything starts here: `make serve` and `make test` work from a fresh clone (Linux x86-64, CPython 3.11 to 3.13, gcc).
PYTHON ?= $(firstword $(foreach one,python3.11 python3.12 python3.13,$(if $(shell $(one) -c "" 2>/dev/null && echo yes),$(one))) python3.11)
ACCELERATOR ?= cpu
PORT ?= 8000
MODEL ?=
ARGS ?=
STAGE ?= all
RECIPE ?=
VERSION ?= 0.31.0
FUZZ_SECONDS ?= 400
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup serve ui screenshots docs ray soak test test-families test-open-webui test-ray test-routers test-vllm fuzz coverage check bench bench-peers train lock clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## the environment in .venv/ (ACCELERATOR=cpu or cuda, PYTHON=); a second run does nothing
	@$(PYTHON) -c '' 2>/dev/null || { echo "twogear: error: no CPython 3.11, 3.12 or 3.13 as '$(PYTHON)'; install one or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) requirements/install.py requirements/$(ACCELERATOR).txt requirements/dev.txt

serve: setup ## serve the embedded model on 127.0.0.1:8000 (PORT=, MODEL=, ARGS=)
	@exec $(BIN)/twogear serve $(MODEL) --port $(PORT) $(ARGS)

ui: ## build the page at / from ui/ into server/ui/ (needs Node 20 and npm; only who changes the page needs this)
	cd ui && npm ci --ignore-scripts && npm run check && npm run build

screenshots: setup ## the pictures of the page in README and docs, of a real server (needs Chromium)
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/python -m tests.page.screenshots

docs: setup ## the documentation as a site in site/, with search; a link that leads nowhere is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs site

test: setup ## the whole test suite (ARGS= for pytest)
	@tests/run.sh $(ARGS)

test-families: setup ## small random checkpoints of many families, each in a server of its own, minutes (ARGS= names some)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/python -m tests.families $(ARGS)

test-vllm: setup ## the engine's tests on another release of vLLM, in an environment of its own (VERSION=, ARGS= for pytest)
	@[ -f requirements/vllm-$(VERSION).txt ] || requirements/lock-vllm.sh $(VERSION)
	@$(PYTHON) requirements/install.py --venv .venv-vllm-$(VERSION) \
		requirements/cpu.txt requirements/dev.txt requirements/vllm-$(VERSION).txt
	PYTHONDONTWRITEBYTECODE= nice .venv-vllm-$(VERSION)/bin/python -m pytest tests/engine tests/model_impl $(ARGS)

test-open-webui: setup ## Open WebUI in a browser in front of this server, in an environment of its own: 1.2 GB (needs Chromium)
	@$(PYTHON) requirements/install.py --venv .venv-open-webui --no-project requirements/open-webui.txt
	$(BIN)/python -m pytest tests/page/test_open_webui.py $(ARGS)

ray: ## the environment of Ray in .venv-ray/ (docs/ray.md): 500 MB
	@$(PYTHON) requirements/install.py --venv .venv-ray --no-project requirements/ray.txt

test-ray: setup ray ## two servers on Ray with the embedded model, in a network of their own, minutes (needs root; ARGS= for pytest)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/python -m pytest tests/ray $(ARGS)

test-routers: setup ## vllm-router, smg and LiteLLM's proxy in front of two servers each, minutes (ARGS= for pytest)
	@$(PYTHON) requirements/install.py --venv .venv-routers --no-project requirements/routers.txt
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/python -m pytest tests/routers $(ARGS)

fuzz: setup ## coverage-guided fuzzing of bodies, templates, streams and grammars, an hour in all (FUZZ_SECONDS=, of each of nine)
	@for target in bodies messages responses plans templates streams stops schemas grammars; do \
		mkdir -p runs/fuzz/$$target && nice $(BIN)/python -m tests.fuzz $$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 \
			-artifact_prefix=runs/fuzz/$$target- runs/fuzz/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

coverage: setup ## the test suite with the coverage of lines and branches, engine processes counted too (ARGS= for pytest)
	$(BIN)/coverage erase
	@PYTHONDONTWRITEBYTECODE= $(BIN)/coverage run -m pytest --timeout 1200 $(ARGS); status=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report; exit $$status

soak: setup ## an hour of mixed load and faults on a real server; what has to hold is checked (ARGS="--minutes 10")
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/python -m tests.soak $(ARGS)

check: setup ## linters, types, locks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m pytest -q tests/setup/test_locks.py

bench: setup ## speed of this server and of its bare engine, in minutes (ARGS=)
	$(BIN)/twogear bench quick $(ARGS)

bench-peers: setup ## the same beside vLLM, llama.cpp and transformers, with two models: about an hour (ARGS=)
	$(BIN)/twogear bench embedded $(ARGS)
	$(BIN)/twogear bench large $(ARGS)

train: setup ## the embedded checkpoint from fresh weights into runs/, in pieces that resume (STAGE=, RECIPE=, ARGS=)
	$(BIN)/twogear train $(STAGE) $(if $(RECIPE),--recipe $(RECIPE)) $(ARGS)

lock: setup ## resolve pyproject.toml into requirements/*.txt (ARGS=--upgrade renews the pins)
	requirements/lock.sh $(ARGS)

clean: ## back to a fresh clone: the environment and all caches go, training runs stay
	rm -rf .venv .venv-open-webui .venv-ray .venv-routers .venv-vllm-* site ui/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
