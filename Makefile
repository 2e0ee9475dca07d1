# Everything a newcomer types: make repro, make test.  `make help` lists the rest.
# PROFILE selects a file of profiles/ (laptop by default); TARGETS stages, such as pilot_study (default: all);
# JOBS how many stages run at a time (default: one for each core, one for profiles of real models).

PROFILE ?= laptop
PYTHON3 ?= python3

# An active conda or venv environment is used as it is; otherwise .venv is made here.
ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),$(CURDIR)/.venv)
export PATH := $(ENV)/bin:$(PATH)
# Says for which environment the packages are installed; no path with the folder's name in it, which may hold spaces.
STAMP := .setup-done
$(shell test "$$(cat $(STAMP) 2>/dev/null)" = "$(ENV)" || rm -f $(STAMP))
NEW_ENOUGH = -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "Python 3.11 or newer is needed, and this is not:" $(1) "(make PYTHON3=python3.11 names another one)"; exit 1; }

.PHONY: help setup stand-ins repro doctor plan fetch unpack export test soak report lab lint clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## create the environment (done by the others when needed)

$(STAMP): pyproject.toml constraints.txt
	@if test -x "$(ENV)/bin/python"; then "$(ENV)/bin/python" $(call NEW_ENOUGH,"$(ENV)/bin/python"); \
	  else $(PYTHON3) $(call NEW_ENOUGH,"$(PYTHON3)"); fi
	test -x "$(ENV)/bin/python" || $(PYTHON3) -m venv "$(ENV)"
	"$(ENV)/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	"$(ENV)/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@printf %s "$(ENV)" > $@

repro: $(STAMP)  ## run the pipeline of PROFILE, from nothing to tables and figures
	@python -m workbook repro $(PROFILE) $(TARGETS) $(if $(JOBS),--jobs $(JOBS))

doctor: $(STAMP)  ## check what PROFILE needs, and say how to get what is missing (repro does it first)
	@python -m workbook doctor $(PROFILE)

plan: $(STAMP)  ## GPU-hours, time, disk and cost of PROFILE, run by run, and what is done
	@python -m workbook plan $(PROFILE)

fetch: $(STAMP)  ## bring the models and data of PROFILE here, where there is a network
	@python -m workbook fetch $(PROFILE)

stand-ins: $(STAMP)  ## make the embedded profiles' models again, from nothing (hours on CPUs, minutes on a GPU)
	python -m workbook.world.stand_ins --again

unpack: $(STAMP)  ## put back what the runs of PROFILE have answered and measured, from the archives in git
	@python -m workbook unpack $(PROFILE)

export: $(STAMP)  ## write the run folder RUN as a plain transformers LLaVA to the folder OUT
	@python -m workbook export "$(RUN)" "$(OUT)"

test: $(STAMP)  ## run the tests, on up to four cores
	python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

soak: $(STAMP)  ## kill and damage stages of a copy, at random moments, and compare (KILLS=30 SEED=0)
	python tests/soak.py --kills $(or $(KILLS),30) --seed $(or $(SEED),0)

report: $(STAMP)  ## show the report of PROFILE in a browser
	@python -m workbook report $(PROFILE)
	-@python -m webbrowser "file://$(CURDIR)/runs/$(PROFILE)/report/index.html" > /dev/null

lab: $(STAMP)  ## open JupyterLab on the notebooks
	jupyter lab notebooks

lint: $(STAMP)  ## check style
	ruff check . && ruff format --check .

clean:  ## remove what git ignores in runs/, but for data; what DVC has in its cache comes back with the next repro
	git clean -fdX -e '!/runs/*/data/' runs
