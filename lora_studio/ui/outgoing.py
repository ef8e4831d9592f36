"""Files on their way to the browser: Gradio hands out only what lies in the temporary folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import gradio as gr
from gradio.events import Dependency

from lora_studio.runs.housekeeping import drop_old

PREFIX = "lora-studio-"
TAKEN_S = 3600.0
"""Gradio takes its own copy at once; what is as old as this is removed."""


def fresh_folder() -> Path:
    """Return a new temporary folder."""
    drop_old(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"), age_s=TAKEN_S)
    return Path(tempfile.mkdtemp(prefix=PREFIX))


def lend(files: Iterable[str]) -> list[str]:
    """Return copies of files that the page may show, each under its own name."""
    return [str(shutil.copy2(file, fresh_folder())) for file in files]


def handed(elem_id: str) -> gr.DownloadButton:
    """Build the button, out of sight, that hands a file to the browser; see `hand_out`."""
    return gr.DownloadButton("", elem_classes="ls-unseen", elem_id=elem_id)


def hand_out(packing: Dependency, file: gr.DownloadButton) -> None:
    """Let the browser take a file as soon as an event has packed it; nothing where that fails."""
    packing.success(None, js=f"() => document.querySelector('#{file.elem_id}').click()")
