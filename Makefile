# Everything needs only Python 3.11 and make; `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch's CPU build serves every target; set TORCH= to let pip resolve pyproject.toml's range instead.
TORCH ?= torch==2.14.1 torchvision==0.29.1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test check format lint types clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 16

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit("NuFed needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Set PYTHON=python3.11.") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install -q $(TORCH) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

install: $(VENV)/.installed  ## create .venv and install NuFed into it

demo: $(VENV)/.installed  ## train on the embedded digits and show what personalization gains
	$(BIN)/nufed simulate --name demo

test: $(VENV)/.dev  ## run the whole suite
	$(BIN)/python -m pytest

check: format lint types test  ## everything that must hold before a commit

format: $(VENV)/.dev  ## check the formatting
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev  ## check the style
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## check the types
	$(BIN)/mypy

clean:  ## remove what the targets made, but no run folders
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
