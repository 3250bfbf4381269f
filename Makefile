# make install        NVIDIA       make train-small        a short run with the base of the recipe
# make install-mps    Apple        make train-small-mps    make train-apple
# make install-rocm   AMD          make train-small-rocm
# make install-cpu    no GPU
#
# make demo           train, score and report a judge, offline but for the package index
# make demo-real      the same with labels of people and a pretrained base
# make generate-data  make evaluate [ADAPTER=adapters_eval/<name>_final] [DATA=datasets/judge_eval]
# make scratch-small[-mps|-rocm]      a small model from nothing (docs/SCRATCH.md)
# make test           the fast tests     make test-slow   the demo, kills, several processes, SLURM
# make test-nightly   what measures: seeds of the demo, estimates, benchmarks, the GPU check
# make check          ruff, mypy, layers make lock        the locks again, after a change of pins

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# Without --no-compile pip compiles all 20,000 files of the packages, for one to two minutes; Python
# compiles the tenth of them that is imported, when it is, and keeps that: where the environment
# forbids to keep it, each process takes 6 s longer to start.
PIP := $(BIN)/pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
# The wheel of torch differs by platform: the address of another index than the default one, as
# pytorch.org's "Get started" page shows it for ROCm or for the CPU alone.
TORCH ?= $(shell grep '^torch==' requirements.txt)
TORCH_INDEX ?=
DATA ?= datasets/judge_eval
ADAPTER ?= $(shell ls -dt adapters_eval/*_final 2>/dev/null | head -n 1)
# More flags for the recipes: make train-small ARGS="--model tiny"
ARGS ?=
SMALL := --epochs 1 --max_samples 50 --test_samples 20

.PHONY: install install-mps install-rocm install-cpu install-clients train-small train-small-mps train-small-rocm \
	train-apple scratch-small scratch-small-mps scratch-small-rocm evaluate demo demo-real \
	generate-data test test-slow test-nightly check lock

install: $(VENV)/.cuda
install-mps: $(VENV)/.mps
install-rocm: $(VENV)/.rocm
install-cpu: $(VENV)/.cpu
# Clients, evaluators and engines that some tests run beside those of .dev; they skip without.
install-clients: $(VENV)/.clients

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A lock that changed is installed again; otherwise nothing is done.
$(VENV)/.%: requirements-%.lock pyproject.toml | $(VENV)/bin/python
	@if [ $* = rocm ] && [ -z "$(TORCH_INDEX)" ] && ! $(BIN)/python -c \
	  "import sys, torch; sys.exit(not torch.version.hip)" 2>/dev/null; then \
	  echo "make install-rocm TORCH_INDEX=<the address that pytorch.org's 'Get started' page" \
	    "shows for ROCm>: torch's default build is NVIDIA's" >&2; exit 2; fi
	$(PIP) $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@[ $* != rocm ] || $(BIN)/python -c "import sys, torch; sys.exit(not torch.version.hip)" || { \
	  echo "this torch is not built for ROCm: rm -r $(VENV), and look at TORCH_INDEX" >&2; exit 2; }
	$(PIP) --require-hashes --no-deps -r $<
	$(PIP) --no-deps -e .
	@[ $* != cuda ] || $(BIN)/python -c "import torch; torch.version.cuda or print('note: this', \
	  'torch', torch.__version__, 'is not built for NVIDIA; make install TORCH_INDEX=... chooses')"
	@touch $@

train-small: $(VENV)/.cuda
	$(BIN)/python pt_app/eval_model/judge_train_cuda.py $(SMALL) $(ARGS)

train-small-mps: $(VENV)/.mps
	$(BIN)/python pt_app/eval_model/judge_train_mps.py $(SMALL) $(ARGS)

train-small-rocm: $(VENV)/.rocm
	$(BIN)/python pt_app/eval_model/judge_train_cuda.py --config configs/rocm.yaml $(SMALL) $(ARGS)

train-apple: $(VENV)/.mps
	$(BIN)/python pt_app/eval_model/judge_train_mps.py \
	  --config configs/apple_silicon_config.json $(ARGS)

scratch-small: $(VENV)/.cuda
	$(BIN)/python scripts/train.py --config configs/small_config.yaml $(ARGS)

scratch-small-mps: $(VENV)/.mps
	$(BIN)/python scripts/train.py --config configs/small_config_mps.yaml $(ARGS)

scratch-small-rocm: $(VENV)/.rocm
	$(BIN)/python scripts/train.py --config configs/small_config_rocm.yaml $(ARGS)

evaluate:
	@test -n "$(ADAPTER)" || { echo "no adapter under adapters_eval: train one, or say" \
	  "make evaluate ADAPTER=<its folder>" >&2; exit 2; }
	$(BIN)/judge eval --data $(DATA) --adapter $(ADAPTER) --base

demo: $(VENV)/.mps
	$(BIN)/judge demo

demo-real: $(VENV)/.mps
	$(BIN)/judge demo --real

generate-data: $(VENV)/.mps
	$(BIN)/judge data generate

# Some files at a time, the longest first, on a thread each: small models gain little from a second.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev
	$(PYTEST) -n 2 --durations 15 -m "not slow"

# Three on two cores, since a rented host and a SLURM wait more than they compute.
test-slow: $(VENV)/.dev
	$(PYTEST) -n 3 --durations 25 -m "slow and not nightly"

# An hour on two cores; .github/workflows/nightly.yml runs it.
test-nightly: $(VENV)/.dev
	$(PYTEST) -n 2 --dist load -m nightly

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

lock:
	scripts/lock.sh
