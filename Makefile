# The development commands; `make` alone lists them. PYTHON=python3.13 make test picks another interpreter.
#
# Each Python version has a virtual environment of its own (.venv/3.13) and a Cargo target folder of its own
# (target/3.13): PyO3 is configured for one interpreter, and would be rebuilt on every change from one to the other.
# Tests and demo share one release build, installed editable: a change of Python code needs no new build. Stamps keep
# finished work from being done again.

SHELL := /bin/bash
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# For test-more: a command that runs another under a newer Python than the machine has, as
# `$(NEXT_PYTHON) 3.14 'make test'`.
NEXT_PYTHON ?=
NEXT_VERSIONS ?= 3.14 3.15

ifneq (,$(filter-out help clean,$(MAKECMDGOALS)))
  found := $(shell tools/find-python $(PYTHON))
  ifneq (ok,$(firstword $(found)))
    $(error $(found))
  endif
  BASE := $(word 2,$(found))
  TAG := $(word 3,$(found))
  EXT_SUFFIX := $(word 4,$(found))
  LIBDIR := $(word 5,$(found))
  INCLUDE := $(word 6,$(found))
endif

VENV := .venv/$(TAG)
BIN := $(VENV)/bin
EXTENSION := python/mioloop/_core$(EXT_SUFFIX)
CRATES := Cargo.toml $(wildcard benches/*/Cargo.toml examples/*/Cargo.toml)
# The extension that the tests and the benchmark have as a guest.
EXAMPLE := $(VENV)/.example-rust_futures
RUST_SOURCES := Cargo.toml $(wildcard Cargo.lock) pyproject.toml $(shell find src -name '*.rs' 2>/dev/null)
# Not exported: test-more's makes for other Pythons shall not inherit it.
TARGET := CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),$(CURDIR)/target/$(TAG))
# For what Cargo builds without maturin.
CARGO := $(TARGET) PYO3_PYTHON=$(CURDIR)/$(BIN)/python cargo
say = @echo "== CPython $(TAG): $(1)"
# Runs a command without its output, unless it fails.
quietly = @out=$$($(1) 2>&1) || { echo "$$out" >&2; exit 1; }

.PHONY: help build demo test test-more lint bench bench-wheel bench-report bench-floor bench-micro instructions pyperformance docs wheels program-versions \
  clean FORCE test-rust test-unit test-python test-programs test-conformance test-debug test-stress test-conformance-modes

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

build: $(EXTENSION) ## build the extension (release) into its virtual environment

demo: $(EXTENSION) $(VENV)/.group-demo ## aiohttp on asyncio's loop and on mioloop, side by side
	@$(BIN)/python examples/http_demo.py

test: test-rust test-python test-programs test-conformance ## every test, on one Python

# The crate is an extension module, whose Python symbols only an interpreter resolves. maturin says so to PyO3 in the
# environment (PYO3_BUILD_EXTENSION_MODULE), Cargo alone does not: then PyO3 links the test program to libpython,
# which is found at run time where the interpreter has it. The test build is Cargo's dev profile, so that neither
# undoes the other's work. One test at a time: descriptors are the whole process's, and a test that closes one and
# expects its number again has to be alone with them.
test-rust: $(VENV)/.group-build ## the unit tests in src/
	$(call say,cargo test)
	@test -f $(INCLUDE)/Python.h || { \
	  echo "CPython $(TAG) has no headers, no libpython: install them (Debian: python$(TAG)-dev)" >&2; exit 1; }
	@LD_LIBRARY_PATH=$(LIBDIR)$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH} $(CARGO) test --quiet --lib -- --test-threads=1

test-unit: $(EXTENSION) $(VENV)/.group-test ## tests/unit
	$(call say,unit tests)
	@$(BIN)/python -m pytest --quiet tests/unit

test-python: $(EXTENSION) $(EXAMPLE) $(VENV)/.group-test ## unit and integration tests, and the conformance runner's
	$(call say,pytest)
	@$(BIN)/python -m pytest --quiet --ignore=tests/integration/programs

