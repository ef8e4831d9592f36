"""Facts as HTML for the page. Everything that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.models.accounting import ParameterCount
from lora_studio.models.description import ModelInfo
from lora_studio.ui import numbers
from lora_studio.ui.language import Voice
from lora_studio.wording import say

LISTED_SKIPS = 8


def note(text: str, kind: str = "bad") -> str:
    """Return a sentence in a box: `bad`, `warn` or `good`."""
    return f'<div class="ls-say {kind}" role="status">{escape(text)}</div>'


def problem(error: StudioError, voice: Voice) -> str:
    """Return an error's sentence in a box."""
    return note(error.say(voice.language))


def busy(text: str, share: float | None = None) -> str:
    """Return what is being done, with a bar where its share is known."""
    bar = "" if share is None else f'<div class="ls-bar"><i style="width:{share:.0%}"></i></div>'
    return f'<div class="ls-busy" role="status">{escape(text)}{bar}</div>'


def stage(event: Mapping[str, Any], voice: Voice) -> str:
    """Return a `{"stage", "done", "total"}` event as a sentence with a bar."""
    done, total = event["done"], event["total"]
    return busy(stage_sentence(event, voice), done / total if total else None)


def stage_sentence(event: Mapping[str, Any], voice: Voice) -> str:
    """Return what is being prepared, with how far it is where that is known."""
    sentence = voice(f"stage_{event.get('stage', 'start')}")
    done, total = event.get("done", 0), event.get("total", 0)
    if not total:
        return sentence
    if event["stage"] == "download":
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


def report(found: Mapping[str, Any], voice: Voice) -> str:
    """Return what was understood of the data and the tokens that will be trained."""
    parts = [f'<p class="ls-strip">{escape(strip(found, voice))}</p>']
    kinds = ", ".join(dict.fromkeys(found["formats"].values()))
    parts.append(
        facts(
            [
                (voice("data_format"), " + ".join(_format(k, voice) for k in kinds.split(", "))),
                (voice("data_median"), f"{found['tokens_median']:,}"),
                (voice("data_longest"), f"{found['tokens_longest']:,}"),
                (voice("data_cut", length=found["max_length"]), f"{found['truncated']:,}"),
                (voice("data_trained"), f"{found['trained_tokens']:,}"),
            ]
        )
    )
    parts += [note(text, "warn") for text in warnings(found, voice)]
    parts.append(
        f'<div class="ls-legend"><span><i class="m">{voice("legend_masked")}</i>'
        f"{voice('legend_masked_means')}</span>"
        f'<span><i class="t">{voice("legend_trained")}</i>{voice("legend_trained_means")}</span>'
        f'<span><i class="e">{voice("legend_end")}</i>{voice("legend_end_means")}</span></div>'
    )
    parts += [tokens(example, voice) for example in found["examples"]]
    return "".join(parts)


def strip(found: Mapping[str, Any], voice: Voice) -> str:
    """Return the line that adds the rows up."""
    return voice(
        "data_strip",
        rows=f"{found['rows']:,}",
        train=f"{found['train_rows']:,}",
        held=f"{found['eval_rows']:,}",
        skipped=f"{found['skipped_rows']:,}",
    )


def warnings(found: Mapping[str, Any], voice: Voice) -> list[str]:
    """Return what a person should know before training on the data."""
    said = []
    if found["skipped_rows"]:
        listed = found["skipped"][:LISTED_SKIPS]
        names = ", ".join(
            f"{row['file']}:{row['number']} ({say(row['reason'], voice.language)})"
            for row in listed
        )
        more = found["skipped_rows"] - len(listed)
        if more > 0:
            names += voice("and_more", n=more)
        said.append(voice("data_skipped", n=found["skipped_rows"], names=names))
    for file, columns in found["unused_columns"].items():
        said.append(voice("data_unused", file=file, columns=", ".join(columns)))
    if found["last_answer_only"]:
        said.append(voice("data_last_only", n=found["last_answer_only"]))
    if found["plain_template"]:
        said.append(voice("data_plain_template"))
    return said


def _format(name: str, voice: Voice) -> str:
    return voice(f"format_{name}")


def tokens(example: Mapping[str, Any], voice: Voice) -> str:
    """Return one row, token by token: masked ones grey, trained ones coloured, the end marked."""
    pieces = example["pieces"]
    trained = [at for at, (_, is_trained) in enumerate(pieces) if is_trained]
    end = trained[-1] if trained and example["end_token"] and not example["left_out"] else None
    cells = []
    for at, (text, is_trained) in enumerate(pieces):
        style = "e" if at == end else "t" if is_trained else "m"
        cells.append(f'<span class="{style}">{escape(text)}</span>')
    if example["left_out"]:
        cells.append(f"<p>{escape(voice('tokens_left_out', n=example['left_out']))}</p>")
    label = escape(voice("tokens_label"))
    return f'<div class="ls-tokens" tabindex="0" aria-label="{label}">{"".join(cells)}</div>'


def total(
    count: ParameterCount,
    *,
    steps: int | None,
    epochs: float | None,
    precision: str,
    device: str,
    voice: Voice,
) -> str:
    """Return the sum of it all: what learns, its size, the number of steps."""
    items = [
        (
            voice("sum_learns"),
            voice("sum_of", part=numbers.count(count.trainable), whole=numbers.count(count.total)),
        ),
        (voice("sum_share"), f"{count.percent:.3g} %"),
        (voice("sum_file"), numbers.size(count.adapter_bytes)),
        (voice("sum_steps"), _steps(steps, epochs, voice)),
        (voice("sum_precision"), precision),
        (voice("sum_device"), device),
    ]
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in items)
    share = (
        f'<div class="ls-share" role="img" aria-label="{count.percent:.3g} %">'
        f'<i style="width:{min(count.percent, 100):.2f}%"></i></div>'
    )
    return f'{share}<dl class="ls-total">{rows}</dl>'


def _steps(steps: int | None, epochs: float | None, voice: Voice) -> str:
    if steps is None:
        return voice("sum_steps_later")
    if epochs is None:
        return f"{steps:,}"
    return voice("sum_steps_epochs", steps=f"{steps:,}", epochs=f"{epochs:g}")
