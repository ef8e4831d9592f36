"""What a run will take, as HTML: one stacked bar of memory, a verdict, buttons that mend, time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from lora_studio.prediction.estimate import Estimate
from lora_studio.prediction.fixes import Fix
from lora_studio.prediction.memory import ERRORS, PARTS
from lora_studio.ui import numbers, render
from lora_studio.ui.language import Voice

# A click on a change is the component's click, with the change's settings.
ON_CLICK = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-changes]');
  if (button) trigger('click', { changes: JSON.parse(button.dataset.changes) });
});
"""
MENDING = frozenset(
    {
        "precision",
        "data.max_length",
        "adapter.r",
        "training.per_device_train_batch_size",
        "training.gradient_accumulation_steps",
        "training.activation_checkpointing",
    }
)
"""What a button may change; what a browser sends is not trusted."""
KIND = {"fits": "good", "tight": "warn", "will_not_fit": "bad"}


def build() -> gr.HTML:
    """Build the component; its value is `memory`, its click is read by `chosen`."""
    return gr.HTML(elem_id="prediction", js_on_load=ON_CLICK, padding=False)


def chosen(event: Any) -> tuple[str, ...]:
    """Return the settings of the button that was clicked, as `Recipe.changed` takes them.

    Args:
        event: A `gr.EventData`; anything in it that no button sends is left out.
    """
    changes = getattr(event, "changes", None)
    return tuple(
        change
        for change in (changes if isinstance(changes, list) else ())
        if isinstance(change, str) and change.partition("=")[0] in MENDING
    )


def memory(estimate: Estimate, fixes: Sequence[Fix], voice: Voice) -> str:
    """Return bar, legend, verdict and the changes that make it fit.

    A button carries its settings as JSON in `data-changes`, as `Recipe.changed` takes them.
    """
    return (
        f'<section class="ls-memory">{_bar(estimate, voice)}{_legend(estimate, voice)}'
        f"{verdict(estimate, voice)}{_fixes(estimate, fixes, voice)}"
        f"{render.quiet(quality(estimate.place.device, voice))}</section>"
    )


def time(estimate: Estimate, voice: Voice) -> str:
    """Return how long the run will take, or when that will be known."""
    if estimate.seconds is None:
        return voice("time_later")
    return voice("time_about", time=numbers.duration(estimate.seconds, voice.language))


def fix_label(fix: Fix, voice: Voice) -> str:
    """Return a button's words: what to change, and what that saves."""
    return voice(f"fix_{fix.kind}", old=fix.old, new=fix.new, saved=numbers.size(fix.saved))


def quality(device: str, voice: Voice) -> str:
    """Return how good predictions are on a kind of device."""
    measured = ERRORS.get(device)
    if measured is None:
        return voice("memory_quality_unknown")
    mean, worst = measured
    return voice("memory_quality_cpu", mean=f"{mean:g}", worst=f"{worst:g}")


def _named(estimate: Estimate) -> list[tuple[str, int]]:
    """Return the parts that take anything, the worker's programs last."""
    memory = estimate.memory
    every = [*((name, memory.parts[name]) for name in PARTS), ("worker", memory.worker)]
    return [(name, size) for name, size in every if size]


def _bar(estimate: Estimate, voice: Voice) -> str:
    """Return the bar; its whole width is the device's memory, or what is needed if that is more."""
    place, needed = estimate.place, estimate.memory.needed
    used = max(place.total - place.free, 0)
    whole = max(place.total, used + needed, 1)
    said = _said(estimate, voice)
    parts = "".join(
        f'<i class="{name}" style="width:{100 * size / whole:.2f}%"'
        f' title="{escape(voice(f"memory_{name}"))}: {numbers.size(size)}"></i>'
        for name, size in _named(estimate)
    )
    end = 100 * min(place.total / whole, 1)
    return (
        f'<p class="said"><b>{escape(voice("memory_title"))}</b> <span>{escape(said)}</span></p>'
        f'<div class="bar" role="img" aria-label="{escape(said, quote=True)}">'
        f'<i class="used" style="width:{100 * used / whole:.2f}%"></i>{parts}'
        f'<b class="end" style="left:{end:.2f}%"></b></div>'
    )


def _said(estimate: Estimate, voice: Voice) -> str:
    place = estimate.place
    return voice(
        "memory_said",
        needed=numbers.size(estimate.memory.needed),
        free=numbers.size(place.free),
        total=numbers.size(place.total),
    )


def _legend(estimate: Estimate, voice: Voice) -> str:
    items = "".join(
        f'<li><i class="{name}"></i>{escape(voice(f"memory_{name}"))} '
        f"<b>{numbers.size(size)}</b></li>"
        for name, size in _named(estimate)
    )
    return f'<ul class="parts">{items}</ul>'


def verdict(estimate: Estimate, voice: Voice) -> str:
    """Return whether it fits, and by how much not, as a sentence in a box."""
    missing = numbers.size(max(estimate.memory.needed - estimate.place.free, 0))
    sentence = voice(f"memory_{estimate.verdict}", missing=missing)
    if estimate.memory.checkpointing:
        sentence += "\n" + voice("memory_recomputed")
    return f'<div class="ls-say {KIND[estimate.verdict]}" role="status">{escape(sentence)}</div>'


def _fixes(estimate: Estimate, fixes: Sequence[Fix], voice: Voice) -> str:
    if estimate.verdict != "will_not_fit":
        return ""
    if not fixes:
        return render.quiet(voice("no_fix"))
    buttons = "".join(
        f'<button type="button" class="ls-fix"'
        f' data-changes="{escape(json.dumps(fix.changes), quote=True)}">'
        f"{escape(fix_label(fix, voice))}</button>"
        for fix in fixes
    )
    return f'<div class="fixes">{buttons}</div>'
