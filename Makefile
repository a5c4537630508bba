PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help setup demo test test-versions lint format docs dist pretrain packs scenes bench clean

help:  ## show these targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 16

setup: $(VENV)/.installed  ## make .venv with Aurora in it

demo: setup  ## tune the embedded model on embedded pictures, beside LoRA and full fine-tuning
	$(BIN)/aurora demo

test: lint  ## lint, then the default tests
	$(BIN)/pytest -n 2

test-versions: $(VENV)/bin/python  ## the tests with the oldest and the newest releases that pyproject.toml allows
	$(BIN)/python tests/versions.py -- -n 2

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## build the site of the documentation into site/; a broken link is an error
	$(BIN)/zensical build --clean --strict

dist: $(VENV)/.dist  ## build the source distribution and the wheel into dist/, and check what the package index will show
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

pretrain: $(VENV)/.build  ## pretrain blip-mini again (minutes on a GPU, days on two cores; goes on where it stopped; needs npm and apt-get)
	$(BIN)/python pretraining/pretrain.py

packs: $(VENV)/.build  ## build the embedded picture packs again (needs npm and apt-get)
	$(BIN)/python pretraining/packs.py

scenes: $(VENV)/bin/python  ## build the embedded packs of scenes again, from those of pictures
	$(BIN)/python pretraining/scenes.py

bench: setup  ## compare the tuning methods over five seeds (hours)
	$(BIN)/aurora compare emoji --steps 60 240 --rates 3e-4 1e-3 3e-3 1e-2 --seeds 5 --also fluent-flat --out runs/bench

clean:  ## remove .venv and caches
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache build dist site

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Aurora needs Python 3.11 or newer; give one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# PyTorch first and by its exact version: a range would let pip take a build of several gigabytes
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.build: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[build]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.dist: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dist]'
	@touch $@
