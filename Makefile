# Everything runs in .venv, which the first command creates; nothing is installed elsewhere.
# PYTHON is the interpreter to create it with: make env PYTHON=python3.12

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOG := $(VENV)/install.log
STAMP := $(VENV)/.installed

SUPPORTED := (3, 11) <= sys.version_info[:2] <= (3, 13)
WRONG_PYTHON := The pinned packages need Python 3.11, 3.12 or 3.13; name one: make env PYTHON=python3.11

.PHONY: help env demo test test-all lint docs gpu-check clean

help:
	@echo "make demo      train and evaluate a small PRO-SCALE model on generated images"
	@echo "make test      run the tests"
	@echo "make test-all  run the tests, the slow ones too"
	@echo "make lint      check format, style and types"
	@echo "make docs      build the documentation in build/docs"
	@echo "make gpu-check try and time all that needs a GPU, in nine minutes; writes docs/gpu.md"
	@echo "make env       only set up $(VENV) (the targets above do it, too)"
	@echo "make clean     remove caches and build products, but neither $(VENV) nor output"

demo: env
	@$(BIN)/proscale demo

# Several processes with a thread each: threads that wait for each other on shared cores take far longer.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

test: env
	@$(PYTEST) -m "not slow"

test-all: env
	@$(PYTEST)

lint: env
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: env
	@$(BIN)/sphinx-build -q --keep-going --fail-on-warning docs build/docs
	@echo "build/docs/index.html"

gpu-check: env
	@$(BIN)/python -W ignore benchmarks/gpu_check.py --json build/gpu.json

clean:
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	@find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

env: $(STAMP)
	@:

# An install that was interrupted leaves no stamp, so the next call takes it up again. A package that pip
# was writing at that moment has a .dist-info without RECORD, which pip would take for installed. The
# build tools come first: they build the few source distributions (--no-build-isolation). The lock file is
# complete, so pip adds nothing (--no-deps); every file is compared with its hash.
LOCKED := --no-deps --no-build-isolation --require-hashes --requirement
BUILD_TOOLS := $(VENV)/build_tools.lock

$(STAMP): requirements.lock proscale_setup.py setup.py pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(not $(SUPPORTED))' \
	    || { echo "$(WRONG_PYTHON)" >&2; exit 1; }
	@$(PIP) --version > /dev/null 2>&1 || { echo "Creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@for info in $(VENV)/lib/python*/site-packages/*.dist-info; do \
	    test -e "$$info/RECORD" || rm -rf "$$info"; \
	done
	@echo "Installing requirements.lock: some minutes, 3 GB to download, 6 GB on disk"
	@awk '/^[^ ]/ {keep = /^(packaging|pip|setuptools|wheel)==/} keep' requirements.lock > $(BUILD_TOOLS)
	@$(PIP) install --quiet $(LOCKED) $(BUILD_TOOLS) 2> $(LOG) || { tail -n 20 $(LOG) >&2; exit 1; }
	@set -o pipefail; \
	$(PIP) install $(LOCKED) requirements.lock 2>&1 | tee $(LOG) \
	    | while read -r line; do case "$$line" in \
	        Downloading*" MB)") echo "    $${line#Downloading }" ;; \
	        Installing*) echo "    unpacking" ;; \
	      esac; done \
	    || { tail -n 20 $(LOG) >&2; exit 1; }
	@echo "Installing Detectron2"
	@$(BIN)/python proscale_setup.py
	@echo "Installing proscale"
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable . 2> $(LOG) \
	    || { tail -n 20 $(LOG) >&2; exit 1; }
	@touch $@
