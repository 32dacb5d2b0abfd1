# Everything needs only Python (3.10 or newer), pip and make; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

.PHONY: help install install-dev demo test test-fast test-slow lint format architecture wheel docs docs-serve clean

help:
	@echo "make demo       install, then pretrain, evaluate and report on embedded data (minutes on a CPU)"
	@echo "make test       install, then run the tests"
	@echo "make test-fast  the tests without the ones that start commands"
	@echo "make test-slow  the tests marked slow"
	@echo "make lint       ruff, ruff format --check and mypy"
	@echo "make format     apply ruff's fixes and format"
	@echo "make docs       build the documentation site into site/ (make docs-serve shows it while you write)"
	@echo "make architecture  the picture and table of docs/architecture.md anew"
	@echo "make wheel      a wheel and a source distribution in dist/"
	@echo "make clean      remove $(VENV) and caches"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Where this is set, as in many containers, every command would compile all that it imports again: seconds each.
unexport PYTHONDONTWRITEBYTECODE

# pip compiles what it installs on one core, compileall on all; a file for another Python does not compile, and need not.
define install
$(BIN)/python -m pip install --no-compile --disable-pip-version-check --progress-bar off -e "$(1)"
@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
endef

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(call install,.[dev])
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(call install,.[docs])
	@touch $@

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/ssl-toolkit demo

test: install-dev
	$(BIN)/python -m pytest -n 2

test-fast: install-dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not command"

test-slow: install-dev
	$(BIN)/python -m pytest -m slow

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The variable silences an advertisement of mkdocs-material.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

architecture: install-dev
	$(BIN)/python .ci/architecture.py

wheel: install-dev
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
