PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
RUN := $(VENV)/Scripts/python
else
RUN := $(VENV)/bin/python
endif

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(RUN) make_sample.py
	$(RUN) main.py --train True --threshold True --detection True --config configs/sample.yaml

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadscope --no-loadscope-reorder

bench: $(VENV)/.installed-dev
	for name in help metrics synthesis train_small detection evaluate; do $(RUN) -m benchmarks.$$name || exit 1; done
	$(RUN) -m benchmarks.inference --width 32 --channels 16 --size 128
	$(RUN) -m benchmarks.epoch --images 64

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) sample checkpoints/*/sample results/sample
