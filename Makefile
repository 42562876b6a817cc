PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo docs bench quality install format lint type test test-slow clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# Created once, and again when pyproject.toml is newer than the stamp.
$(STAMP): pyproject.toml
	@echo "setting up $(VENV) (once; 6 GB, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## set up .venv with the package and the development tools

demo: $(STAMP)  ## train on the bundled digits, sample and interpolate, in minutes on a CPU
	$(BIN)/ddpm-train name=demo
	$(BIN)/ddpm-sample ckpt=outputs/demo
	$(BIN)/ddpm-interpolate ckpt=outputs/demo a=1 b=2
	@echo "look at:"; find outputs/demo -name "*.png" -not -path "*/images/*" | sort | sed 's/^/  /'

docs: $(STAMP)  ## build the documentation as a site in docs/_build
	@$(BIN)/python -c "import furo, myst_parser, sphinx" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . docs/_build
	@echo "look at docs/_build/docs/index.html"

bench: $(STAMP)  ## measure speeds beside those of the peers, for the tables of BENCHMARKS.md
	@$(BIN)/python -c "import denoising_diffusion_pytorch, diffusers" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python scripts/bench.py

quality: $(STAMP)  ## train and measure again, and compare with docs/results.json; 90 minutes
	$(BIN)/python scripts/showcase.py compare=docs/results.json

format: $(STAMP)  ## fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(STAMP)  ## check style, errors and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

type: $(STAMP)  ## check the types
	$(BIN)/pyright

test: $(STAMP)  ## run the fast tests, in minutes
	$(BIN)/pytest -n 2 -q -m "not slow"

test-slow: $(STAMP)  ## run the tests that train, or download the original packages
	$(BIN)/pytest -n 2 -q -m slow

clean:  ## remove build outputs and caches; keep outputs/ and .venv
	rm -rf build dist docs/_build .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
