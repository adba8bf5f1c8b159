# make demo | test | lint: each makes .venv by itself. Another Python: make test PYTHON=python3.13 VENV=.venv313
PYTHON ?= python3
VENV ?= .venv
# `make test EXTRAS=dev,tf` also installs TensorFlow, for TensorBoard.
EXTRAS ?= dev

.PHONY: demo test lint clean

demo: $(VENV)/trains
	$(VENV)/bin/python -m experiments.compare --config=configs/digits.py

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports

# What training needs, without the tools of the tests.
$(VENV)/trains: pyproject.toml requirements.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --editable ".[train]"
	touch $@

$(VENV)/installed: pyproject.toml $(wildcard requirements*.txt)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	touch $@ $(VENV)/trains

clean:
	rm -rf .venv* build *.egg-info runs
