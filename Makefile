PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

# Photographs that scikit-image carries; anybody's own folder does as well.
define COPY_SAMPLES
import pathlib, shutil, skimage
for name in ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png"):
    shutil.copy(pathlib.Path(skimage.__file__).parent / "data" / name, "runs/demo-photos")
endef
export COPY_SAMPLES

.PHONY: demo test clean

WORKERS ?= 2

demo: $(VENV)/.installed-demo
	@mkdir -p runs/demo-photos
	@$(BIN)/python -c "$$COPY_SAMPLES"
	$(BIN)/figureground label runs/demo-photos --out $(RUN)

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	@# One thread for each worker: two processes with two threads each on two cores are many times slower.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "figureground needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# pip's own progress is quiet; a line says what the wait is for.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "Installing figureground[$*] into $(VENV): torch and its libraries take about 5 GB and a minute or two."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis
