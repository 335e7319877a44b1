# Every command a newcomer needs; `make` alone lists them. Python >= 3.11 and Rust are all a machine must have.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first interpreter that is new enough; override with `make PYTHON=...`.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$python"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
DONE := .make
TEST_WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ROWS ?= 1e6 1e7 1e8
export PATH := $(PATH):$(HOME)/.cargo/bin

# uv is many times faster than pip; a machine without it gets it inside the virtual environment.
INSTALL = $$(uv --version >/dev/null 2>&1 && echo uv || echo $(BIN)/uv) pip install --quiet --python $(BIN)/python
RUST_FILES := Cargo.toml $(wildcard Cargo.lock) rust-toolchain.toml $(shell find rust -name '*.rs' -o -name Cargo.toml)

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- Set-up: each stamp in .make/ records a step that is done, so every command does what is missing and no more.

$(DONE)/venv:
	@command -v cargo >/dev/null || { echo "Rust is missing: install it with rustup, then run make again." >&2; exit 1; }
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or later is missing; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv
	$(INSTALL) 'maturin>=1.14,<2'
	@mkdir -p $(DONE) && touch $@

# No build isolation: an interpreter in a new temporary folder each time would make cargo compile everything again.
$(DONE)/build: $(DONE)/venv pyproject.toml $(RUST_FILES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(INSTALL) --no-build-isolation --reinstall-package pope_fast --editable .
	@touch $@

$(DONE)/test: $(DONE)/venv pyproject.toml
	$(INSTALL) --requirement pyproject.toml --extra test
	@touch $@

$(DONE)/lint: $(DONE)/venv pyproject.toml
	$(INSTALL) --requirement pyproject.toml --extra lint
	@touch $@

$(DONE)/bench: $(DONE)/venv pyproject.toml
	$(INSTALL) --requirement pyproject.toml --extra bench
	@touch $@

.PHONY: setup
setup: $(DONE)/build $(DONE)/test $(DONE)/lint ## build the extension, install everything for development into .venv

# ---- Use

.PHONY: demo
demo: $(DONE)/build ## evaluate the shipped log: estimates and intervals beside the known truth
	$(BIN)/pope evaluate python/pope_fast/data/demo.parquet --truth python/pope_fast/data/demo.truth.json

# ---- Check

.PHONY: test
test: test-rust test-python ## every test of both languages

.PHONY: test-rust
test-rust:
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --workspace --locked --no-fail-fast; \
	else cargo test --workspace --locked --lib --bins --tests --no-fail-fast; fi

.PHONY: test-python
test-python: $(DONE)/build $(DONE)/test
	$(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS)

.PHONY: test-fast
test-fast: $(DONE)/build $(DONE)/test ## the Python tests that are not marked slow
	$(BIN)/python -m pytest -n $(TEST_WORKERS) -m 'not slow' $(PYTEST_ARGS)

.PHONY: lint
lint: rustfmt clippy ruff mypy stubtest ## formatting, clippy, ruff, mypy --strict, and the stub against the extension

.PHONY: rustfmt clippy ruff mypy stubtest
rustfmt:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets --locked -- -D warnings

ruff: $(DONE)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: $(DONE)/build $(DONE)/lint
	$(BIN)/mypy

stubtest: $(DONE)/build $(DONE)/lint
	MYPYPATH=python $(BIN)/python -m mypy.stubtest pope_fast._core

.PHONY: format
format: $(DONE)/lint ## rewrite the sources in the project's format
	cargo fmt --all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: doctest
doctest: $(DONE)/build $(DONE)/test ## the examples in docstrings and in Rust documentation
	$(BIN)/python -m pytest --doctest-modules python/pope_fast
	cargo test --doc --workspace --locked

.PHONY: examples
examples: $(DONE)/build $(DONE)/test ## run every script of examples/
	$(BIN)/python scripts/run_examples.py

.PHONY: docs-check
docs-check: doctest ## docstrings, Rust documentation without warnings, links between documents
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	$(BIN)/python -m pytest tests/meta/test_documents.py

.PHONY: bench
bench: $(DONE)/build $(DONE)/bench ## compare with peers on this machine; 1e8 rows want 24 GB of memory and an hour
	$(BIN)/python benches/run.py --rows $(BENCH_ROWS)
	$(BIN)/python benches/evaluate.py --rows $(BENCH_ROWS)
	$(BIN)/python benches/clustering.py
	$(BIN)/python benches/pairs.py
	$(BIN)/python benches/scoring.py

SECONDS ?= 60
.PHONY: fuzz
fuzz: $(DONE)/build $(DONE)/test ## change bytes of good inputs for SECONDS a target; fails if one is not read or refused
	$(BIN)/python benches/faults/mutate.py --seconds $(SECONDS) --seed $$(date +%s)

# ---- Release

.PHONY: dist
dist: $(DONE)/venv ## build wheel and sdist into dist/, run the main job from each in a fresh environment
	$(BIN)/python scripts/dist.py

.PHONY: clean
clean: ## remove what was built; .venv and Cargo's downloads stay
	rm -rf dist target $(DONE) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python tests benches examples scripts -name __pycache__ -prune -exec rm -rf {} +
	rm -f python/pope_fast/_core*.so python/pope_fast/_core*.pyd
