# The few commands a visitor needs; `make` alone lists them.
# Everything happens in .venv; VENV=… and PYTHON=… name another place and another Python.

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TEST_WEIGHTS := smollm2-135m qwen2.5-coder-0.5b

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-quick check bench bench-e2e clean
# pip and the tests use all cores themselves.
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## a virtual environment with agentpar, vLLM for this machine and every extra (minutes, once)
	@test -n "$(PYTHON)" || { echo "agentpar needs Python 3.11 or newer, and none is on PATH:" \
	  "install it, or name it with make PYTHON=/path/to/python3" >&2; exit 1; }
	@VENV="$(VENV)" $(PYTHON) scripts/setup.py

demo: setup ## ask the example question: a real model, real fetches, a checked answer
	@$(BIN)/agentpar demo

test: setup ## every test, those on a real vLLM included
	@$(BIN)/agentpar weights $(TEST_WEIGHTS)
	$(BIN)/pytest

test-quick: setup ## the tests that need no model
	$(BIN)/pytest -m "not vllm and not browser and not slow"

check: setup ## lint, format, types, and that the schema file is up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/agentpar schema | diff -u agentpar/agentpar.schema.json - \
	  || { echo "out of date: agentpar schema > agentpar/agentpar.schema.json" >&2; exit 1; }

bench: setup ## what parsing, running and streaming a plan cost, without a model
	$(BIN)/python bench/parser.py
	$(BIN)/python bench/executor.py
	$(BIN)/python bench/hedging.py
	$(BIN)/python bench/priority.py
	$(BIN)/python bench/batching.py
	$(BIN)/python bench/streaming.py --simulated

bench-e2e: setup ## questions to answers beside ReAct, with a real model (long)
	$(BIN)/python bench/e2e.py

clean: ## remove what was built here; weights stay in the user's cache
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
