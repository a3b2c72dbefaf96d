# Everything starts from a bare machine with Python 3.11, venv and make.
PYTHON ?= python3
BIN := .venv/bin
# Files of tests that run at a time: one more than the two cores expected, since some tests wait rather than compute.
WORKERS ?= 3
# In the order of their names: ordered by their numbers of tests, long files with one test would come last.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# PyTorch and oneDNN on x86-64 use no instructions beyond these: most laptops have no others.
MASKED := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
# The tests whose outcome could depend on them: products and their speed, passes of the model, compiled programs.
MASKED_TESTS := tests/bench/test_step.py tests/model tests/test_old_files.py $(addprefix tests/, \
  inference/integrations/test_calculator.py inference/test_encoder_kinds.py train/test_loop.py \
  $(addprefix train/optimization/test_, compiled.py objective.py precision.py))

.PHONY: demo test test-failed test-slow test-slow-failed test-masked test-masked-failed lint docs docs-version wheel clean

demo: .venv/installed
	$(BIN)/ramify demo

test: .venv/installed lint
	$(PYTEST)

# Those that take longest; with `make test`, all.
test-slow: .venv/installed
	$(PYTEST) -m slow

# As on a processor without AVX-512 and bfloat16 products.
test-masked: .venv/installed
	$(MASKED) $(PYTEST) -m "" $(MASKED_TESTS)

# Those that failed last, one after another.
test-failed: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" --last-failed

test-slow-failed: test-failed

test-masked-failed: .venv/installed
	$(MASKED) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" --last-failed

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: .venv/installed
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

# Adds the site of this version to the branch gh-pages of this checkout, beside those of earlier versions; not pushed.
docs-version: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 mike deploy --update-aliases \
	  "$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/ramify/__init__.py)" latest
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 mike set-default latest

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