# On one Python only: their libraries are many, and do not come ready-made for every Python.
test-programs: $(EXTENSION) $(VENV)/.group-test $(VENV)/.group-programs ## the programs that people run, on real servers
	$(call say,programs)
	@$(BIN)/python -m pytest --quiet tests/integration/programs

test-conformance: $(EXTENSION) $(VENV)/.group-test ## the interpreter's own test_asyncio, run on mioloop
	$(call say,conformance)
	@$(BIN)/python -m tests.conformance

# Development mode turns asyncio's debug mode on, and CPython's checks of memory.
test-debug: $(EXTENSION) $(VENV)/.group-test ## tests/unit in asyncio's debug mode
	$(call say,unit tests in debug mode)
	@PYTHONASYNCIODEBUG=1 PYTHONDEVMODE=1 $(BIN)/python -m pytest --quiet tests/unit

test-stress: $(EXTENSION) $(VENV)/.group-test ## tests/stress: thousands of connections, leaks
	$(call say,stress tests)
	@$(BIN)/python -m pytest --quiet tests/stress

# In asyncio's debug mode, and in development mode with every ResourceWarning an error.
test-conformance-modes: $(EXTENSION) $(VENV)/.group-test ## the conformance run in both of its stricter modes
	$(call say,conformance in debug mode)
	@$(BIN)/python -m tests.conformance --debug
	$(call say,conformance in development mode)
	@$(BIN)/python -m tests.conformance --strict

test-more: test-debug test-stress test-conformance-modes ## stress, debug mode, and every other supported Python found
	@failed=; \
	for python in $$(tools/find-python --each | awk '$$1 != "$(TAG)" { print $$2 }'); do \
	  $(MAKE) --no-print-directory --keep-going PYTHON=$$python test-python test-conformance \
	    || failed+=" $$python"; \
	done; \
	if [[ -n "$(NEXT_PYTHON)" ]]; then for version in $(NEXT_VERSIONS); do \
	  MAKEFLAGS= $(NEXT_PYTHON) $$version 'make --no-print-directory -k test-python test-conformance' \
	    || failed+=" $$version"; \
	done; fi; \
	[[ -z $$failed ]] || { echo "failed on:$$failed" >&2; exit 1; }

lint: $(EXTENSION) $(VENV)/.group-lint $(VENV)/.group-programs ## rustfmt, clippy, ruff, mypy, stubtest, the workflow files
	$(call say,lint)
	@for crate in $(CRATES); do cargo fmt --manifest-path $$crate --check || exit; done
	@for crate in $(CRATES); do \
	  $(CARGO) clippy --quiet --manifest-path $$crate --all-targets -- -D warnings || exit; done
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/python -m mypy.stubtest mioloop._core --mypy-config-file pyproject.toml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml

# BENCH gives it more options, as in `make bench BENCH='--minutes 20 --rounds 3'` or BENCH=--resume. Results of other
# runs that lie beside its own get into the report too.
BENCH ?=
RESULTS := benches/results
bench: $(EXTENSION) $(EXAMPLE) $(VENV)/.group-bench ## mioloop and its peers, measured side by side, into docs/benchmarks.md
	@$(BIN)/python -m benches --json $(RESULTS)/rows.json $(BENCH)
	@$(MAKE) --no-print-directory bench-report

# The wheels are optimised by profile, the development build is not.
bench-wheel: $(VENV)/.group-bench ## the same with the wheel that `make wheels` has left in dist/
	$(call quietly,$(BASE) -m venv --clear $(VENV)-wheel)
	$(call quietly,$(VENV)-wheel/bin/python -m pip install --upgrade pip)
	$(call quietly,$(VENV)-wheel/bin/python -m pip install --group bench dist/mioloop-*-cp$(subst .,,$(TAG))-*.whl)
	@$(VENV)-wheel/bin/python -m benches --json $(RESULTS)/rows.json $(BENCH)
	@$(MAKE) --no-print-directory bench-report

