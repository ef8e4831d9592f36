"""Controls that leave it to the recipe to say what is wrong with a value."""

from __future__ import annotations

from typing import Any

import gradio as gr


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
