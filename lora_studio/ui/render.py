"""Facts as HTML for the page. Everything that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.models.accounting import ParameterCount
from lora_studio.models.description import ModelInfo
from lora_studio.models.hub import IN_BYTES
from lora_studio.ui import numbers
from lora_studio.ui.language import Voice
from lora_studio.wording import table as words


def note(text: str, kind: str = "bad") -> str:
    """Return a sentence in a box: `bad`, `warn` or `good`."""
    return f'<div class="ls-say {kind}" role="status">{escape(text)}</div>'


def problem(error: StudioError, voice: Voice) -> str:
    """Return an error's sentence in a box."""
    return note(error.say(voice.language))


def toast(error: StudioError, request: gr.Request) -> gr.Error:
    """Return an error as the page shows it: a sentence, no traceback."""
    return gr.Error(escape(error.say(Voice(request).language)), print_exception=False)


def quiet(sentence: str, *, is_news: bool = False) -> str:
    """Return a sentence in the quiet colour; news is read out to who cannot see the page."""
    role = ' role="status"' if is_news else ""
    return f'<p class="ls-quiet"{role}>{escape(sentence)}</p>'


def table(heads: Iterable[str], rows: str) -> str:
    """Return a table with titles above rows that are HTML."""
    titles = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f'<table class="ls-wins"><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>'


def busy(text: str, share: float | None = None) -> str:
    """Return what is being done, with a bar where its share is known."""
    bar = "" if share is None else f'<div class="ls-bar"><i style="width:{share:.0%}"></i></div>'
    return f'<div class="ls-busy" role="status">{escape(text)}{bar}</div>'


def stage(event: Mapping[str, Any], voice: Voice, *, of: str = "") -> str:
    """Return a `{"stage", "done", "total"}` event as a sentence with a bar.

    Args:
        event: May also say `seconds_left`.
        voice: Speaks to the person.
        of: What the sentence begins with: whose work it is, where that is not plain.
    """
    sentence = stage_sentence(event, voice)
    return timed(f"{of}: {sentence}" if of else sentence, event, voice)


def timed(sentence: str, event: Mapping[str, Any], voice: Voice) -> str:
    """Return a sentence with a bar, and with how long it will take where an event says that."""
    done, total, left = event["done"], event["total"], event.get("seconds_left")
    if left is not None and done < total:
        time = numbers.duration(left, voice.language)
        sentence = voice("batch_left", progress=sentence, time=time)
    return busy(sentence, done / total if total else None)


def waiting(event: Mapping[str, Any], voice: Voice, *, of: str = "") -> str:
    """Return what is waited for: a stage (see there), or those who are before (`{"place"}`)."""
    if "place" in event:
        return busy(voice("compare_place", before=event["place"]))
    return stage(event, voice, of=of)


def stage_sentence(event: Mapping[str, Any], voice: Voice) -> str:
    """Return what is being prepared, with how far it is where that is known."""
    stage = f"stage_{event.get('stage', 'start')}"
    sentence = voice(stage if f"page.{stage}" in words() else "stage_start")
    done, total = event.get("done", 0), event.get("total", 0)
    if done and event["stage"] == "tokenize":  # all rows are known only when all are read
        if not total:
            return voice("rows_so_far", sentence=sentence, done=f"{done:,}")
        return voice("rows_about", sentence=sentence, done=f"{done:,}", total=f"{total:,}")
    if not total:
        return sentence
    if event["stage"] in IN_BYTES:
        return f"{sentence} {numbers.size(done)} / {numbers.size(total)}"
    return f"{sentence} {done:,} / {total:,}"


def facts(items: Iterable[tuple[str, str]]) -> str:
    """Return labels and values in a grid."""
    cells = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in items
    )
    return f'<dl class="ls-facts">{cells}</dl>'


def model(info: ModelInfo, voice: Voice) -> str:
    """Return what a model is made of."""
    head = facts(
        [
            (voice("model_architecture"), info.architecture),
            (voice("model_parameters"), numbers.count(info.parameters)),
            (voice("model_size"), numbers.size(info.size_bytes)),
            (voice("model_layers"), str(info.layers)),
            (voice("model_context"), _tokens(info.context_length, voice)),
            (voice("model_template"), voice("yes" if info.chat_template else "no_template")),
            (voice("model_licence"), info.licence or "–"),
        ]
    )
    rows = "".join(
        f"<tr><td><code>{escape(group.name)}</code></td><td class=n>{group.count}</td>"
        f"<td class=n>{group.d_in:,} → {group.d_out:,}</td><td>{escape(group.kind)}</td>"
        f"<td class=n>{numbers.count(group.count * group.d_in * group.d_out)}</td></tr>"
        for group in info.modules
    )
    titles = (
        f"<th>{voice('module_name')}</th><th class=n>{voice('module_count')}</th>"
        f"<th class=n>{voice('module_shape')}</th><th>{voice('module_kind')}</th>"
        f"<th class=n>{voice('module_weights')}</th>"
    )
    return (
        f'{head}<div class="ls-scroll"><table class="ls-table"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _tokens(length: int | None, voice: Voice) -> str:
    return voice("tokens", n=f"{length:,}") if length else "–"


def total(
    count: ParameterCount,
    *,
    steps: int | None,
    epochs: float | None,
    trained_tokens: int | None,
    time: str,
    precision: str,
    device: str,
    sorts: bool,
    voice: Voice,
) -> str:
    """Return the sum of it all: what learns, its size, the number of steps, the time.

    Where texts are sorted into classes, what is trained on is a label a row.
    """
    items = [
        (
            voice("sum_learns"),
            voice("sum_of", part=numbers.count(count.trainable), whole=numbers.count(count.total)),
        ),
        (voice("sum_share"), f"{count.percent:.3g} %"),
        (voice("sum_file"), numbers.size(count.adapter_bytes)),
        (voice("sum_labels" if sorts else "sum_tokens"), _learned(trained_tokens, voice)),
        (voice("sum_steps"), _steps(steps, epochs, voice)),
        (voice("sum_time"), time),
        (voice("sum_precision"), precision),
        (voice("sum_device"), device),
    ]
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in items)
    share = (
        f'<div class="ls-share" role="img" aria-label="{count.percent:.3g} %">'
        f'<i style="width:{min(count.percent, 100):.2f}%"></i></div>'
    )
    return f'{share}<dl class="ls-total">{rows}</dl>'


def _learned(tokens: int | None, voice: Voice) -> str:
    if tokens is None:
        return voice("sum_tokens_later")
    return voice("sum_tokens_epoch", tokens=numbers.count(tokens))


def _steps(steps: int | None, epochs: float | None, voice: Voice) -> str:
    if steps is None:
        return voice("sum_steps_later")
    if epochs is None:
        return f"{steps:,}"
    return voice("sum_steps_epochs", steps=f"{steps:,}", epochs=f"{epochs:g}")
