# make demo: virtual environment, install, the main job. make test: the same with the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find csrc m2ops m2bert scripts -type f -not -name '*.so' -not -name '*.pyc') \
           CMakeLists.txt setup.py pyproject.toml constraints.txt

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/m2bert demo

test: $(VENV)/.installed-test
	$(BIN)/pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	$(BIN)/pytest benchmarks/ --benchmark-only

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	rm -rf build/lib.* build/bdist.*
	$(PIP) install -c constraints.txt .
	touch $@

$(VENV)/.installed-test: $(BIN)/python $(SOURCES)
	rm -rf build/lib.* build/bdist.*
	$(PIP) install -c constraints.txt '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf build *.egg-info $(VENV)
