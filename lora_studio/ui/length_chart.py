"""The lengths of the rows, with the maximum length as a line that moves with its slider.

The browser counts what is cut: it has every length and needs no answer from the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from lora_studio.ui.language import Voice
from lora_studio.ui.view import view

# Filled in by the browser.
ROWS, COUNT, LENGTH = "{rows}", "{n}", "{length}"


def build() -> gr.HTML:
    """Build the component; its value is what `value` returns."""
    return view("lengths")


def value(found: Mapping[str, Any], voice: Voice) -> str:
    """Return the chart of a report as JSON: lengths, or bars where no row is ever cut."""
    lengths = found["lengths"]
    title = "lengths_title" if lengths else "lengths_title_text"
    return json.dumps(
        {
            "lengths": lengths,
            "max_length": found["max_length"],
            "bars": [] if lengths else found["histogram"],
            "words": {
                "title": voice(title),
                "rows": voice("lengths_rows"),
                "limit": voice("lengths_limit", length=LENGTH),
                "cut": voice("lengths_cut", n=COUNT, rows=ROWS, length=LENGTH),
                "drop": voice("lengths_drop", n=COUNT, rows=ROWS, length=LENGTH),
                "whole": voice("lengths_whole", rows=ROWS, length=LENGTH),
                "text": voice("lengths_text", length=LENGTH),
                "heard": voice(
                    "lengths_heard", rows=ROWS, low="{low}", middle="{middle}", high="{high}"
                ),
            },
        },
        ensure_ascii=False,
    )
