# The developer's verbs. Needs Python 3.11+, pip and make; everything else goes into .venv.
#
#   make demo      twelve questions about pictures, answered through Ray Serve
#   make serve     keep the service running on 127.0.0.1:8000
#   make test      the whole test suite
#   make check     lint, types, layers, fast tests: about two minutes
#   make bench     every benchmark, small
#   make gpu       what needs a GPU: its tests and benchmark, in eight minutes at most
#   make docs      docs/reference.md and the README's pictures, from code and results
#   make clean     remove .venv, caches and build output (logs and registry in .m3 stay)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help demo serve test check bench gpu docs clean

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
# pip's own quiet is minutes of silence, its talk hundreds of lines: what is large, and the unpacking.
TELL := sed -un -e 's/^ *\(Downloading\|Using cached\) \([^ ]*\) (\([0-9.]* MB\))$$/  \2, \3/p' \
    -e 's/^Installing collected packages:.*/  unpacking/p'
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

help:
	sed -n 's/^#   \(make .*\)/\1/p' Makefile

demo: $(STAMP)
	$(BIN)/python -m serve.demo

serve: $(STAMP)
	exec $(BIN)/m3-serve up --host $(HOST) --port $(PORT)

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m "not ray and not gpu and not slow"

bench: $(STAMP)
	for script in benchmarks/[a-z]*.py; do
	    echo "== $$script"
	    $(BIN)/python "$$script" --quick
	done

gpu: $(STAMP)
	$(BIN)/python -m benchmarks.engine --gpu-slot

docs: $(STAMP)
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_figures.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# .venv: made once, renewed when pyproject.toml or constraints.txt change.
# * Debian and Ubuntu may come without python3-venv (no ensurepip): then the machine's own pip puts
#   a pip into an empty environment.
# * Without an NVIDIA GPU the CPU build of torch saves gigabytes. Its index is asked with a short
#   timeout, since some machines reach PyPI only; those take torch from their default index.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	    echo "error: $(PYTHON) is missing or older than 3.11; install it or run: make PYTHON=/path/to/python3.11" >&2
	    exit 2
	}
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then
	    echo "creating $(VENV)"
	    $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 ||
	    { $(PYTHON) -m venv --clear --without-pip $(VENV) &&
	      $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } || {
	        echo "error: no virtual environment could be made; try: apt-get install python3-venv python3-pip" >&2
	        exit 2
	    }
	fi
	if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null &&
	   ! $(BIN)/python -m pip show torch 2>/dev/null | grep -q "^Version: $(subst torch==,,$(TORCH))"; then
	    echo "installing $(TORCH), CPU build, from $(TORCH_CPU_INDEX)"
	    $(BIN)/python -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/torch/", timeout=5)' \
	        $(TORCH_CPU_INDEX) 2>/dev/null &&
	    $(BIN)/python -m pip install --progress-bar off --no-deps --index-url $(TORCH_CPU_INDEX) \
	        "$(TORCH)" | $(TELL) ||
	    echo "the CPU index is out of reach; torch comes from the default index"
	fi
	echo "installing m3-router and its dependencies into $(VENV): the first time some minutes and 2 GB"
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[dev]' | $(TELL)
	echo "installed"
	touch $@
