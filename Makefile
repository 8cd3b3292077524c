# Each target prepares .venv by itself, and needs only Python and pip.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo check test coverage soak lint bench lock

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: .venv/.installed ## Prepare .venv: the locked packages and the wattline command

demo: .venv/.installed ## Start a database, the service and a simulated fleet, until Ctrl-C
	@$(BIN)/wattline demo

# Two tests run at a time, because most tests spend half of their time waiting for other processes.
test: .venv/.installed ## Run the tests, on every engine that this machine has
	@$(BIN)/pytest -n 2 --dist worksteal

check: lint ## Check style, format and types, and run the unit tests: within a minute
	@$(BIN)/pytest tests/unit -n 2 --dist loadfile

# Coverage includes the processes that tests start, except those that a test kills.
coverage: .venv/.installed ## Run the tests and show how much of app/ they run: in total, and the files with the least
	@$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=
	@$(BIN)/coverage report | sed -n '1,22p;$$p'

# Soak tests and benchmarks load millions of readings: they may take longer than the limit in pyproject.toml.
soak: .venv/.installed ## Run the long tests: kill rounds, large imports
	$(BIN)/pytest -m soak --timeout 3600

bench: .venv/.installed ## Run the benchmarks
	$(BIN)/pytest tests/benchmarks --benchmark-only --timeout 3600

lint: .venv/.installed ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# --universal makes one lock for every Python, system and processor that pyproject.toml allows.
UV_COMPILE = .venv/lock/bin/uv pip compile pyproject.toml --group build --universal --python-version 3.11 \
	--generate-hashes --no-header --annotation-style line --quiet

lock: ## Resolve requirements/*.txt again (make lock UPGRADE=--upgrade takes newer versions)
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/pip install --quiet uv==0.13.8
	$(UV_COMPILE) $(UPGRADE) --output-file requirements/runtime.txt
	$(UV_COMPILE) $(UPGRADE) --group dev --constraint requirements/runtime.txt --output-file requirements/dev.txt

# The stamp is written last, so an interrupted installation is repeated; a .venv without pip is created again.
.venv/.installed: pyproject.toml requirements/runtime.txt requirements/dev.txt
	@command -v $(PYTHON) >/dev/null || { echo "Wattline needs Python 3.11 or newer; there is no $(PYTHON) here. To use another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Wattline needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). To use another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks its venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing the locked packages into .venv, which takes about a minute the first time."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
