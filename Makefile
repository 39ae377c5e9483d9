# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
CORES ?= 2
BIN := $(VENV)/bin
QUIET := --quiet --disable-pip-version-check
READY := $(VENV)/.installed-$(shell cat constraints.txt pyproject.toml | sha256sum | cut -c1-16)
export PYTHONDONTWRITEBYTECODE ?=
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo photos test lint unit workflow test-slurm soak install clean

demo: install  ## shapes, a tiny Qwen3-VL and four minutes of training: the whole chain on a laptop
	snakemake --cores $(CORES) results/shapes_9/eval.json results/shapes_9/report.html
	@python -m coordexp.cli summary results/shapes_9

photos: install  ## a dozen real photographs by heart, in boxes: a check of the whole chain (data.photos_overfit)
	snakemake --cores $(CORES) results/photos_overfit_64/eval.json results/photos_overfit_64/report.html
	@python -m coordexp.cli summary results/photos_overfit_64

test: lint unit workflow  ## what CI runs

lint: install  ## formatting, imports between floors, workflow lint
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	lint-imports
	snakemake --lint

unit: install
	pytest tests/unit -n $(CORES)

workflow: install  ## real Snakemake runs, end to end
	pytest tests/workflow

test-slurm: install  ## the demo on a real SLURM of two nodes on this machine; needs root and Debian's slurm-wlm, munge
	pytest tests/slurm

soak: install  ## every rule under every fault: 25 minutes on two cores; writes the table of docs/faults.md
	pytest tests/workflow/faults -m "soak or not soak" --fault-table benchmarks/results/faults.json
	python docs/make_faults.py

install: $(READY)
	@test "$$(cat $(VENV)/.checkout 2>/dev/null)" = "$(CURDIR)" || { \
	  $(BIN)/python -m pip install $(QUIET) --no-deps --no-build-isolation --editable . && echo "$(CURDIR)" > $(VENV)/.checkout; }

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "CoordExp needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "Python lacks venv; on Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV): about 7 GB, three minutes on a fast line"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install $(QUIET) --constraint constraints.txt setuptools
	$(BIN)/python -m pip install $(QUIET) --constraint constraints.txt --editable '.[dev,cluster]'
	$(BIN)/python -m pip install $(QUIET) --no-deps lvis==0.5.3  # tests alone; its requirements are not needed
	@echo "$(CURDIR)" > $(VENV)/.checkout
	@touch $(READY)

clean:  ## forget results, keep downloads and the environment
	rm -rf results .snakemake
