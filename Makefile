PYTHON ?= python
CPP := $(shell find csrc tests tools benchmarks -name "*.h" -o -name "*.c" -o -name "*.cpp" -o -name "*.cu" -o -name "*.cuh")

.PHONY: install test lint format docs bench compat clean

install:
	$(PYTHON) -m pip install -c constraints.txt .

test:
	$(PYTHON) -m pip install -c constraints.txt ".[test]" && pytest -x -q

lint:
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run -Werror $(CPP)

format:
	ruff check --fix .
	ruff format .
	clang-format -i $(CPP)

docs:
	$(PYTHON) -m pip install -c constraints.txt ".[docs]" && sphinx-build -W --keep-going -q -b html docs build/docs

bench:
	metagan-fast bench --out benchmarks.jsonl

compat:
	$(PYTHON) tools/compat.py --default

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
