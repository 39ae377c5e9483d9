# `make demo` and `make test` create the environment on their first run.
PYTHON ?= python3
VENV ?= .venv
CORES ?= 2
BIN := $(VENV)/bin
QUIET := --quiet --disable-pip-version-check
READY := $(VENV)/.installed-$(shell cat constraints.txt pyproject.toml | sha256sum | cut -c1-16)
# gradio and what it needs beyond our own dependencies, for `coordexp app`
APP := gradio gradio_client groovy hf-gradio brotli orjson pydub python-multipart pytz safehttpx semantic-version tomlkit
# vLLM needs another torch, so it has an environment of its own, kept by the hash of what it is installed from.
VLLM_KEY := $(shell { $(PYTHON) --version; cat constraints-vllm.txt; } | sha256sum | cut -c1-16)
VLLM_VENV ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/coordexp/venv-vllm-$(VLLM_KEY)
export PYTHONDONTWRITEBYTECODE ?=
# Snakemake needs a cache folder, and fails without one where the home folder cannot be written.
ifndef XDG_CACHE_HOME
ifneq ($(shell mkdir -p "$$HOME/.cache" 2>/dev/null && test -w "$$HOME/.cache" && echo yes),yes)
export XDG_CACHE_HOME := $(CURDIR)/.snakemake/cache
endif
endif
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo photos photos-folder test lint unit workflow test-slurm vllm test-vllm soak install clean

demo: install  ## run all stages on a laptop: generated shapes, a tiny Qwen3-VL, four minutes of training
	snakemake --cores $(CORES) results/shapes_9/eval.json results/shapes_9/report.html
	@python -m coordexp.cli summary results/shapes_9

photos: photos-folder install  ## overfit a dozen photos of yours in LVIS format: make photos PHOTOS=/path/to/folder
	snakemake --cores $(CORES) --config 'datasets={photos_overfit: {root: "$(abspath $(PHOTOS))"}}' -- \
	  results/photos_overfit_64/eval.json results/photos_overfit_64/report.html
	@python -m coordexp.cli summary results/photos_overfit_64

photos-folder:
	@test -d "$(PHOTOS)" || { \
	  echo "photos: folder '$(PHOTOS)' not found; use make photos PHOTOS=/path/to/folder (docs/data.md)"; exit 1; }

test: lint unit workflow  ## lint, unit tests and workflow tests

lint: install  ## formatting, import layers, types of the public modules, workflow lint
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	lint-imports
	mypy
	snakemake --lint

unit: install  ## unit tests
	pytest tests/unit -n $(CORES)

workflow: install  ## end-to-end Snakemake runs
	pytest tests/workflow -n $(CORES) --dist loadfile

test-slurm: install  ## run the demo on a local two-node SLURM cluster; needs root and Debian's slurm-wlm and munge
	pytest tests/slurm

test-vllm: vllm  ## run the tests of the vLLM engine and server, on the CPU
	$(VLLM_VENV)/bin/python -m pytest tests/unit/inference/vllm_engine -m vllm

vllm: $(VLLM_VENV)/.installed  ## create the environment of vLLM for CPUs (6 GB) and print its Python
	@mark="$(CURDIR) $$(sha256sum < pyproject.toml)"; test "$$(cat $(VLLM_VENV)/.checkout 2>/dev/null)" = "$$mark" || { \
	  $(VLLM_VENV)/bin/python -m pip install $(QUIET) --no-deps --no-build-isolation --editable . \
	  && echo "$$mark" > $(VLLM_VENV)/.checkout; }
	@echo "$(VLLM_VENV)/bin/python"

$(VLLM_VENV)/.installed:
	@echo "Installing into $(VLLM_VENV): about 6 GB, three minutes with a fast connection"
	$(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install $(QUIET) --no-deps --requirement constraints-vllm.txt
	@touch $@

soak: install  ## inject every fault into every rule, kill the workflow at random (40 minutes), update docs/faults.md
	pytest tests/workflow/faults -m "soak or not soak" --fault-table benchmarks/results/faults.json
	python docs/make_faults.py
	pytest tests/unit/evaluation/test_answer_items.py -m soak
	pytest tests/unit/datasets -m soak
	pytest tests/unit/modeling/test_checkpoint_fuzz.py -m soak

install: $(READY)
	@test "$$(cat $(VENV)/.checkout 2>/dev/null)" = "$(CURDIR)" || { \
	  $(BIN)/python -m pip install $(QUIET) --no-deps --no-build-isolation --editable . && echo "$(CURDIR)" > $(VENV)/.checkout; }

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "CoordExp needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "Python lacks venv; on Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV): about 7 GB, three minutes with a fast connection"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install $(QUIET) --constraint constraints.txt setuptools
	$(BIN)/python -m pip install $(QUIET) --constraint constraints.txt --editable '.[dev,cluster]'
	$(BIN)/python -m pip install $(QUIET) --constraint constraints.txt --no-deps $(APP)  # gradio asks for an older Pillow
	$(BIN)/python -m pip install $(QUIET) --no-deps lvis==0.5.3  # for tests only; its dependencies are not needed
	@echo "$(CURDIR)" > $(VENV)/.checkout
	@touch $(READY)

clean:  ## delete results; keep downloads and the environment
	rm -rf results .snakemake
