# Each target works on a fresh clone with nothing but Python and make.
PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin

# HOST is not taken from the environment: shells and compilers put other things there
HOST = 127.0.0.1
PORT ?= 8000
MODELS ?= models
# Of the models in the repository one is the default; with a folder of your own, name one where there are several.
DEFAULT_MODEL ?= $(shell test "$(MODELS)" -ef models && echo cifar10-hybrid-s)

# the image to make: cpu or gpu
TARGET ?= cpu
BUILD_ARGS ?=

.PHONY: serve test test-slow test-container check image fuzz bench format clean

serve: $(VENV)/installed-cpu ## run the service (HOST, PORT, MODELS, DEFAULT_MODEL)
	SACCADE_HOST="$(HOST)" SACCADE_PORT="$(PORT)" SACCADE_MODELS="$(MODELS)" SACCADE_DEFAULT_MODEL="$(DEFAULT_MODEL)" \
	exec $(BIN)/python -m service

# processes side by side, a file of tests in one of them
JOBS ?= 2
test: $(VENV)/installed-dev ## every test but the slow ones (JOBS)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-slow: $(VENV)/installed-dev ## minutes of broken files: the whole corpus, and a minute of fuzzing
	$(BIN)/python -m pytest -m slow

# a file that breaks a promise is left in build/fuzz
MINUTES ?= 30
SEED ?= 1
fuzz: $(VENV)/installed-dev ## damaged files and queries, for as long as is asked (MINUTES, SEED)
	$(BIN)/python -m tests.robustness.fuzz --minutes $(MINUTES) --seed $(SEED)

check: $(VENV)/installed-dev ## format, lint, types, import rules, Dockerfile and compose file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

image: ## the container's image saccade:$(TARGET) (TARGET cpu or gpu, BUILD_ARGS to docker build, as PYTHON_IMAGE)
	docker build --target $(TARGET) --tag saccade:$(TARGET) $(BUILD_ARGS) .

# NETWORK=host: where the engine has no bridge. GPU=1: the gpu target too, which downloads 2 GB
test-container: $(VENV)/installed-dev ## builds the image and runs it for real; wants docker with compose (NETWORK, GPU)
	$(BIN)/python -m tests.container.check $(if $(NETWORK),--network $(NETWORK)) $(if $(GPU),--gpu)

# QUICK=1: an indication in some minutes, beside the page; BEFORE=commit: compare with the service as it was there
bench: $(VENV)/installed-bench ## speed against the machine's limit and against other servers (QUICK, BEFORE)
	$(BIN)/python -m benchmarks.run --out build/bench/$(if $(QUICK),quick,full).json $(if $(QUICK),--quick) $(if $(BEFORE),--before $(BEFORE))
	$(if $(QUICK),,cp build/bench/full.json docs/benchmarks.json)
	$(BIN)/python -m benchmarks.report $(if $(QUICK),--results build/bench/quick.json --out build/bench/quick.md)

format: $(VENV)/installed-dev ## rewrite the source in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/installed-%: pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	$(PYTHON) -m venv $$(test -f $(VENV)/pyvenv.cfg && echo --clear) $(VENV)
	@test -f $(VENV)/pyvenv.cfg || { echo "$(VENV) is no virtual environment: give another VENV"; exit 1; }
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[$*]'
	touch $@
