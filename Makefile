# make demo / make test set everything up by themselves: a virtual environment with the locked packages.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CORES  ?= all

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-cluster lint bench clean

demo: $(STAMP)
	snakemake --profile workflow/profiles/local --cores $(CORES)
	@echo "Open results/demo/leaderboard.html"

test: $(STAMP)
	python -m pytest

# Jobs on processes of this machine, then on a Slurm that the tests start themselves, which needs root and the packages
# of tests/slurm/cluster/install-slurm --accounting.
test-cluster: $(STAMP)
	python -m pytest tests/launch tests/slurm

lint: $(STAMP)
	ruff check .
	ruff format --check .
	pyright
	snakefmt --check Snakefile workflow
	snakemake --lint
	sis config check
	pip check

clean:
	rm -rf artefacts logs .snakemake results/demo results/tiny

# torch comes as the build that the package index offers (CPU or CUDA); constraints.txt keeps it and torchvision a pair.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	MMCV_WITH_OPS=0 $(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[test,slurm,sd,seg]'
	@touch $@
