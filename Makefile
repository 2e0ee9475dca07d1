# Everything a newcomer types: make repro, make test.  `make help` lists the rest.
# PROFILE selects smoke, laptop (default), gpu or paper.

PROFILE ?= laptop
# How many stages run at a time.  Tiny models use one core well and two badly: on the embedded profiles each stage gets one.
JOBS ?= $(if $(filter smoke laptop,$(PROFILE)),$(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN),1)
export OMP_WAIT_POLICY ?= passive
export PYTHONWARNINGS ?= ignore::FutureWarning

# An active conda or venv environment is used as it is; otherwise .venv is made here.
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
ENV := $(or $(ACTIVE),$(CURDIR)/.venv)
PYTHON3 ?= python3
STAMP := $(ENV)/.viral-workbook
export PATH := $(ENV)/bin:$(PATH)

.PHONY: help setup stand-ins repro pipeline doctor plan fetch export test report lab lint clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## create the environment (done by the others when needed)

$(STAMP): pyproject.toml constraints.txt
	test -x $(ENV)/bin/python || $(PYTHON3) -m venv $(ENV)
	$(ENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(ENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

repro: $(STAMP) pipeline  ## run the pipeline of PROFILE, from nothing to tables and figures

pipeline:
	python -m workbook doctor $(PROFILE)
	python -m workbook profile $(PROFILE)
	dvc repro

doctor: $(STAMP)  ## check what PROFILE needs, and say how to get what is missing (repro does it first)
	python -m workbook doctor $(PROFILE)

plan: $(STAMP)  ## GPU-hours, time, disk and cost of PROFILE, run by run, and what is done
	python -m workbook plan $(PROFILE)

fetch: $(STAMP)  ## bring the models and data of PROFILE here, where there is a network
	python -m workbook fetch $(PROFILE)

stand-ins: $(STAMP)  ## make the embedded profiles' models again, from nothing (hours on CPUs, minutes on a GPU)
	python -m workbook.world.stand_ins --again

export: $(STAMP)  ## write the run folder RUN as a plain transformers LLaVA to the folder OUT
	python -m workbook export $(RUN) $(OUT)

test: $(STAMP)  ## run the tests
	python -m pytest

report: $(STAMP)  ## show the report of PROFILE in a browser
	python -m workbook report $(PROFILE)
	@echo "$(CURDIR)/runs/$(PROFILE)/report/index.html"
	-python -m webbrowser "file://$(CURDIR)/runs/$(PROFILE)/report/index.html" > /dev/null

lab: $(STAMP)  ## open JupyterLab on the notebooks
	jupyter lab notebooks

lint: $(STAMP)  ## check style
	ruff check . && ruff format --check .

clean:  ## remove what git does not track in runs/; what DVC has in its cache comes back with the next repro
	git clean -fdX runs
