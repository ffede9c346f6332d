# `make help` lists what there is. Everything runs in .venv, which `make setup` fills with the versions of constraints.txt.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin
READY := .venv/.ready

# Workers of pytest share the cores; one thread each is quickest, and the same everywhere.
export OMP_NUM_THREADS := 1
# mkdocs-material advertises its successor at each build.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make .venv with pinned versions of everything

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "warmgap needs Python 3.11 or newer with its venv module, and found none as python3, \
	python3.13, python3.12 or python3.11. Install one, or say which: make setup PYTHON=python3.14" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## final loss against peak rate, of the default and of schedules by step count
	$(BIN)/warmgap demo

test: lint types docs ## everything that must pass: lint, types, docs, then the tests
	$(BIN)/python -m pytest -n 2

lint: $(READY) ## ruff, rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY) ## mypy, strict
	$(BIN)/mypy

docs: $(READY) ## build the pages into site/, strictly
	$(BIN)/mkdocs build --strict

bench: $(READY) ## measure speed against other packages
	@set -e; for script in $(filter-out %/smoothness.py %/compression.py %/rates.py %/why.py,$(wildcard benchmarks/*.py)); do echo "$$script"; $(BIN)/python "$$script"; done

clean: ## remove .venv and everything that was built
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
