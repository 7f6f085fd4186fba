# Everything needs only Python 3.11 and make; `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch's CPU build serves every target; set TORCH= to let pip resolve pyproject.toml's range instead.
TORCH ?= torch==2.14.1 torchvision==0.29.1
NEXT := .venv-flwr-next
FLWR_NEXT ?= 1.41.0
BENCHMARKS ?= meta_gradient peak_memory hessian_free_error round evaluation aggregation wire growth engines deployment
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo smoke test test-flwr-next bench check format lint types clean

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

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install -q -e '.[bench]'
	touch $@

# pyproject.toml pins Flower, so the other dependencies are installed by name and NuFed itself is found in this folder.
$(NEXT)/.installed: pyproject.toml
	$(PYTHON) -m venv $(NEXT)
	$(NEXT)/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print("\n".join(d for d in p["dependencies"] + p["optional-dependencies"]["dev"] if not d.startswith("flwr")))' \
	  > $(NEXT)/requirements.txt
	$(NEXT)/bin/python -m pip install -q $(TORCH) 'flwr[simulation]==$(FLWR_NEXT)' -r $(NEXT)/requirements.txt
	touch $@

install: $(VENV)/.installed  ## create .venv and install NuFed into it

demo: $(VENV)/.installed  ## train on the embedded digits and show what personalization gains
	$(BIN)/nufed simulate --name demo

smoke: $(VENV)/.installed  ## compare five methods on the embedded digits, and write the report
	$(BIN)/nufed experiment smoke --jobs 2
	$(BIN)/nufed report results/smoke

test: $(VENV)/.dev  ## run the whole suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-flwr-next: $(NEXT)/.installed  ## run the tests of the direct runtime on a newer Flower, in a venv of its own
	$(NEXT)/bin/python -m pytest tests/deploy/network/test_fleet_*.py

bench: $(VENV)/.bench  ## measure time and memory beside the peers; tables and JSON in benchmarks/results
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

check: format lint types test  ## everything that must hold before a commit

format: $(VENV)/.dev  ## check the formatting
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev  ## check the style
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## check the types
	$(BIN)/mypy

clean:  ## remove what the targets made, but no run folders
	rm -rf $(VENV) $(NEXT) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
