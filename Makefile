# `make demo` and `make test` need only Python 3.11 or newer; everything else lands in .venv
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-slow lint docs image install clean

demo: $(VENV)/installed
	$(BIN)/fukami train deep-convnet --data digits --epochs 40

test: $(VENV)/tested
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/tested
	$(PYTEST) -m slow

lint: $(VENV)/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

docs: $(VENV)/documented
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build

image:
	$(or $(shell command -v docker || command -v podman),docker) build --tag fukami .

install: $(VENV)/tested
	$(BIN)/pre-commit install

# each stamp stands for a set of packages, installed again when pyproject.toml changes
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[all,atari]' --group dev
	touch $@

$(VENV)/documented: $(VENV)/tested
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache
