# Everything starts from a bare machine with Python 3.11, venv and make.
PYTHON ?= python3
BIN := .venv/bin
# Files of tests that run at a time.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# PyTorch and oneDNN on x86-64 use no instructions beyond these: most laptops have no others.
MASKED := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2

.PHONY: demo test test-masked lint docs clean

demo: .venv/installed
	$(BIN)/ramify demo

test: .venv/installed lint
	$(PYTEST)

# The suite as on a processor without AVX-512 and bfloat16 products.
test-masked: .venv/installed
	$(MASKED) $(PYTEST)

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
