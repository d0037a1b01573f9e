# Everything a person types. `make` alone lists it.
# Needs Python 3.11+, git and a C library; no server, key, root right or HOME content.
SHELL := /bin/sh
BIN := .venv/bin
PYTEST_ARGS ?= -n auto --dist loadfile --no-loadscope-reorder
BENCHMARKS ?=

.PHONY: help setup demo up test check types rules fix bench chaos lock clean

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: ## make .venv from the locks
	@.ci/setup

demo: setup ## run the showcase brief through the whole company
	@$(BIN)/company demo

up: setup ## run api and worker until Ctrl-C
	@$(BIN)/company up

test: setup ## run all tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup ## linters, types, layers and the shape of the code
	@$(MAKE) --no-print-directory -j 2 types rules

types:
	@$(BIN)/mypy

rules:
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest tests/test_architecture.py

fix: setup ## let ruff mend what it can
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: ## the claims about speed, side by side with others (BENCHMARKS="lists sizes" for some of them)
	@LOCK=bench .ci/setup
	@$(BIN)/python -m benchmarks $(BENCHMARKS)

chaos: setup ## the fault tests with their full numbers
	@COMPANY_TEST_CHAOS=full $(BIN)/python -m pytest tests/acceptance/faults

UV_COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock"

lock: ## bring the locks up to date (needs uv)
	@$(UV_COMPILE) pyproject.toml -o requirements/runtime.lock
	@$(UV_COMPILE) pyproject.toml --extra dev -c requirements/runtime.lock -o requirements/dev.lock
	@$(UV_COMPILE) pyproject.toml --extra dev --extra bench -c requirements/dev.lock -o requirements/bench.lock
	@for peer in dbos:3.11 prefect:3.11 langgraph:3.11 aegra:3.12; do \
		$(subst 3.11,$${peer#*:},$(UV_COMPILE)) requirements/peers/$${peer%:*}.in -o requirements/peers/$${peer%:*}.lock; done
	@printf 'hatchling\n' | $(UV_COMPILE) - -c requirements/dev.lock -o requirements/build.lock

clean: ## remove what can be made again (not the state directory .company)
	@rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist build
