# make demo: virtual environment, install, the main job. make test: the same with the tests.
PYTHON ?= python3
VENV ?= .venv
# Processes that run the tests, each of up to 2 GB.
WORKERS ?= 2
BIN := $(VENV)/bin
# What one process compiles of the modules of Python serves the next ones, whatever the surroundings say.
unexport PYTHONDONTWRITEBYTECODE
# Modules are compiled when they are first imported: the packages have far more than a run needs.
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --no-compile -c constraints.txt
SOURCES := $(shell find csrc m2ops m2bert scripts -type f -not -name '*.so' -not -name '*.pyc') \
           CMakeLists.txt setup.py pyproject.toml constraints.txt

.PHONY: demo test lint bench installs browser aarch64 clean

demo: $(VENV)/.installed
	$(BIN)/m2bert demo

test: $(VENV)/.installed-test
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	$(BIN)/pytest benchmarks/ --benchmark-only

installs: $(VENV)/.installed-test
	$(BIN)/python scripts/check_installs.py

# torch first: the build finds it there, instead of fetching one for itself. Before it a pip of today: that of Python
# 3.11 takes more than twice as long to choose 200 packages.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(INSTALL) torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(INSTALL) '.[serve]'
	touch $@

# The wheel is built while the packages that it needs are chosen and installed, which leaves a processor idle.
$(VENV)/.installed-test: $(VENV)/.torch $(SOURCES)
	rm -rf $(VENV)/wheel
	$(PIP) wheel --quiet --no-deps --wheel-dir $(VENV)/wheel . & wheel=$$!; \
	$(INSTALL) --only-deps '.[test]' && wait $$wheel && $(INSTALL) --no-deps --force-reinstall $(VENV)/wheel/*.whl
	touch $@ $(VENV)/.installed

# What the tests of the page need beside Python: Debian's Chromium and axe-core. Without them these tests are skipped.
browser:
	command -v chromium || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }
	npm ci --prefix tests/serve --ignore-scripts --no-audit --no-fund

# What the tests of the ARM kernels need: Debian's cross compiler and qemu-user. Without them these tests are skipped.
aarch64:
	command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64 || { apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends g++-aarch64-linux-gnu qemu-user; }

clean:
	rm -rf build *.egg-info $(VENV)
	rm -f m2ops/*.so m2ops/*.dylib
