# `make check` is what a change must pass; ./test makes .venv.
BIN = .venv/bin

.PHONY: check lint types floors test docs

check: lint types floors test

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/pyright

floors:
	$(BIN)/lint-imports --no-logo

test:
	./test

docs:
	$(BIN)/python tests/structure/test_cli_reference.py
