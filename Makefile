# The two commands of the README, and what maintainers run. Each makes the virtual environment if there is none.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-timm lint gpu-check torture audit environment

quickstart: $(BIN)/ready
	$(BIN)/python examples/quickstart.py $(ARGS)

test: $(BIN)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# The tests that need timm and torchvision, in an environment of their own: torchvision's extension fits only the very
# build of torch that it was made for, the package index's (`===`, with CUDA: 5.5 GB), and beside another one it stops
# transformers from being imported.
test-timm: .venv-timm/ready
	OMP_NUM_THREADS=1 .venv-timm/bin/python -m pytest tests/sparse/test_timm.py tests/sparse/test_torchvision.py $(ARGS)

.venv-timm/ready: pyproject.toml constraints.txt
	test -x .venv-timm/bin/python || $(PYTHON) -m venv .venv-timm
	.venv-timm/bin/pip install -q -c constraints.txt "$$(sed -n 's/^torch==/torch===/p' constraints.txt)" \
	    -e '.[timm,spconv]' pytest
	touch $@

lint: $(BIN)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Six minutes on a GPU: right, fast, nothing waited for, resumed bit for bit. ARGS="--device cpu --small" tries it out.
gpu-check: $(BIN)/ready
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

# 60 kills of small runs of seven kinds at random moments, each resumed and compared: a quarter of an hour of one core.
torture: $(BIN)/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/torture.py $(ARGS)

# Known holes of the pinned versions, and of the oldest ones that pyproject.toml admits (asks the package index, and
# fails for what that does not know), and licences.
audit: $(BIN)/ready
	$(BIN)/pip install -q pip-audit pip-licenses
	$(BIN)/uv pip compile -q --no-deps --all-extras --resolution lowest-direct -o .venv/lowest.txt pyproject.toml
	failed=0; for list in constraints.txt overrides.txt .venv/lowest.txt; do \
	    sed 's/>=/==/' $$list > .venv/audited.txt; \
	    $(BIN)/pip-audit --strict --disable-pip --no-deps -r .venv/audited.txt || failed=1; \
	done; exit $$failed
	$(BIN)/pip-licenses --partial-match --packages $$(sed -n 's/==.*//p' constraints.txt) \
	    --allow-only 'Apache;BSD;MIT;MPL;PSF;Python Software Foundation;HPND;ISC;Unlicense;CNRI'

environment: $(BIN)/ready

$(BIN)/ready: pyproject.toml constraints.txt overrides.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]' uv
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt --override overrides.txt gradio
	touch $@
