# One command a job. `make demo` and `make test` work in a fresh clone: they make .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo serve test check fix format lint types layers protos bench clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first: whatever depends on it must find the pinned build in place
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

install: $(STAMP)  ## make .venv with every pinned dependency

demo: $(STAMP)  ## 200 trained models through a small budget, checked answer by answer (about 3 minutes)
	$(BIN)/hotset demo

serve: $(STAMP)  ## serve the demo's store on 127.0.0.1 (run `make demo` once before)
	$(BIN)/hotset serve --store .demo/store

test: $(STAMP)  ## all tests, on as many cores as there are, four at most
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

check: $(STAMP) format lint types layers test  ## what CI runs

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

layers: $(STAMP)  ## import contracts
	$(BIN)/lint-imports

fix: $(STAMP)  ## format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(STAMP)  ## generate the wire code anew (leaves no diff when nothing changed)
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $(wildcard protos/*.proto)

bench: $(STAMP)  ## cache-hit benchmarks; JSON under bench/results/
	$(BIN)/python -m bench.micro
	$(BIN)/python -m bench.floor

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .demo build dist *.egg-info
