# make demo    set up, then train on the embedded corpus, plainly and selectively, and compare
# make test    set up, then run the tests
# make check   everything that a change must pass
# make bench-speed   training, writing and what surrounds them, beside plain scripts
# make bench-prepare preparation, beside the disk and the tokenizer alone
# make bench-kernels   products of low-bit layers, and generation with them
# make results       the tables of kept benches, in README and docs
# make gpu-check     whether all is right and fast on this GPU
# make reliability   kills, damage, hostile files, full disks: about half an hour
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
READY = $(VENV)/.ready

.PHONY: demo test test-slow bench-speed bench-prepare bench-kernels results gpu-check reliability check format lint type package golden docs clean

# torch first and pinned: a range would take the newest build, with gigabytes of GPU libraries.
# The stamp comes last, so that an installation that was cut off is done again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/eff prepare python --offline
	$(BIN)/eff baseline --preset nano --data python-bpe4096 --out runs/demo --resume --offline
	$(BIN)/eff generate runs/demo "def " --max-new-tokens 120 --offline
	$(BIN)/eff aql --preset nano --data python-bpe4096 --ratio 0.5 --tokens 1500000 \
		--out runs/demo-aql --resume --offline
	$(BIN)/eff report runs/demo runs/demo-aql --offline

# Two at a time: most of them use one core.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Take these alone: their ratios are steadier on a quiet machine. About half an hour. What is
# stopped goes on; what is finished is not measured again before runs/bench is moved away.
bench-speed: $(READY)
	$(BIN)/eff bench speed --out build/bench-speed --offline
	$(BIN)/python benchmarks/overheads.py --out docs/data/overheads.json
	$(BIN)/python benchmarks/generation.py --out docs/data/generation.json
	$(BIN)/python benchmarks/tables.py build/bench-speed/bench.json

bench-prepare: $(READY)
	$(BIN)/eff bench speed --arms prepare --out build/bench-prepare --offline
	$(BIN)/python benchmarks/tables.py build/bench-prepare/bench.json

bench-kernels: $(READY)
	$(BIN)/python benchmarks/kernels.py

# The tables of docs/results/*.json, in README and docs.
results: $(READY)
	$(BIN)/python benchmarks/results.py

gpu-check: $(READY)
	$(BIN)/python benchmarks/gpu_check.py --out docs/data/gpu.json

# Results are kept in runs/reliability; what is there is not measured again without --again.
reliability: $(READY)
	$(BIN)/python benchmarks/reliability.py
	$(BIN)/python benchmarks/reliability.py --readme

check: lint type
	$(MAKE) test
	$(MAKE) package

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lint: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/codespell effcli tests examples benchmarks docs *.md
	$(BIN)/python docs/make_reference.py --check
	$(BIN)/python benchmarks/results.py --check

type: $(READY)
	$(BIN)/mypy

# The wheel, alone in an environment of its own, does what the checkout does.
package: $(READY)
	rm -rf dist build/alone
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(PYTHON) -m venv build/alone
	build/alone/bin/python -m pip --disable-pip-version-check --quiet install \
		--constraint constraints.txt torch
	build/alone/bin/python -m pip --disable-pip-version-check --quiet install \
		--constraint constraints.txt dist/*.whl
	build/alone/bin/eff --help > /dev/null
	cd build && alone/bin/eff prepare grammar:1 --max-tokens 20000 --out alone/corpus --quiet
	cd build && alone/bin/eff baseline --data alone/corpus --steps 3 --out alone/run --quiet
	rm -rf build/alone

golden: $(READY)
	$(BIN)/python -m pytest --golden tests/cli tests/numerics/test_training.py

docs: $(READY)
	$(BIN)/python docs/make_reference.py

clean:
	rm -rf $(VENV) build dist data runs comparison.html .mypy_cache .pytest_cache .ruff_cache
