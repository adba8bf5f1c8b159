# make demo | test | lint: each makes .venv by itself. Another Python: make test PYTHON=python3.13 VENV=.venv313
PYTHON ?= python3
VENV ?= .venv
# `make test EXTRAS=dev,tf` also installs TensorFlow, for TensorBoard.
EXTRAS ?= dev

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(VENV)/bin/python -m experiments.compare --config=configs/digits.py

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n auto $(ARGS)

lint: $(VENV)/installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports

$(VENV)/installed: pyproject.toml requirements.txt requirements-dev.txt requirements-gcs.txt requirements-tf.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf .venv* build *.egg-info runs
