# make demo and make test do everything on a fresh machine: environment, pinned dependencies, run.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
OUT    := out
JOBS   ?= logical --maxprocesses 8

.PHONY: help demo test test-thorough lint bench docs readme tuning-logs wheel install install-dev clean distclean

help:
	@echo "make demo     digits, and MiniLM if its weights are there: tables and a picture in $(OUT)/demo"
	@echo "make test     the tests (ARGS='-k name' for some)"
	@echo "make test-thorough  every case of them, about twice as long"
	@echo "make lint     ruff and pyright"
	@echo "make bench    kernels and layers against torch (ARGS='--quick' for a short run)"
	@echo "make docs     HTML of docs/ in docs/_site"
	@echo "make readme   measure again and rewrite the figures in README.md"
	@echo "make tuning-logs  tune the shipped workloads for this CPU (ARGS='--budget 10m' for a shorter run)"
	@echo "make wheel    dist/*.whl"
	@echo "make clean    remove what these made (distclean: the environment too)"

# The stamps hold the time of the last install: make does nothing while pyproject.toml and constraints.txt are older.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lutcc needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Use make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt setuptools
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt --no-build-isolation -e ".[report]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt --no-build-isolation -e ".[dev,report,examples]"
	@touch $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

demo: $(VENV)/.installed
	$(BIN)/lutcc demo --output $(OUT)/demo $(ARGS)

# A process per core, each with whole files; JOBS=0 runs everything in one.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# Also the cases that are left out of `make test` (markers one_in and thorough, tests/conftest.py).
test-thorough: ARGS += --thorough
test-thorough: test

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(VENV)/.installed
	$(BIN)/lutcc bench $(ARGS)

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/build.py

readme: $(VENV)/.installed
	$(BIN)/python -m lutcc.bench.readme README.md

tuning-logs: $(VENV)/.installed
	$(BIN)/lutcc tune tuning_logs/workloads.toml --target all --log-dir tuning_logs $(ARGS)

wheel: $(VENV)/.installed-dev
	$(PIP) wheel -q --no-deps --no-build-isolation -w dist .

clean:
	rm -rf build dist $(OUT) docs/_site *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find lutcc ir schedules tests examples docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
