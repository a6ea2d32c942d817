.PHONY: check fix gpu bench site

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
	python profiling/run.py all

site:  ## the pages as a site, in build/site: pip install mkdocs-material "mkdocstrings[python]"
	rm -rf build/docs && mkdir -p build && cp -r docs build/docs
	sed 's#(docs/#(#g' README.md > build/docs/index.md
	printf '# API\n\n::: spiketriton.api\n\n::: spiketriton_kernels\n\n::: spiketriton_kernels.nn\n' > build/docs/api.md
	python -m mkdocs build --strict --site-dir build/site
