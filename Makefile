# Two commands on a fresh machine do everything: `make train` and `make test`. Needs Python 3.11 or newer and make.

PYTHON ?= python3
# More arguments for pip, such as a mirror of the whole package index: make train PIP_ARGS="--index-url URL"
PIP_ARGS ?=
# Another torch than the pinned one, in the words that torch's website puts after `pip install`. It is installed first and
# stays until `make clean`: make train TORCH="torch --index-url URL"
TORCH ?=
# More arguments for fit: make train ARGS="--data.source my.txt"
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
READY := $(VENV)/.ready
# Constraints without torch's line; there only where TORCH was given.
OTHERS := $(VENV)/constraints.txt

.PHONY: help train test test-all check format clean always
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

$(READY): setup.cfg constraints.txt pyproject.toml $(if $(TORCH),$(if $(wildcard $(OTHERS)),,always))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lit-gpt needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "installing into $(VENV): once, some minutes"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(if $(TORCH),test -e $(OTHERS) || { rm -f $(READY); $(PIP) -q uninstall --yes torch; $(PIP) install $(TORCH); })
	@if $(if $(TORCH),true,test -e $(OTHERS)); then grep -v '^torch==' constraints.txt > $(OTHERS); fi
	@$(PIP) install $(PIP_ARGS) -c $$(ls $(OTHERS) 2>/dev/null || echo constraints.txt) -e ".[dev]"
	@touch $(READY)
