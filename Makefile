PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Two processes, with two GPUs or with none; a machine with one GPU gets one.
GPUS = $(shell nvidia-smi --list-gpus 2>/dev/null | grep --count '^GPU')
CONFIG = accelerate_configs/$(if $(filter 1,$(GPUS)),1gpu,2gpu).yaml
DEMO = $(BIN)/accelerate launch --config_file $(CONFIG) train_segmentation.py

.PHONY: demo test test-oldest gpu clean

demo: $(VENV)/.installed  ## train a segmenter on built-in data, in two processes, for a few minutes
	$(DEMO) --epochs 12

test: $(VENV)/.installed-test  ## every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-oldest: $(VENV)-oldest/.installed  ## the oldest versions: the layer, a run of each script, video decoding
	$(VENV)-oldest/bin/python -m pytest --numprocesses 2 --dist loadfile $(OLDEST)

OLDEST = tests/test_norm.py tests/test_norm_processes.py tests/test_video_data.py \
	tests/test_detection_metrics.py tests/test_data_files.py \
	tests/test_scripts.py::test_files_metrics_and_tensorboard

$(VENV)-oldest/.installed: requirements-oldest.txt requirements-test.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --disable-pip-version-check -r requirements-oldest.txt \
		$$(grep -v '^-r' requirements-test.txt | sed 's/#.*//')
	touch $@

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

clean:  ## remove the virtual environments, not the runs
	rm -rf $(VENV) $(VENV)-oldest
