"""The line at the top of every tab: device, running training, language, light and dark.

Its script also keeps the title and the icon of the browser's tab, and notifies at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from lora_studio.hardware import device_reason
from lora_studio.runs.history import History
from lora_studio.ui import numbers
from lora_studio.ui.language import COOKIE, Voice
from lora_studio.ui.live import asked_for, state
from lora_studio.ui.view import script
from lora_studio.ui.visitors import Door
from lora_studio.wording import LANGUAGES, say

TEMPLATE = """\
<header class="ls-head">
  <h1>LoRA Studio</h1><span class="ls-chip device"></span><span class="space"></span>
  <button class="ls-chip run" hidden></button>
  <label class="ls-chip notify" hidden><input type="checkbox"><span></span></label>
  <select class="language" aria-label="Language · 언어">{options}</select>
  <button class="shade" type="button">◐</button>
  <span class="ls-quiet refused" role="status" hidden></span>
</header>"""


def head(door: Door) -> gr.HTML:
    """Build the head of the page."""
    options = "".join(
        f'<option value="{key}">{escape(name)}</option>' for key, name in LANGUAGES.items()
    )
    return gr.HTML(
        value="",
        elem_id="head",
        html_template=TEMPLATE.format(options=options),
        js_on_load=script("head").replace("COOKIE", COOKIE),
        server_functions=[_glance(door)],
        container=False,
        padding=False,
    )


def _glance(door: Door) -> Callable[..., dict[str, Any]]:
    def glance(query: Any, request: gr.Request) -> dict[str, Any]:
        voice, studio = Voice(request), door.enter(request)
        hardware = studio.hardware
        reason = device_reason(hardware)
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
            "notify": voice("notify"),
            "notify_why": voice("notify_why"),
            "notify_refused": voice("notify_refused"),
            **training(studio.runs.active(), voice),
            "ended": ended(asked_for(door, query, request), voice),
        }

    return glance


def training(history: History | None, voice: Voice) -> dict[str, Any]:
    """Return what the head says of the run that trains now, empty where none does."""
    if history is None:
        return {"active": "", "run": "", "title": "", "share": 0.0}
    run = history.folder.id
    share = history.step / history.total_steps if history.total_steps else 0.0
    return {
        "active": run,
        "run": voice("run_chip", run=run, share=f"{share:.0%}"),
        "title": voice("run_title", run=run, share=f"{share:.0%}"),
        "share": share,
    }


def ended(history: History | None, voice: Voice) -> dict[str, Any] | None:
    """Return how a run that the browser has watched ended; None while it has not."""
    if history is None or not history.is_over:
        return None
    told, run = state(history, voice), history.folder.id
    return {
        "run": run,
        "title": voice("run_title_over", run=run),
        "said": told["cause"] or told["state"],
        "failed": told["status"] in ("failed", "lost"),
    }
