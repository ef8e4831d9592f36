"""A view that the browser draws itself: its HTML and its script in `assets/`, under one name.

`assets/view.js` stands before each script, so that both are read in one scope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from lora_studio.wording import ASSETS

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def view(
    name: str, *, functions: Sequence[Callable[..., Any]] = (), elem_id: str | None = None
) -> gr.HTML:
    """Build a view without a value.

    Args:
        name: What `assets/NAME.html` and `assets/NAME.js` are called by.
        functions: What the script may ask the server for, each under its own name.
        elem_id: The component's id on the page; the name with hyphens if None.
    """
    return gr.HTML(
        value="",
        elem_id=elem_id or name.replace("_", "-"),
        html_template=(ASSETS / f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=script(name),
        server_functions=list(functions),
        container=False,
        padding=False,
    )


def script(name: str) -> str:
    """Return `assets/NAME.js` behind what all scripts share."""
    return _shared() + (ASSETS / f"{name}.js").read_text(encoding="utf-8")


@cache
def _shared() -> str:
    """Return what all scripts share, and let the browser fetch Plotly from where it says."""
    gr.set_static_paths([str(PLOTLY)])
    text = (ASSETS / "view.js").read_text(encoding="utf-8")
    return text.replace("PLOTLY_URL", f"gradio_api/file={PLOTLY}")
