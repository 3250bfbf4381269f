# make demo        train, score and report a judge, offline but for the package index
# make test        the fast tests        make test-slow   the demo, kills, several processes
# make check       ruff and mypy         make generate-data

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow check generate-data

# A requirements file that changed is installed again; otherwise nothing is done.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: requirements-%.txt requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet -r $<
	@touch $@

$(VENV)/.dev: requirements-cuda.txt

demo: $(VENV)/.mps
	$(BIN)/judge demo

generate-data: $(VENV)/.mps
	$(BIN)/judge data generate

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
