# Everything needs only Python 3.11 and make; `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What pip is told to install for PyTorch. On Linux its default index has the CUDA build: a download of about 3 GB, 6 GB
# installed. The CPU build, 200 MB, is in an index of its own:
#   make demo TORCH="torch torchvision --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.14.1 torchvision==0.29.1
# What `make test` runs, e.g. ARGS="tests/strategy -x".
ARGS ?=
NEXT := .venv-flwr-next
# The suite runs on the oldest Flower that is allowed, the last one whose SuperNode speaks gRPC.
FLWR_OLDEST ?= 1.39.0
FLWR_NEXT ?= 1.42.0
BENCHMARKS ?= meta_gradient peak_memory hessian_free_error round evaluation aggregation secure_parts secure_aggregation wire growth population engines ray_cluster accelerator deployment swarm
FUZZ_MINUTES ?= 10
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo smoke test fuzz stress kills test-flwr-next bench check format lint types docs release clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 16

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit("NuFed needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Set PYTHON=python3.11.") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	touch $@

# PyTorch comes in a step of its own, so that an index named in TORCH is asked for nothing else.
$(VENV)/.torch: $(VENV)/.made
	@echo 'Installing into $(VENV): first $(TORCH)'
	@echo '(on Linux up to 3 GB to download, 6 GB on disk; for the small CPU build see TORCH in the Makefile), then'
	@echo 'NuFed and what else it needs, 0.5 GB.'
	$(BIN)/python -m pip install $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[dev,docs]' 'flwr[simulation]==$(FLWR_OLDEST)'
	touch $@

$(VENV)/.release: $(VENV)/.dev
	$(BIN)/python -m pip install -q -e '.[release]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install -q -e '.[bench]'
	touch $@

# The newest Flower that pyproject.toml allows; everything else is installed by name, NuFed itself is found in this folder.
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
	@echo
	@echo 'The command is $(BIN)/nufed; `source $(BIN)/activate` makes it `nufed` in this shell.'

smoke: $(VENV)/.installed  ## compare five methods on the embedded digits, and write the report
	$(BIN)/nufed experiment smoke --jobs 2
	$(BIN)/nufed report results/smoke

# Where Python is told to leave no byte code (PYTHONDONTWRITEBYTECODE), each of the suite's processes would compile all of
# NuFed, for half a second.
COMPILED := client common deploy nufed server strategy tests

test: $(VENV)/.dev  ## run the whole suite
	@$(BIN)/python -m compileall -q $(COMPILED)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

docs: $(VENV)/.dev  ## build the documentation into site/, strictly: dead links and undocumented names fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release: $(VENV)/.release  ## build wheel and source distribution, check them, and try the wheel in an empty environment
	TORCH="$(TORCH)" bash .ci/release $(BIN)

fuzz: $(VENV)/.dev  ## read made-up files, messages and options for FUZZ_MINUTES (10) minutes
	$(BIN)/python -m tests.fuzz $(FUZZ_MINUTES)

test-flwr-next: $(NEXT)/.installed  ## run the tests of the direct runtime on a newer Flower, in a venv of its own
	@$(NEXT)/bin/python -m compileall -q $(COMPILED)
	$(NEXT)/bin/python -m pytest tests/deploy/network/test_fleet_*.py

stress: $(VENV)/.dev  ## repeat the races of the direct runtime for minutes
	NUFED_STRESS=20 $(BIN)/python -m pytest tests/deploy/network/test_fleet_stress.py

kills: $(VENV)/.dev  ## kill the server of a private run twenty times, and compare its ledger with its model
	NUFED_KILLS=20 $(BIN)/python -m pytest tests/system/test_private_server.py

bench: $(VENV)/.bench  ## measure time and memory beside the peers; tables and JSON in benchmarks/results
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

check: format lint types docs test  ## everything that must hold before a commit

format: $(VENV)/.dev  ## check the formatting
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev  ## check the style
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## check the types
	$(BIN)/mypy

clean:  ## remove what the targets made, but no run folders
	rm -rf $(VENV) $(NEXT) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
