# vitmae: a newcomer needs `make train` and `make test`. Settings for the run: make train ARGS="trainer.max_epochs=5".

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help install dev train test test-slow test-oldest crash-test parity notebooks bench bench-gpu lint types contracts check clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(VENV)/.installed   ## a virtual environment in .venv with vitmae in it

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[fast]' -c constraints.txt
	@touch $@

dev: $(VENV)/.dev   ## the same, with the packages for tests, linters and types

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[dev,fast]' -c constraints.txt
	@touch $@

train: install   ## the main job: MAE on the embedded digits, under 2 minutes on a CPU
	$(BIN)/python -m vitmae.train $(ARGS)

test: dev        ## the test suite, under 5 minutes on 2 cores, no network
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(ARGS)

test-slow: dev   ## slower tests: whole runs killed and resumed, several processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal $(ARGS)

crash-test: dev  ## every command killed at random moments and started again; a few moments only: make crash-test ARGS="--kills 4"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.crash $(ARGS)

OLDEST := build/oldest

test-oldest: $(OLDEST)/.installed   ## a run and a few tests with the oldest versions that pyproject.toml allows
	rm -rf $(OLDEST)/runs
	WANDB_MODE=offline $(OLDEST)/bin/python -m vitmae.train runs=$(OLDEST)/runs trainer.max_epochs=1
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -W default \
		tests/test_oldest.py tests/test_foreign_internals.py tests/backbones

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q -e '.[fast]' pytest -c constraints-oldest.txt
	@touch $@

parity: dev      ## the largest difference from transformers and timm, stage by stage -> docs/parity.md
	$(BIN)/python -m benchmarks.parity

notebooks: dev   ## run the notebooks, and save them with their pictures in build/
	mkdir -p build
	$(BIN)/jupyter execute --output='../build/{notebook_name}' notebooks/*.ipynb

bench: dev       ## this project against its peers -> benchmarks/results/
	$(BIN)/python -m pip install -q -e '.[bench]' -c constraints.txt
	for part in step loader overhead startup scale features; do $(BIN)/python -m benchmarks.$$part || exit 1; done

bench-gpu: install   ## the speed of a GPU: training steps, the CIFAR-10 recipe, loading from JPEG files
	$(BIN)/python -m benchmarks.gpu

lint: dev        ## ruff: errors and format
	$(BIN)/ruff check vitmae tests benchmarks notebooks
	$(BIN)/ruff format --check vitmae tests benchmarks notebooks

types: dev       ## mypy
	$(BIN)/mypy

contracts: dev   ## import contracts: imports point down
	$(BIN)/lint-imports

check: lint types contracts test   ## all checks that a change must pass

clean:           ## remove what the other targets made, except runs
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
