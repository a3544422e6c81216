# Every target sets up what it needs: `make run` and `make test` work in a fresh clone.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-all lint wheel-check release-check docs bench dev constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.run ## the main job; ARGS="task=logistic" changes it
	$(PY) -m experiments.run $(ARGS)

test: $(VENV)/.test ## the tests of every change, minutes; ARGS="tests/linear -k name" chooses
	$(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-all: $(VENV)/.test $(VENV)/.docs ## with the extended ones: real processes, whole experiments, Monte Carlo
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

lint: $(VENV)/.lint ## ruff, its formatter and pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

wheel-check: $(VENV)/.lint ## build the wheel and import it away from the checkout
	$(PY) .ci/check_wheel.py

release-check: $(VENV)/.lint ## build, check the metadata, install from nothing and run the README's example
	$(PY) .ci/check_release.py

docs: $(VENV)/.docs ## the documentation, in site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

bench: $(VENV)/.bench ## the benchmarks, alone and in one process
	$(PY) -m pytest benchmarks -p no:xdist -o addopts= -W default $(ARGS)

dev: $(VENV)/.lint ## all that a contributor needs, and the pre-commit hooks
	$(PY) -m pre_commit install

constraints: | $(PY) ## resolve constraints.txt again; ARGS="--upgrade" for newer versions
	$(call install,uv)
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --all-extras \
	    --no-header --no-annotate $(ARGS) --output-file constraints.txt pyproject.toml

clean: ## remove the environment and what was built
	rm -rf $(VENV) build dist site *.egg-info

# What each target installs; a stamp in the environment says that it has been done.
EXTRAS.run := run
EXTRAS.test := run,test
EXTRAS.lint := run,test,lint
EXTRAS.docs := run,docs
EXTRAS.bench := run,bench

$(VENV)/.%: pyproject.toml constraints.txt | $(PY)
	@echo "installing bilevel[$(EXTRAS.$*)] in $(VENV)"
	$(call install,-c constraints.txt -e ".[$(EXTRAS.$*)]")
	@touch $@

# Debian's python3 comes without ensurepip and refuses a global `pip install`: hence three ways.
define install
	@if command -v uv >/dev/null; then uv pip install --quiet --python $(PY) $(1); \
	elif $(PY) -m pip --version >/dev/null 2>&1; then $(PY) -m pip install --quiet $(1); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	    $(PYTHON) -m pip --python $(PY) install --quiet $(1); \
	else echo "no pip: install one of uv, python3-venv and python3-pip, then run make again" >&2; exit 1; fi
endef

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "bilevel needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	@if command -v uv >/dev/null; then uv venv --quiet --allow-existing --python $(PYTHON) $(VENV); \
	else $(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(VENV); fi
