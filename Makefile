# Two commands on a fresh machine do everything: `make train` and `make test`. Needs Python 3.11 or newer and make.

PYTHON ?= python3
# More arguments for pip, such as another index with builds of torch without CUDA: make train PIP_ARGS="--index-url URL"
PIP_ARGS ?=
# More arguments for fit: make train ARGS="--data.source my.txt"
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help train test test-all check format clean
.DEFAULT_GOAL := help

help:            ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

train: $(READY)  ## train a small GPT on the embedded corpus (ARGS="--data.source my.txt" for yours)
	@$(PY) -m lit_gpt fit --config configs/char.yaml $(ARGS)

test: $(READY)   ## run every test but the slow ones, in minutes
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

test-all: $(READY)  ## run every test, slow ones too
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m ""

check: $(READY)  ## lint, formatting and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(READY) ## sort imports and format
	@$(PY) -m ruff check --fix-only .
	@$(PY) -m ruff format .

clean:           ## remove the environment and caches; logs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(READY): setup.cfg constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lit-gpt needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "installing into $(VENV): once, some minutes"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $(READY)
