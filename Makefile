# Each target sets up what it needs. Another Python: make test PYTHON=python3.12 VENV=.venv312
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := $(VENV)/bin/python
CTCLIP := $(VENV)/bin/ctclip
INSTALL := $(RUN) -m pip install --no-compile
TORCH := torch==2.13.0+cpu
DEMO := runs/demo

# XLA takes the memory of a step anew each time: huge pages spare its page faults (glibc 2.35 on).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

SHELL := bash -o pipefail
.PHONY: env demo quick test test-fast test-beam lint bench ablation
.DELETE_ON_ERROR:

env: $(VENV)/runtime.done

$(VENV)/runtime.done: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/dev.done: $(VENV)/runtime.done
	$(INSTALL) --editable ".[dev]"
	@touch $@

# Only the tests of PyTorch files need torch: without a CPU build they are skipped, not failed.
$(VENV)/torch.done: $(VENV)/dev.done
	$(INSTALL) "$(TORCH)" \
		|| $(INSTALL) --retries 0 --index-url https://download.pytorch.org/whl/cpu "$(TORCH)" \
		|| echo "no CPU build of torch for this Python: the tests of .pt files will be skipped"
	@touch $@

test: $(VENV)/torch.done
	$(RUN) -m pytest --numprocesses=2 --dist=loadfile

# Between commits: neither drills nor what starts programs or compiles the real model.
test-fast: $(VENV)/torch.done
	$(RUN) -m pytest --numprocesses=2 --dist=loadfile -m "not drill and not slow"

# Beam's pins differ from those of training, so it has an environment of its own.
BEAM_VENV := $(VENV)-beam

$(BEAM_VENV)/done: requirements-beam.txt
	$(PYTHON) -m venv $(BEAM_VENV)
	$(BEAM_VENV)/bin/python -m pip install --no-compile --requirement requirements-beam.txt \
		"pytest>=8.3,<10" "hypothesis>=6.100,<7" "pandas>=2.2,<4"
	@touch $@

test-beam: $(BEAM_VENV)/done
	$(BEAM_VENV)/bin/python -m pytest tests/data_pipelines/test_beam.py

lint: $(VENV)/dev.done
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(VENV)/torch.done
	$(RUN) -m benchmarks.run

# Phantoms that no training reads: enough of them for differences of 0.01.
ABLATION := runs/ablation

$(ABLATION)/shards.done: $(VENV)/torch.done
	$(RUN) -m data_pipelines.sources.phantoms --out=$(ABLATION)/data \
		--seed=1 --train_scans=1 --valid_scans=1200
	$(RUN) -m data_pipelines.prepare --source=phantoms --data=$(ABLATION)/data \
		--out=$(ABLATION)/shards --splits=valid --shape=24,48,48 --spacing=12,7.5,7.5
	@touch $@

ablation: $(DEMO)/shards.done $(ABLATION)/shards.done
	$(RUN) -m benchmarks.ablation --seeds=2

# Each stage of the demo leaves a mark when it is done; an interrupted one is taken up again. What the
# programs print is in $(DEMO)/log.txt, and its last line on the terminal beside bars and errors.
DEMO_GRID := --shape=24,48,48 --spacing=12,7.5,7.5
DEMO_SCANS := --train_scans=4000 --valid_scans=300
DEMO_CALIBRATION_SCANS := 300
DEMO_CONFIG := configs/phantoms.py
DEMO_MINUTES := 15 to 25
SHOW = | tee -a $(DEMO)/log.txt | if [ -t 1 ]; then \
	while IFS= read -r line; do printf '\r\033[K%.100s' "$$line"; done; echo; else cat; fi

demo: $(DEMO)/evaluation/report.html
	@echo
	@echo "$(DEMO_NOTE)Open $< in a browser. Then try:"
	@echo "  $(CTCLIP) phantoms --out=$(DEMO)/scans --samples=3"
	@echo "  $(CTCLIP) predict $(DEMO)/scans/*.nii.gz --model=$(DEMO)/train --out=$(DEMO)/prediction --heatmaps=3"
	@echo "  $(CTCLIP) index --store=$(DEMO)/store --model=$(DEMO)/train --shards=$(DEMO)/shards"
	@echo "  $(CTCLIP) search --store=$(DEMO)/store --model=$(DEMO)/train --text='Pleural effusion.'"

# A taste of the demo: a tenth of its scans and of its training, coarse patches.
quick:
	@$(MAKE) --no-print-directory demo DEMO=runs/quick DEMO_CONFIG=configs/phantoms.py:quick \
		DEMO_SCANS="--train_scans=300 --valid_scans=60" DEMO_CALIBRATION_SCANS=100 \
		DEMO_MINUTES="2 to 4" DEMO_NOTE="A taste: so little training is hardly better than chance. "

$(DEMO)/data.done: $(VENV)/runtime.done
	@mkdir -p $(DEMO)
	@echo "This takes $(DEMO_MINUTES) minutes on two CPU cores."
	@echo "[1/5] synthetic chest CTs with reports"
	@$(RUN) -m data_pipelines.sources.phantoms --out=$(DEMO)/data $(DEMO_SCANS) $(SHOW)
	@touch $@

$(DEMO)/shards.done: $(DEMO)/data.done
	@echo "[2/5] preparation"
	@$(RUN) -m data_pipelines.prepare --source=phantoms --data=$(DEMO)/data --out=$(DEMO)/shards \
		$(DEMO_GRID) --sentencepiece_vocab=1000 $(SHOW)
	@touch $@

$(DEMO)/train.done: $(DEMO)/shards.done
	@echo "[3/5] training on the reports alone: most of the time"
	@$(RUN) main.py --config=$(DEMO_CONFIG) --config.data.shards=$(DEMO)/shards \
		--workdir=$(DEMO)/train $(SHOW)
	@touch $@

# On scans of their own: neither those of the training nor those of the report.
$(DEMO)/calibration.done: $(DEMO)/train.done
	@echo "[4/5] calibration on $(DEMO_CALIBRATION_SCANS) other scans"
	@$(RUN) -m data_pipelines.sources.phantoms --out=$(DEMO)/calibration/data \
		--seed=1 --train_scans=1 --valid_scans=$(DEMO_CALIBRATION_SCANS) $(SHOW)
	@$(RUN) -m data_pipelines.prepare --source=phantoms --data=$(DEMO)/calibration/data \
		--out=$(DEMO)/calibration/shards --splits=valid $(DEMO_GRID) $(SHOW)
	@$(RUN) -m ctclip_jax.evaluate --model=$(DEMO)/train/export \
		--shards=$(DEMO)/calibration/shards --out=$(DEMO)/calibration/evaluation $(SHOW)
	@$(RUN) -m ctclip_jax.calibrate --model=$(DEMO)/train/export \
		--evaluation=$(DEMO)/calibration/evaluation --shards=$(DEMO)/calibration/shards $(SHOW)
	@touch $@

$(DEMO)/evaluation/report.html: $(DEMO)/calibration.done
	@echo "[5/5] evaluation on unseen scans"
	@$(RUN) -m ctclip_jax.evaluate --model=$(DEMO)/train/export --shards=$(DEMO)/shards \
		--out=$(DEMO)/evaluation $(SHOW)
