# make demo   train, predict, evaluate and report on generated images, in minutes on a CPU
# make test   install, lint, and run every test
#
# Needs Python >= 3.11.  Everything is installed into .venv; a second call installs nothing.
#   make PYTHON=python3.12 ...            another interpreter
#   make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" ...    another build of PyTorch

PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools

.PHONY: install demo test lint format bench docs freeze clean

install: $(TOOLS)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "samsans needs Python >= 3.11, %s is %s: make PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

$(TOOLS): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/samsans demo -o demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TOOLS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(TOOLS)
	$(BIN)/python benchmarks/sam_speed.py
	$(BIN)/python benchmarks/selective_scan.py
	$(BIN)/python benchmarks/proxy_prompt_speed.py
	$(BIN)/python benchmarks/hsam_speed.py
	$(BIN)/python benchmarks/masksam_speed.py

docs: $(TOOLS)
	$(BIN)/python docs/generate.py

freeze: $(TOOLS)
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/^(torch==[^+]+)\+.*/\1/' > constraints.txt

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
