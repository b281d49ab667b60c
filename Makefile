PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
RUN := $(VENV)/Scripts/python
else
RUN := $(VENV)/bin/python
endif

.PHONY: demo test faults lint bench clean

demo: $(VENV)/.installed
	$(RUN) make_sample.py
	$(RUN) main.py --train True --threshold True --detection True --config configs/sample.yaml

# The tests start hundreds of processes: each would compile the project's modules again where Python is told to keep none.
test: $(VENV)/.installed-dev lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadscope --no-loadscope-reorder

faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 FAULTS=all $(RUN) -m pytest -n 2 --dist worksteal tests/faults -rP

bench: $(VENV)/.installed-dev
	$(RUN) -m benchmarks.evaluation startup
	$(RUN) -m benchmarks.evaluation metrics
	$(RUN) -m benchmarks.training synthesis
	$(RUN) -m benchmarks.training step --width 32 --channels 16 --size 128 --batch 8 --runs 9
	$(RUN) -m benchmarks.evaluation detection
	$(RUN) -m benchmarks.evaluation batch
	$(RUN) -m benchmarks.inference networks --width 32 --channels 16 --size 128
	$(RUN) -m benchmarks.training epoch --images 64

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt constraints.txt $(VENV)/.installed
	$(RUN) -m pip install -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) sample checkpoints/*/sample results/sample
