"""How a question is asked: the controls for temperature, length, seed and system prompt."""

from __future__ import annotations

from typing import Any

import gradio as gr

from lora_studio.ui.controls import slider
from lora_studio.ui.language import Voice, text


class Manner:
    """Builds the controls that hold for all panes."""

    def __init__(self) -> None:
        with gr.Accordion(text("compare_more"), open=False, elem_id="compare-more"):
            with gr.Row():
                self.temperature = slider(
                    0, 2, value=0, step=0.05, label=text("temperature"),
                    info=text("temperature_why"), elem_id="temperature",
                )  # fmt: skip
                self.top_p = slider(
                    0.05, 1, value=0.9, step=0.05, label="top_p", info=text("top_p_why")
                )
                self.tokens = slider(
                    8, 1024, value=128, step=8, label=text("max_new_tokens"),
                    info=text("max_new_tokens_why"), elem_id="max-new-tokens",
                )  # fmt: skip
            with gr.Row():
                self.seed = gr.Number(
                    42, label=text("seed"), precision=0, info=text("seed_why"), elem_id="seed-ask"
                )
                self.apart = gr.Checkbox(
                    label=text("seeds_apart"), info=text("seeds_apart_why"), elem_id="seeds-apart"
                )
            self.mode = gr.Radio(
                [(text("mode_chat"), "chat"), (text("mode_text"), "text")], value="chat",
                label=text("mode"), info=text("mode_why"), elem_id="mode-ask",
            )  # fmt: skip
            self.system = gr.Textbox(
                label=text("system"), info=text("system_why"), max_lines=4, elem_id="system"
            )
        self.mode.change(
            system_use, self.mode, self.system, queue=False, show_progress="hidden"
        )  # fmt: skip

    @property
    def controls(self) -> list[Any]:
        """All of them, in the order in which `asking.Terms` takes their values."""
        return [
            self.mode, self.system, self.temperature, self.top_p, self.tokens, self.seed,
            self.apart,
        ]  # fmt: skip


def system_use(request: gr.Request, mode: Any) -> Any:
    """Say that a text that is continued has no system prompt before it."""
    is_used = mode != "text"
    why = Voice(request)("system_why" if is_used else "system_unused")
    return gr.Textbox(interactive=is_used, info=why)
