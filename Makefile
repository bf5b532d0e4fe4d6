# make demo   the whole job on generated clips, offline, on a CPU; prints the report's path last
# make test   the dev environment and the tests
# make test-ranks   engines and launchers on several ranks, with DeepSpeed; four minutes
# make test-browser   the report and the explorer in Chromium, where it and its driver are installed
# make test-breaking   killed, damaged, without room, with changed files; five minutes
# make lint   ruff and mypy
# make bench  one script per claim, results to docs/results; bench-learning: what pretraining learns
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
DEMO_OUT ?= outputs/demo
PYTEST_ARGS ?=
# two workers of one thread each: two of two threads wait for one another; a file's tests share what is made for them
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: demo test test-ranks test-browser test-breaking test-all lint bench bench-learning clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone, so that no other package's range can choose its build
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/polyspace demo --out $(DEMO_OUT)

test: $(VENV)/.installed-dev
	$(PYTEST) $(PYTEST_ARGS)

test-ranks: $(VENV)/.installed-dev
	$(PIP) -e ".[deepspeed]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow and dist" tests/train/test_engine.py tests/train/test_ranks.py

test-browser: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/explorer tests/report

test-breaking: $(VENV)/.installed-dev
	$(PYTEST) -m slow tests/breaking

test-all: $(VENV)/.installed-dev
	$(PYTEST) -m "not gpu" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/python bench/featurize.py --out docs/results/featurize.json
	$(PIP) -e ".[torchcodec]"
	$(BIN)/python bench/decode.py --out docs/results/decode.json
	$(BIN)/python bench/convert.py --out docs/results/convert.json
	$(BIN)/python bench/index.py --out docs/results/index.json
	$(BIN)/python bench/attention.py --out docs/results/attention.json
	$(BIN)/python bench/saliency.py --out docs/results/saliency.json
	$(BIN)/python bench/open_loop.py --root $${POLYSPACE_REAL_DATA:-../shared/data}/droid/droid_subset --encoder outputs/saliency/seed_0 --out docs/results/open_loop.json
	$(BIN)/python bench/cost.py --out docs/results/cost.json
	$(BIN)/python bench/ring.py --out docs/results/ring.json
	$(BIN)/python bench/train_step.py --ranks 1 2 --out docs/results/train_step.json
	$(BIN)/python bench/kills.py --kills 3 --out docs/results/kills.json
	$(BIN)/python bench/students.py --hnet outputs/saliency --tubelet outputs/tubelet --out docs/results/students.json
	$(BIN)/python bench/planning.py --encoder outputs/saliency/seed_0 --out docs/results/planning.json
	$(BIN)/python bench/precision.py --steps 250 --out docs/results/precision.json
	$(BIN)/python bench/duplicates.py --root $${POLYSPACE_REAL_DATA:-../shared/data} --out docs/results/duplicates.json
	$(BIN)/python bench/startup.py --out docs/results/startup.json
	$(BIN)/python bench/soak.py --out docs/results/soak.json
	ONEDNN_PRIMITIVE_CACHE_CAPACITY=64 $(BIN)/python bench/soak.py --out docs/results/soak_bounded.json
	$(BIN)/polyspace demo --out outputs/demo
	$(BIN)/python bench/alignment.py --demo outputs/demo --out docs/results/demo.json

# some seven hours on two cores; goes on from what docs/results holds
bench-learning: $(VENV)/.installed-dev
	$(BIN)/python bench/learning.py --out docs/results/learning.json
	$(BIN)/python bench/learning.py --group equal_steps --steps 4000 --out docs/results/learning_equal_steps.json
	$(BIN)/python bench/learning.py --group sweep --seconds 360 --seeds 1 --out docs/results/learning_sweep.json
	$(BIN)/python bench/learning.py --group ablation --steps 4000 --out docs/results/learning_ablation.json
	$(BIN)/python bench/learning.py --group front --steps 4000 --out docs/results/learning_front.json
	$(BIN)/python bench/learning_cost.py --group front --steps 4000 --out docs/results/learning_front.json
	$(BIN)/python bench/learning_page.py

clean:
	rm -rf $(VENV) outputs build dist *.egg-info
