# make run: set up and serve.  make demo: send a simulated livestream to it.
# make quick: lint and the tests that need no service, in seconds.  make test: lint and all tests, in minutes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
PARALLEL = --numprocesses=5 --dist=loadfile --no-loadscope-reorder
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check
# Where it is set, each of the thousand processes of a test would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run demo quick test coverage lint faults fuzz mutants bench picture lock clean

run: .venv/installed
	@test -e receiver.toml || $(BIN)/receiver init
	@exec $(BIN)/receiver serve

demo: .venv/installed
	@$(BIN)/receiver simulate

# What starts no process (tests/helpers/quick.py), on a file system in memory where there is one.
quick: lint
	FAULT_DAMAGE=1 TMPDIR=$(firstword $(wildcard /dev/shm) /tmp) \
	  $(BIN)/pytest --quick --quiet --durations=5 --override-ini=tmp_path_retention_policy=failed --numprocesses=2

# OPTIONS are further ones of pytest.
test: lint
	$(BIN)/pytest $(PARALLEL) $(OPTIONS)

# The lines that no test reaches, in half as long again as `make test`.
coverage: .venv/developed
	$(BIN)/coverage erase
	$(BIN)/pytest $(PARALLEL) --cov --cov-report=term

lint: .venv/developed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml receiver migrations

# The long version of tests/faults: over an hour, as root where it mounts file systems. It also needs Debian's packages
# patroni, etcd-server and postgresql-15.
faults: .venv/developed
	FAULT_KILLS=1000 FAULT_STOPPED=60 FAULT_DAMAGE=30 FAULT_POWER_CUTS=200 FAULT_BACKLOG=1000000 FAULT_FAILOVERS=5 \
	  FAULT_ATTEMPTS=2 FAULT_POSTGRESQL=/usr/lib/postgresql/15/bin FAULT_SIEGE=20 FAULT_IMAGES=1 $(BIN)/pytest \
	  tests/faults tests/journal/test_damage.py tests/deploy/test_proxy_sieges.py tests/deploy/test_container.py

# What comes from outside, generated and broken, for FUZZ_SECONDS (60) or FUZZ_CASES; what is found goes to
# tests/fuzz/corpus, which each `make test` runs again.
fuzz: .venv/developed
	$(BIN)/python -m tests.fuzz

# Break each guarantee once, and see a test fail.
mutants: .venv/developed
	$(BIN)/python -m tests.faults.mutants

# One table of figures and ratios, in about a quarter of an hour; needs wrk.
bench: .venv/developed
	$(BIN)/python -m tests.bench

# Take the README's picture of the status page; needs Debian's chromium, and fonts for Chinese.
picture: .venv/developed
	$(BIN)/python -m tests.helpers.picture

# Pin, with hashes, what pyproject.toml asks for: what is pinned already stays, unless UPGRADE=--upgrade. It needs uv
# alone: to make .venv/developed fails while pyproject.toml asks for more than the lock files have.
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --custom-compile-command='make lock' $(UPGRADE)
lock: | $(BIN)/uv
	$(LOCK) --group build --output-file deploy/build-requirements.txt
	$(LOCK) pyproject.toml --output-file deploy/requirements.txt
	$(LOCK) --group platform --constraint deploy/requirements.txt --output-file deploy/requirements-platform.txt
	$(LOCK) --group dev --constraint deploy/requirements.txt --constraint deploy/build-requirements.txt \
	  --constraint deploy/requirements-platform.txt --output-file .ci/requirements.txt

$(BIN)/uv:
	$(MAKE) .venv/developed

clean:
	rm -rf .venv

# Not .venv/bin/python: that is there before the environment is whole, and stays where making it is interrupted.
.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Python 3.11 or later is needed: make PYTHON=python3.11 …' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { echo 'Python has no venv: on Debian, apt install python3-venv; then the same again' >&2; exit 1; }
	@touch $@

# The lock files are whole, so nothing is resolved: pip would look up what is asked for with an extra, find a version
# newer than the locked one, and refuse it for want of a hash. The last step takes nothing from outside: it fails where
# the lock files lack something that pyproject.toml asks for.
.venv/installed: .venv/created pyproject.toml deploy/requirements.txt deploy/build-requirements.txt
	$(PIP_INSTALL) --require-hashes --no-deps --requirement deploy/requirements.txt --requirement deploy/build-requirements.txt
	$(PIP_INSTALL) --no-index --no-build-isolation --editable .
	@touch $@

.venv/developed: .ci/requirements.txt .venv/installed
	$(PIP_INSTALL) --require-hashes --no-deps --requirement .ci/requirements.txt
	@$(BIN)/pip check --quiet --disable-pip-version-check
	@touch $@
