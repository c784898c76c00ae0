.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test lint types wheel clean
help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-6s %s\n", $$1, $$2}'

.venv/.runs: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "unbraid needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

.venv/.tests: .venv/.runs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/.runs ## the small model of the package, shown and trained further, less than 6 minutes on 2 cores; writes runs/demo/report.html
	$(BIN)/unbraid demo --output runs/demo

lint: .venv/.tests ## ruff: errors and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.tests ## basedpyright
	$(BIN)/basedpyright

test: lint types ## the whole check: lint, types, tests, doctests, README, every verb and recipe
	$(BIN)/pytest

wheel: .venv/.runs ## a wheel that holds the native kernel, for this torch and this kind of processor; needs a compiler
	$(BIN)/python -m unbraid.native.prebuild
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean: ## remove the virtual environment and caches
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist src/unbraid/native/prebuilt
