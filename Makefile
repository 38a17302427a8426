# Everything is installed into .venv from pinned versions; nothing else on the machine is used.
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
BIN := .venv/bin
RUN ?= runs/demo
WORKERS ?= 2

.PHONY: install demo test prove grid lint docs lock clean

install: .venv/installed

# The CPU build of vLLM names torch builds that its registry does not have, so it goes in without its dependencies,
# after them; the package with the demonstration's model asks for an inference engine that is not used here. DeepSpeed is
# built against the torch that is there, without kernels of its own.
.venv/installed: requirements/cpu.txt requirements/built-here.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements/cpu.txt
	$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements/no-deps.txt
	DS_BUILD_OPS=0 $(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation \
		-r requirements/built-here.txt
	$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Evaluate, train with GRPO through vLLM, evaluate again: one table, one picture.
demo: install
	$(BIN)/posttrain train recipes/grpo-arithmetic.yaml --quiet run.folder=$(RUN)
	@echo "curves: $(RUN)/curves.png   roll-outs: $(BIN)/posttrain inspect $(RUN) --step 1"

# What holds a clock to account comes last, alone.
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -m "not prove and not grid and not clock"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "clock and not prove"

# Heavier proofs: the real 135M model, killed and resumed through vLLM, and accuracy reached.
prove: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -m prove --ignore tests/prove
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/pytest -m prove tests/prove

# Every strategy times every way to generate, times five kinds of model: the cells that `make test` leaves out.
grid: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -m grid tests/hybrid

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy --no-incremental

# The page of the table; a test fails where it is out of date.
docs: install
	mkdir -p docs
	$(BIN)/posttrain algorithms --markdown > docs/algorithms.md

# Resolve requirements/cpu.in anew and write the pins down.
lock:
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -r requirements/cpu.in
	$(BIN)/pip freeze --exclude torch > requirements/cpu.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache build dist
