# Everything starts from a bare machine with Python 3.11, venv and make.
PYTHON ?= python3
BIN := .venv/bin
# Files of tests that run at a time.
WORKERS ?= 2

.PHONY: demo test lint docs clean

demo: .venv/installed
	$(BIN)/ramify demo

test: .venv/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
