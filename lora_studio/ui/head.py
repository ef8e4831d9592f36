"""The line at the top of every tab: device, running training, language, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from lora_studio.hardware import device_reason
from lora_studio.ui import numbers
from lora_studio.ui.language import COOKIE, Voice
from lora_studio.ui.visitors import Door
from lora_studio.wording import ASSETS, LANGUAGES, say

TEMPLATE = """\
<header class="ls-head">
  <h1>LoRA Studio</h1><span class="ls-chip device"></span><span class="space"></span>
  <button class="ls-chip run" hidden></button>
  <select class="language" aria-label="Language · 언어">{options}</select>
  <button class="shade" type="button">◐</button>
</header>"""


def head(door: Door) -> gr.HTML:
    """Build the head of the page."""
    options = "".join(
        f'<option value="{key}">{escape(name)}</option>' for key, name in LANGUAGES.items()
    )
    script = (ASSETS / "head.js").read_text(encoding="utf-8").replace("COOKIE", COOKIE)
    return gr.HTML(
        value="",
        elem_id="head",
        html_template=TEMPLATE.format(options=options),
        js_on_load=script,
        server_functions=[_glance(door)],
        container=False,
        padding=False,
    )


def _glance(door: Door) -> Callable[..., dict[str, Any]]:
    def glance(_: Any, request: gr.Request) -> dict[str, Any]:
        voice, studio = Voice(request), door.enter(request)
        hardware = studio.hardware
        reason = device_reason(hardware)
        history = studio.active()
        share = history.step / history.total_steps if history and history.total_steps else 0.0
        return {
            "language": voice.language,
            "shade": voice("shade"),
            "device": voice(
                "device_chip",
                device=hardware.device.upper(),
                cores=hardware.cores,
                free=numbers.size(hardware.device_free_bytes),
            ),
            "why": say(reason["key"], voice.language, **reason["values"]),
            "run": voice("run_chip", run=history.folder.id, share=f"{share:.0%}")
            if history
            else "",
        }

    return glance
