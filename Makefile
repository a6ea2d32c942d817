.PHONY: check fix gpu bench

check:  ## what CI runs, in the current environment; needs no GPU
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	pytest

fix:
	ruff check --fix .
	ruff format .

gpu:  ## the tests on the device, the slow ones included
	pytest --slow

bench:  ## the tables of docs/performance.md, measured on this machine
	python profiling/run.py all --out profiling/results
