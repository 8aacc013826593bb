# make run: set up and serve.  make demo: send a simulated livestream to it.  make test: lint, types, tests.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run demo test lint faults mutants bench clean

run: .venv/installed
	@test -e receiver.toml || $(BIN)/receiver init
	@exec $(BIN)/receiver serve

demo: .venv/installed
	@$(BIN)/receiver simulate

test: lint
	$(BIN)/coverage erase
	$(BIN)/pytest --cov --cov-report=term

lint: .venv/developed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The long version of tests/faults: about an hour, as root where it mounts file systems.
faults: .venv/developed
	FAULT_KILLS=1000 FAULT_POWER_CUTS=200 FAULT_BACKLOG=1000000 $(BIN)/pytest tests/faults

# Break each guarantee once, and see a test fail.
mutants: .venv/developed
	$(BIN)/python -m tests.faults.mutants

# One table of figures and ratios, in about a quarter of an hour; needs wrk.
bench: .venv/developed
	$(BIN)/python -m tests.bench

clean:
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Python 3.11 or later is needed: make PYTHON=python3.11 …' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/developed: pyproject.toml | .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --disable-pip-version-check --group dev
	@touch $@
