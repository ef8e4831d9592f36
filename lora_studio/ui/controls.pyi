"""Controls that leave it to the recipe to say what is wrong with a value."""

from __future__ import annotations

from typing import Any

import gradio as gr

from gradio.events import Dependency

class Slider(gr.Slider):  # type: ignore[misc, unused-ignore]
    """A slider whose number box may hold anything.

    Gradio refuses a number beyond the ends before a handler sees it, in English and without
    the next step; every handler here checks its values and answers in the person's language.
    """

    is_template = True  # drawn as a gr.Slider

    def preprocess(self, payload: Any) -> Any:
        """Pass the value on as it came."""
        return payload
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component