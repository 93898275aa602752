# Two commands: `make train` trains PPO and shows it, `make test` runs the tests. Both set up .venv first.

PYTHON ?= python3
ENV ?= CartPole-v1
BIN = .venv/bin

.PHONY: train test lint clean

train: .venv/ready
	$(BIN)/proximo train $(ENV) $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Proximo needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv
