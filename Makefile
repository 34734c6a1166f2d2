# Needs python3, pip and make; everything else is installed into .venv.
#   make learn                                    learn from the built-in pictures, about twelve minutes
#   make learn DATA=photos OUT=runs/photos        learn from your own
#   make bench PICTURES=cifar10                   speed of the cuts; representation methods, three seeds, on labelled pictures
#   make speed PICTURES=cifar10                   speed and memory beside others, about an hour on a quiet machine
#   make test | lint | docs | clean
#   make nightly                                  the tests that take hours

PYTHON  ?= python3
DATA    ?= sample:things
OUT     ?= runs/things
MINUTES ?= 8
WORKERS ?= 2
# Where to look for the smaller CPU build of torch on Linux (see its install page), if wanted.
TORCH_INDEX ?=

VENV := .venv
BIN  := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: help learn test nightly lint bench speed docs clean

help:
	@sed -n 's/^#   //p' Makefile

# A system Python may lack ensurepip; its own pip then fills the new environment.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && \
	$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing selftaught into $(VENV) (a few minutes the first time)"
	$(PIP_INSTALL) -e ".[export,metrics]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing selftaught and its tests' tools into $(VENV) (a few minutes the first time)"
	$(PIP_INSTALL) --no-compile -e ".[dev]"
	@$(BIN)/python -m compileall -q -j $(WORKERS) $(VENV)/lib > /dev/null || true  # on all processors, where pip takes one
	@touch $@ $(VENV)/.installed

learn: $(VENV)/.installed
	$(BIN)/selftaught learn "$(DATA)" --out "$(OUT)" --minutes $(MINUTES)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/mypy

# One torch thread per worker: two workers with two threads each on two processors are slower than one.
# The order of files is that of tests/conftest.py, the longest first; xdist's own would put those with the fewest tests last.
test: lint
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=20

nightly: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly -n $(WORKERS)

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/cut_speed.py
	$(if $(PICTURES),$(BIN)/python benchmarks/representation.py "$(PICTURES)" --name "$(notdir $(PICTURES))")

speed: $(VENV)/.installed-dev
	$(PIP_INSTALL) -e ".[bench]"
	for name in choices loading cuts worlds; do $(BIN)/python benchmarks/speed_$$name.py || exit 1; done
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/renderer.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/cluster.py
	$(if $(PICTURES),$(BIN)/python benchmarks/speed_training.py --data "$(PICTURES)" --name "$(notdir $(PICTURES))")

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/make_docs_tables.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
