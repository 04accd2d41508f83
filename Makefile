# make demo   set up, fine-tune the bundled model on sample_data.txt, generate from it
# make test   set up, check style and types, run the tests
# make browser  install Chromium, if it is missing, for the tests in a browser (Debian, as root)
# make test-oracle   2,000 random configurations against transformers' own generate
# make test-arm   compile the kernels for three Arm processors and test them under emulation (on Debian)
# make mutation   break the decoders and the filter chain in hundreds of small ways and list what no test notices
# make bench-setup  install the rivals of benchmarks/, llama.cpp built for this processor
# make bench  measure everything (45 to 90 minutes), fill docs/benchmarks.md
# make gpu-check  on a GPU machine: GPU tests, generation and training measured, at most 8 minutes
# make test-kills   60 training runs and 5 generations in 4 processes killed at random moments, and resumed
# make test-disconnects   10,000 requests to a server, a quarter of which hang up
# make clean  remove what these made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo_model

.PHONY: setup demo test browser test-oracle test-arm test-kills test-disconnects mutation bench-setup bench gpu-check clean
.DELETE_ON_ERROR:

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	touch $@

demo: $(DEMO)/trained
	@for strategy in greedy beam top_p; do \
		echo; echo "== $$strategy =="; \
		$(BIN)/python generate_from_finetuned.py --model_path $(DEMO) --decoding $$strategy \
			--prompt "The dragon" --num_sequences 1 --max_length 80 $$( [ $$strategy = top_p ] && echo --seed 1 ) || exit 1; \
	done

$(DEMO)/trained: | setup
	$(BIN)/python finetune_gpt2.py --model_name gpt2-tiny --train_file sample_data.txt --output_dir $(DEMO) --overwrite \
		--epochs 3 --learning_rate 3e-4
	touch $@

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

browser:
	@command -v chromedriver > /dev/null || { apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends chromium chromium-driver; }

test-oracle: setup
	GPT2TG_ORACLE=2000 $(BIN)/python -m pytest tests/test_oracle.py -s

# Needs no setup: Python and numpy for Arm go to $(VENV)/arm.
test-arm:
	PYTHONPATH=. $(PYTHON) tests/engine/cpu/emulated_arm.py

mutation: $(VENV)/mutmut-installed
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

$(VENV)/mutmut-installed: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet mutmut==3.8.1
	touch $@

bench-setup: setup
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(BIN)/python -m pip install --disable-pip-version-check --quiet \
		--no-binary llama-cpp-python -r requirements.txt -r benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-export
	.venv-export/bin/python -m pip install --disable-pip-version-check --quiet -r benchmarks/requirements-export.txt
	.venv-export/bin/python -m pip uninstall --quiet --yes torchvision  # nothing needs it, and its build may not fit torch's

bench: bench-setup
	$(BIN)/python benchmarks/decode.py --overwrite
	$(BIN)/python benchmarks/decode.py --company --overwrite
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/chart.py

# Needs no setup: a GPU machine often has a torch of its own, which fits its driver, and no network.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py

test-kills: setup
	$(BIN)/python tests/training/kills.py --kills 60
	$(BIN)/python tests/batch/generation_kills.py --prompts 10000 --processes 4 --kills 5

test-disconnects: setup
	$(BIN)/python tests/serving/disconnects.py --requests 10000

clean:
	rm -rf $(VENV) .venv-export $(DEMO) mutants gpu-check
