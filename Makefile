# make book   every notebook with papermill on the embedded data, then the site in _build/html
# make test   the tests (fast, offline, no GPU)
# make lab    JupyterLab on the notebooks, in the same environment
# make runs   the tuned models that notebooks share, into results/zoo: only what is missing or stale (hours if it is all)
# make site   the site alone, from notebooks that are run; OWN=folder sets numbers of a run of yours beside the book's
# make single the whole book as one PDF, after make book; the welcome page then has a link to it
# make publish REMOTE=git@github.com:you/your-book.git   the site, tested, to the branch gh-pages of that repository
# make lint   ruff on code and notebooks, codespell on all that is written
# make links  asks every link that leads out of the book (needs a network)
# make clean  all that can be made again
# LOCKED=1 installs the versions of requirements.lock
# JOBS notebooks, or tests, run at a time: JOBS=1 needs half the memory
PYTHON ?= python3
PARAMS ?= notebooks/params/quick.yaml
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
PIP_EXTRA ?=
LOCKED ?=
PAGES ?= gh-pages
export OMP_NUM_THREADS ?= 2
export BRAINLIB_CACHE ?= $(CURDIR)/_build/cache

.PHONY: book test lint clean notebooks site runs lab publish no-remote single links
.DELETE_ON_ERROR:

# whether the versions are locked is part of the name, so that a change of it installs anew
READY := $(VENV)/ready$(if $(LOCKED),-locked)

$(READY): pyproject.toml $(if $(LOCKED),requirements.lock)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_EXTRA) $(TORCH)
	$(BIN)/python -m pip install --quiet --no-compile $(if $(LOCKED),-c requirements.lock) -e ".[book,test,dev]"
	$(BIN)/python -m compileall -qq -j 0 -x /tests/ $(VENV)/lib || true
	rm -f $(VENV)/ready*
	touch $@

notebooks: $(READY)
	$(BIN)/python tools/run_notebooks.py --jobs $(JOBS) --params $(PARAMS)

site: $(READY)
	$(BIN)/python tools/build_book.py $(if $(OWN),--own $(OWN))
	$(BIN)/python -m pytest tests/test_site.py -m site

book: notebooks
	$(MAKE) site

publish: $(if $(REMOTE),site,no-remote)
	$(MAKE) single
	$(BIN)/ghp-import --no-jekyll --no-history --force --push --remote $(REMOTE) --branch $(PAGES) --message "The book" _build/html

no-remote:
	$(error REMOTE is not set: make publish REMOTE=<address of a git repository>)

links: $(READY)
	$(BIN)/python tools/build_book.py --links

single: $(READY)
	$(BIN)/python tools/single.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not site" tests brainlib

lab: $(READY)
	$(BIN)/python -m jupyterlab notebooks

runs: $(READY)
	$(BIN)/snakemake --profile workflow/profiles/local

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

clean:
	rm -rf _build $(VENV) *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