bench-report: $(EXTENSION) $(VENV)/.group-bench ## docs/benchmarks.md again, from the results that there are
	@$(BIN)/python -m benches --from $$(ls -tr $(RESULTS)/*.json) --report docs/benchmarks.md

bench-floor: $(EXTENSION) $(VENV)/.group-bench ## what TLS costs without a loop, for the same page
	@$(BIN)/python -m benches.floor --table $(RESULTS)/floor.md
	@$(MAKE) --no-print-directory bench-report

instructions: $(EXTENSION) $(VENV)/.group-test ## instructions per operation, counted: fails where they have grown
	@$(BIN)/python -m benches.instructions

# Only to compare builds: see benches/micro_pyperf.py.
bench-micro: $(EXTENSION) $(VENV)/.group-bench ## the in-process rows under pyperf, three loops
	@mkdir -p target/pyperf && rm -f target/pyperf/*.json
	@for loop in asyncio uvloop mioloop; do \
	  $(BIN)/python -m benches.micro_pyperf --loop $$loop -o target/pyperf/$$loop.json $(BENCH) || exit; done
	@cd target/pyperf && $(CURDIR)/$(BIN)/python -m pyperf compare_to asyncio.json uvloop.json mioloop.json --table

PYPERFORMANCE ?= --fast
pyperformance: $(EXTENSION) $(VENV)/.group-bench ## pyperformance's asyncio benchmarks on both loops
	@mkdir -p $(RESULTS)
	@$(BIN)/python -m benches.pyperformance --output target/pyperformance/$(TAG) \
	  --table $(RESULTS)/pyperformance.md -- $(PYPERFORMANCE)

# The site fetches nothing when it is built, and nothing when it is read.
docs: $(VENV)/.group-docs ## the documentation, into target/site
	$(call say,documentation)
	@NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet --strict
	@! grep -rnoE '<(script|link|img)[^>]+(src|href)="?https?://[^">]+\.(js|css|woff2?|svg|png)' target/site \
	  || { echo "the site would fetch these when it is read" >&2; exit 1; }

program-versions: $(VENV)/.group-programs ## the versions in README.md and docs/programs.md, as installed here
	@$(BIN)/python tools/program_versions.py

# PYTHONS names the interpreters; without it, every supported one found here. PGO=off, PGO=required: see tools/wheels.
PYTHONS ?= $(BASE) $(shell tools/find-python --each | awk '$$1 != "$(TAG)" { print $$2 }')
wheels: $(VENV)/.group-wheels ## an sdist and manylinux wheels in dist/, each installed and tried
	$(call say,wheels)
	@tools/wheels $(BIN) $(PYTHONS)

clean: ## remove what was built and installed here
	rm -rf .venv target dist python/mioloop/_core*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is made anew when it belongs to another interpreter, as after an update.
ifneq ($(shell cat $(VENV)/.base 2>/dev/null),$(BASE))
$(VENV)/.base: FORCE
endif
$(VENV)/.base:
	$(call say,virtual environment in $(VENV))
	$(call quietly,$(BASE) -m venv --clear $(VENV))
	$(call quietly,$(BIN)/python -m pip install --upgrade pip)
	@echo $(BASE) >$@

$(VENV)/.group-%: $(VENV)/.base pyproject.toml
	$(call say,installing what '$*' needs)
	$(call quietly,$(BIN)/python -m pip install --group $*)
	@touch $@

$(EXTENSION): $(VENV)/.group-build $(RUST_SOURCES)
	$(call say,building the extension (release))
	$(call quietly,$(TARGET) VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release)
	@touch $@

$(EXAMPLE): $(VENV)/.group-build $(wildcard examples/rust_futures/* examples/rust_futures/src/*)
	$(call say,building examples/rust_futures)
	$(call quietly,$(TARGET) VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --manifest-path examples/rust_futures/Cargo.toml)
	@touch $@
