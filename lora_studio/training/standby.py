"""The waiting side of a stand-by: import what any training needs, then take a run from stdin."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from lora_studio.hardware import probe
from lora_studio.runs.folder import RunFolder

log = logging.getLogger(__name__)

WITHOUT_CUDA = (
    "datasets",
    "transformers.modeling_utils",
    "lora_studio.models.loading",
    "lora_studio.data.preparation",
)
"""What imports no PEFT: that imports bitsandbytes, which asks each GPU for its capability, and so
initialises CUDA (bitsandbytes 0.50.2, cuda_specs.py)."""
WHOLE = (*WITHOUT_CUDA, "lora_studio.training.session")


def wait_for_run() -> list[str] | None:
    """Return the worker's arguments when there is a run, None if the app ends before.

    From then on this process writes to the run's log, and has the run's own environment.
    """
    _import_ahead(WITHOUT_CUDA if probe().device == "cuda" else WHOLE)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    os.environ.update(message["environment"])
    arguments: list[str] = message["arguments"]
    _write_to(RunFolder(Path(arguments[0])).stdout)
    log.info("a worker that was ready takes the run")
    return arguments


def _import_ahead(names: tuple[str, ...]) -> None:
    # What cannot be imported is said by the run that imports it again.
    with suppress(Exception):
        for name in names:
            import_module(name)


def _write_to(file: Path) -> None:
    """Have this process, and all that it starts, read nothing and write into a file."""
    with Path(os.devnull).open("rb") as nothing, file.open("ab") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
