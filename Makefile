# make demo    set up .venv and run the main job (offline data, under 3 minutes on 2 cores)
# make check   set up .venv and run every check: format, lint, types, import rules, tests
# make kernels-report   compile every kernel for sm_80 and sm_90 (no GPU needed) and hold the machine code to its gates
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo check test fix kernels-report clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

# eager: at 14 short epochs compiling would take longer than it saves
demo: $(READY)
	$(BIN)/tq train --dataset digits --model resnet20 --scheme w1a2 --float-epochs 6 --epochs 8 --no-compile --show auto

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses auto --dist loadfile

test: $(READY)
	$(BIN)/pytest --numprocesses auto --dist loadfile

fix: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

kernels-report: $(READY)
	$(BIN)/python -m triton_kernels.offline --json benchmarks/results/kernels-offline.json

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
