# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench clean

demo: $(VENV)/.demo
	$(BIN)/python -m jobs.demo

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks

# What Debian supplies: pdqhash comes as source, Spark needs Java.
APT_INSTALL := apt-get -q update && apt-get -q install -y --no-install-recommends

# Each stamp is older than pyproject.toml where what it needs has changed.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@command -v c++ > /dev/null || { $(APT_INSTALL) g++; }
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	@command -v c++ > /dev/null || { $(APT_INSTALL) g++; }
	@command -v java > /dev/null || { $(APT_INSTALL) default-jre-headless; }
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo-output
