# Everything a newcomer types: make repro, make test.  `make help` lists the rest.
# PROFILE selects smoke, laptop (default), gpu or paper.

PROFILE ?= laptop
export OMP_WAIT_POLICY ?= passive
export PYTHONWARNINGS ?= ignore::FutureWarning

# An active conda or venv environment is used as it is; otherwise .venv is made here.
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
ENV := $(or $(ACTIVE),$(CURDIR)/.venv)
PYTHON3 ?= python3
STAMP := $(ENV)/.viral-workbook
export PATH := $(ENV)/bin:$(PATH)

.PHONY: help setup repro test lab lint clean

help:  ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## create the environment (done by the others when needed)

$(STAMP): pyproject.toml constraints.txt
	test -x $(ENV)/bin/python || $(PYTHON3) -m venv $(ENV)
	$(ENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(ENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

repro: $(STAMP)  ## run the pipeline of PROFILE, from nothing to tables and figures
	python -m viral_core profile $(PROFILE)
	dvc repro

test: $(STAMP)  ## run the tests
	python -m pytest

lab: $(STAMP)  ## open JupyterLab on the notebooks
	jupyter lab notebooks

lint: $(STAMP)  ## check style
	ruff check . && ruff format --check .

clean:  ## remove what is not tracked by git or DVC in runs/
	git clean -fdX runs
