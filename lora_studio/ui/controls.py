"""Controls that several parts of the page have, and how an event waits that asks the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from lora_studio.ui.language import Voice, text

ENGINE: dict[str, Any] = {
    "concurrency_id": "gpu", "concurrency_limit": None, "show_progress": "hidden",
}  # fmt: skip
"""Settings of an event that asks the model. Who waits stands in the engine's own line: a limit at
any one of them would be that of all, for as long as the app runs."""


def slider(*arguments: Any, **settings: Any) -> gr.Slider:
    """Return a slider whose number box may hold anything.

    Gradio refuses a number beyond the ends before a handler sees it, in English and without
    the next step; every handler here checks its values and answers in the person's language.
    (A subclass would do, but Gradio writes a stub file beside the source of each.)
    """
    control = gr.Slider(*arguments, **settings)
    control.preprocess = lambda payload: payload
    return control


def dropdown(*arguments: Any, **settings: Any) -> gr.Dropdown:
    """Return a dropdown whose choices may change while a person chooses; see `slider`."""
    control = gr.Dropdown(*arguments, **settings)
    control.preprocess = lambda payload: payload
    return control


def button(name: str, **settings: Any) -> gr.Button:
    """Return a narrow button that goes by the key of its text."""
    usual = {"elem_id": name.replace("_", "-"), "scale": 0, "min_width": 140}
    return gr.Button(text(name), **usual | settings)


def start_and_stop(name: str) -> tuple[gr.Button, gr.Button]:
    """Return the button that begins what takes long, and the one that ends it once it has begun.

    Args:
        name: The key of the first one's text, `batch_start`; the other is then `batch-stop`.
    """
    elem_id = f"{name.removesuffix('_start')}-stop"
    stop = button("stop", elem_id=elem_id, min_width=110, interactive=False)
    return button(name, variant="primary"), stop


def ready_again(on: Sequence[gr.Button], stop: gr.Button) -> dict[str, Any]:
    """Return the settings of a `then` that gives the buttons back after what takes long.

    The last word of an event cannot: until it has ended, which is a moment later, a click on what
    began it is thrown away.

    Args:
        on: What begins such work.
        stop: What ends it.
    """

    def ready(request: gr.Request) -> list[gr.Button]:
        begin = [gr.Button(interactive=True) for _ in on]
        return [*begin, gr.Button(Voice(request)("stop"), interactive=False)]

    return {"fn": ready, "outputs": [*on, stop], "show_progress": "hidden", "queue": False}
