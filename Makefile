PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Two processes, with two GPUs or with none; a machine with one GPU gets one.
GPUS = $(shell nvidia-smi --list-gpus 2>/dev/null | grep --count '^GPU')
CONFIG = accelerate_configs/$(if $(filter 1,$(GPUS)),1gpu,2gpu).yaml
DEMO = $(BIN)/accelerate launch --config_file $(CONFIG) train_segmentation.py

.PHONY: demo test gpu lint clean

demo: $(VENV)/.installed  ## train a segmenter on built-in data, in two processes, for a few minutes
	$(DEMO) --epochs 12

test: $(VENV)/.installed-test  ## every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

DEVICE ?= cuda
gpu: $(VENV)/.installed-test  ## check the layer and the scripts on one GPU and time them; DEVICE=cpu rehearses
	$(BIN)/python benchmarks/gpu.py --device $(DEVICE)

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

clean:  ## remove the virtual environment, not the runs
	rm -rf $(VENV)
