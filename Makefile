# Every target works on a fresh machine with Python >= 3.11 and make: .venv is made on first use.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test long bench check format clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/run.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[gpu]"
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	$(BIN)/pip install --quiet "pip>=25.1"
	$(BIN)/pip install --quiet --group dev
	@touch $@

demo: .venv/run.stamp ## run a research loop of 12 experiments by itself, with a live view
	@$(BIN)/trine loop start --experiments 12 --parallel 2 --workers 2

test: .venv/dev.stamp ## run the tests against real servers
	$(BIN)/pytest -q -n 3 --dist worksteal -m "not long and not gpu"

long: .venv/dev.stamp ## run what takes minutes: faults under load, repeated training
	$(BIN)/pytest -q -m long --timeout 1800

bench: .venv/dev.stamp ## measure speed against bare baselines and others; writes bench.json
	$(BIN)/pip install --quiet --group bench
	$(BIN)/python -m tests.benchmarks

check: .venv/dev.stamp ## formatter, linter, type checkers, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/dev.stamp ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and everything that was made
	rm -rf .venv .trine runs dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
