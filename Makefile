PYTHON ?= python
CPP := $(shell find csrc tests tools -name "*.h" -o -name "*.cpp" -o -name "*.cu" -o -name "*.cuh")

.PHONY: install test lint format bench clean

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

bench:
	metagan-fast bench --out benchmarks.jsonl

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
