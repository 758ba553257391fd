# Everything runs in .venv, which is made on the first use and again when the dependencies change.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Stages are run as `python ...`: they must find the interpreter of .venv first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help setup demo run-demo test lint ui results readme publish bench gpu-packages gpu-results clean

help:
	@echo "make demo     the whole workflow on handwritten digits, in minutes, without a network"
	@echo "make test     style, types and tests"
	@echo "make results  the results table so far"
	@echo "make readme   the results table in README.md, from the result files"
	@echo "make ui       the MLflow UI on http://127.0.0.1:5000"
	@echo "make publish  tables and MLflow runs made anew from the result files"
	@echo "make bench    the simulation against other libraries; BENCH='--weights FILE --data IMAGES' names a network"
	@echo "make gpu-results  the published protocol on a bare machine with a GPU, packed: docs/gpu.md"
	@echo "make setup    only the virtual environment, .venv"
	@echo "make clean    removes .venv and caches, never results"
	@echo "dvc repro     the experiments of params.yaml (after: . $(VENV)/bin/activate)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is `$(PYTHON) --version`: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	@dvc stage list --name-only | grep -q '^plot@demo-' || \
	  { echo "run.profile in params.yaml lacks demo: add it to the list" >&2; exit 1; }
	@{ dvc stage list --name-only | grep '^plot@demo-' | xargs dvc status --quiet --with-deps && \
	  dvc status --quiet publish; } || $(MAKE) --no-print-directory run-demo
	@python -m quantspike.show --profile demo

# Most of the demo's time is starting Python, so its chains run two at a time, each on one core. What they share comes
# first.
run-demo:
	dvc repro --glob 'pretrain@demo-*'
	dvc stage list --name-only | sed -n 's/^simulate@\(demo-.*\)/\1/p' | OMP_NUM_THREADS=1 xargs -P 2 -I {} \
	  dvc --wait-for-lock repro --single-item train@{} finetune@{} evaluate@{} convert@{} simulate@{}
	dvc repro --glob 'plot@demo-*'
	dvc repro --single-item publish

test: lint
	OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadfile

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

results: $(READY)
	@python -m quantspike.show

readme: $(READY)
	@python -m quantspike.readme

publish: $(READY)
	python stages/publish.py

ui: $(READY)
	python -m quantspike.ui

# The other libraries come only when they are asked for.
bench: $(READY)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	python benchmarks/simulation.py --json benchmark.json $(BENCH)

# What the library needs beside torch, torchvision, numba, numpy and PyYAML, for a machine that cannot fetch it.
GPU_PYTHON ?= 3.12
gpu-packages: $(READY)
	$(VENV)/bin/python -m pip install --quiet --upgrade --target build/packages --constraint constraints.txt \
	  --python-version $(GPU_PYTHON) --platform manylinux2014_x86_64 --only-binary :all: \
	  pydantic safetensors tqdm filelock

# Runs where nothing is installed for it, hence not in .venv; a second call goes on. AWAY='--minutes 5 --k 1' and so on.
gpu-results:
	PYTHONPATH=src:build/packages $(PYTHON) -m quantspike.away run --profile paper $(AWAY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
