# Everything runs in .venv, which is made on the first use and again when the dependencies change.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Stages are run as `python ...`: they must find the interpreter of .venv first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help setup demo run-demo same-demo test soak lint ui results readme publish bench clean

help:
	@echo "make demo       the whole workflow on handwritten digits, in minutes; no images are downloaded"
	@echo "make test       style, types, imports and tests"
	@echo "make results    the results table so far"
	@echo "make ui         the MLflow UI on http://127.0.0.1:5000"
	@echo "make readme     the results table in README.md, from the result files"
	@echo "make publish    tables and MLflow runs made anew from the result files"
	@echo "make same-demo  runs the demo anew and compares its numbers with the committed ones"
	@echo "make soak       hours of hostile input and of kills at random moments; EXAMPLES=1000 KILLS=10 for minutes"
	@echo "make bench      the simulation against other libraries; BENCH='--weights FILE --data IMAGES' names a network"
	@echo "make setup      only the virtual environment, .venv"
	@echo "make clean      removes .venv and caches, never results"
	@echo "dvc repro       the experiments of params.yaml (after: . $(VENV)/bin/activate)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || { \
	  echo "Python 3.11 to 3.14 is needed, $(PYTHON) is `$(PYTHON) --version`: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, pip on one; templates do not compile
	@touch $@

demo: $(READY)
	@quantspike check
	@dvc stage list --name-only | grep -q '^plot@demo-' || \
	  { echo "grid.profile in params.yaml lacks demo: add it to the list" >&2; exit 1; }
	@{ dvc stage list --name-only | grep '^plot@demo-' | xargs dvc status --quiet --with-deps && \
	  dvc status --quiet publish; } || $(MAKE) --no-print-directory run-demo
	@quantspike results --profile demo

# Most of the demo's time is starting Python, so its runs go two at a time, each on one core. What they share comes first.
run-demo:
	dvc repro $(FORCE) download@demo
	dvc stage list --name-only | grep '^baseline@demo-' | OMP_NUM_THREADS=1 xargs -P 2 -I {} \
	  dvc --wait-for-lock repro $(FORCE) --single-item {}
	dvc stage list --name-only | sed -n 's/^simulate@\(demo-.*\)/\1/p' | OMP_NUM_THREADS=1 xargs -P 2 -I {} \
	  dvc --wait-for-lock repro $(FORCE) --single-item train@{} finetune@{} evaluate@{} convert@{} simulate@{}
	dvc repro $(FORCE) --single-item --glob 'plot@demo-*'
	dvc repro $(FORCE) --single-item publish

same-demo: $(READY)
	rm -rf data/resume/demo-*
	$(MAKE) --no-print-directory run-demo FORCE=--force
	@git diff --exit-code --stat HEAD -- metrics/demo && test -z "`git ls-files --others --exclude-standard metrics/demo`" || \
	  { echo "numbers of the demo differ from the last commit, or are not committed: git status metrics/demo" >&2; exit 1; }
	@echo "all numbers of the demo are those of the last commit"

test: lint
	OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

soak: export EXAMPLES ?= 100000
soak: $(READY)
	OMP_NUM_THREADS=1 python -m pytest -m fuzz --hypothesis-profile soak --numprocesses 2
	python benchmarks/kills.py --kills $(or $(KILLS),100)

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy
	lint-imports

results: $(READY)
	@quantspike results

readme: $(READY)
	@quantspike readme

publish: $(READY)
	python stages/publish.py

ui: $(READY)
	quantspike ui

# The other libraries come only when they are asked for.
bench: $(READY)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	python benchmarks/simulation.py --json benchmark.json $(BENCH)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
