# The one entry point. `make help` lists the targets; every one of them sets up .venv first.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
# What `make demo` runs, after set-up.
DEMO ?= $(BIN)/esper demo
# What `make faults` selects; CAMPAIGN=full in the environment turns each seeded cut into the whole campaign.
FAULTS ?= $(BIN)/python -m pytest -m campaign --timeout 7200
BENCHMARKS ?= $(basename $(notdir $(filter-out benchmarks/_%,$(sort $(wildcard benchmarks/*.py)))))
COVERAGE_MIN ?= 80
# Each process has a broker of its own (350 MB); much of a test is waiting for another process.
TEST_PROCESSES ?= 2
# A file's tests stay in one process; packages stay in the order of tests/conftest.py.
TESTS := pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
# Threads of torch that wait must not spin: more processes than cores would mostly watch each other wait.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## Make .venv from requirements.lock and fetch the broker's jars; does nothing when all is there
	@.ci/setup

.PHONY: demo
demo: setup ## Train a static and a growing network through a real Kafka broker and show what it was worth
	$(DEMO)

.PHONY: test
test: setup ## Run every test, real broker included
	$(BIN)/python -m $(TESTS)

.PHONY: coverage
coverage: setup ## Run every test with branch coverage over all processes; takes half as long again
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --fail-under $(COVERAGE_MIN)

.PHONY: check
check: lint types layers test ## Everything that a change must pass: lint, types, layers, test

.PHONY: lint
lint: setup ## Check style (ruff), the contracts (buf) and that generated code is current
	$(BIN)/ruff check . .ci
	$(BIN)/ruff format --check . .ci
	$(BIN)/buf lint
	$(BIN)/buf breaking --against "$$(ls proto/released/*.binpb | sort --version-sort | tail -n 1)"
	$(BIN)/python .ci/protos.py check

.PHONY: types
types: setup ## Check types (mypy --strict)
	$(BIN)/mypy --strict esper .ci/protos.py

.PHONY: layers
layers: setup ## Check that imports go one way (import-linter)
	$(BIN)/lint-imports

.PHONY: faults
faults: setup ## Run the fault campaigns whole: kills, hostile records, repeated runs (long)
	CAMPAIGN=full ESPER_REQUIRE_REAL=1 $(FAULTS)

.PHONY: bench
bench: setup ## Run every benchmark, judge its claims, and write benchmarks/results/*.json
	@status=0; \
	for name in $(BENCHMARKS); do \
	  echo "benchmarks/$$name.py" >&2; \
	  $(BIN)/python -m "benchmarks.$$name" || status=1; \
	done; \
	exit $$status

.PHONY: proto
proto: setup ## Generate the Python code of the contracts from proto/
	$(BIN)/python .ci/protos.py generate

.PHONY: lock
lock: setup ## Resolve pyproject.toml anew into requirements.lock, with hashes and without hosts
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url -o requirements.lock

.PHONY: format
format: setup ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix . .ci
	$(BIN)/ruff format . .ci

.PHONY: clean
clean: ## Remove build, test and coverage leftovers; keeps .venv and var
	rm -rf build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
