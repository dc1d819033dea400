# The two commands of the README, and what maintainers run. Each makes the virtual environment if there is none.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint environment

quickstart: $(BIN)/ready
	$(BIN)/python examples/quickstart.py $(ARGS)

test: $(BIN)/ready
	$(BIN)/python -m pytest $(ARGS)

lint: $(BIN)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

environment: $(BIN)/ready

$(BIN)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@
