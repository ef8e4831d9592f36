"""The rows themselves, token by token, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from lora_studio.ui import render
from lora_studio.ui.language import Voice, text
from lora_studio.wording import say

PARTS = ("train", "evaluation", "skipped")
SEARCH_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Rows:
    """The components of this part."""

    whole: gr.Column
    part: gr.Radio
    search: gr.Textbox
    find: gr.Button
    list: gr.HTML
    back: gr.Button
    where: gr.HTML
    on: gr.Button
    page: gr.State

    @property
    def shown(self) -> list[Any]:
        """What a page of rows changes."""
        return [self.list, self.page, self.where, self.back, self.on]


def build() -> Rows:
    """Lay out this part of the card."""
    with gr.Column(visible=False, elem_id="data-rows") as whole:
        gr.HTML(text("rows_part"), elem_classes="ls-title")
        with gr.Row(elem_classes="ls-line"):
            part = gr.Radio(
                [(text(f"rows_{name}"), name) for name in PARTS], value=PARTS[0],
                show_label=False, container=False, scale=2, min_width=320, elem_id="rows-part",
            )  # fmt: skip
            search = gr.Textbox(
                show_label=False, placeholder=text("rows_search"), max_lines=1, container=False,
                min_width=160, elem_id="rows-search",
            )  # fmt: skip
            find = gr.Button(text("rows_find"), size="sm", min_width=80, elem_id="rows-find")
        rows = gr.HTML(elem_id="rows-list")
        with gr.Row(elem_classes="ls-pager"):
            back = gr.Button("‹", size="sm", min_width=48, scale=0, elem_id="rows-back")
            where = gr.HTML(elem_id="rows-where")
            on = gr.Button("›", size="sm", min_width=48, scale=0, elem_id="rows-on")
    return Rows(whole, part, search, find, rows, back, where, on, gr.State(1))


def asked(part: Any, page: Any, search: Any) -> tuple[str, int, str]:
    """Return what the controls ask for; anything else is the first page of the first part."""
    return (
        part if part in PARTS else PARTS[0],
        page if isinstance(page, int) and not isinstance(page, bool) and page > 0 else 1,
        search.strip()[:SEARCH_CHARACTERS] if isinstance(search, str) else "",
    )


def show(part: str, found: Mapping[str, Any], voice: Voice) -> list[Any]:
    """Return the values of `Rows.shown` for a page of rows."""
    page, pages = found["page"], max(found["pages"], 1)
    if not found["rows"]:
        listed = render.quiet(voice("rows_nothing"))
    elif part == "skipped":
        listed = "".join(skipped(row, voice) for row in found["rows"])
        listed = f'<ul class="ls-skipped">{listed}</ul>'
    else:
        is_sorted = any(row.get("label") for row in found["rows"])
        listed = legend(voice, is_sorted=is_sorted)
        listed += "".join(sample(row, voice) for row in found["rows"])
    return [
        listed,
        page,
        escape(voice("rows_page", page=f"{page:,}", pages=f"{pages:,}")),
        gr.Button(interactive=page > 1),
        gr.Button(interactive=page < pages),
    ]


def legend(voice: Voice, *, is_sorted: bool = False) -> str:
    """Return what the colours mean; texts to sort are only read, and their class is learned."""
    names = ("masked", "class") if is_sorted else ("masked", "trained", "end")
    items = "".join(
        f'<span><i class="{name[0]}">{escape(voice(f"legend_{name}"))}</i>'
        f"{escape(voice(f'legend_{name}_means'))}</span>"
        for name in names
    )
    return f'<div class="ls-legend">{items}</div>'


def skipped(row: Mapping[str, Any], voice: Voice) -> str:
    """Return a row that is not used, with the reason."""
    where = escape(f"{row['file']}:{row['number']}")
    return f"<li><code>{where}</code> {escape(say(row['reason'], voice.language))}</li>"


def sample(row: Mapping[str, Any], voice: Voice) -> str:
    """Return one row under its place in the data, and its class where it has one."""
    where = escape(f"{row['file']}:{row['number']}")
    label = row.get("label", "")
    badge = f'<b class="ls-class">{escape(label)}</b>' if label else ""
    return f'<div class="ls-row"><h4>{where}{badge}</h4>{tokens(row, voice)}</div>'


def tokens(row: Mapping[str, Any], voice: Voice) -> str:
    """Return one row, token by token: masked ones grey, trained ones coloured, the end marked."""
    trained = [at for at, learns in enumerate(row["mask"]) if learns]
    end = trained[-1] if trained and row["end_token"] and not row["left_out"] else None
    cells = [_cut("tokens_cut_start", row["cut_start"], voice)]
    for at, (piece, learns) in enumerate(zip(row["tokens"], row["mask"], strict=True)):
        style = "e" if at == end else "t" if learns else "m"
        cells.append(f'<span class="{style}">{escape(piece)}</span>')
    if row["left_out"]:
        cells.append(f"<p>{escape(voice('tokens_left_out', n=row['left_out']))}</p>")
    cells.append(_cut("tokens_cut_end", row["cut_end"], voice))
    label = escape(voice("tokens_label"))
    return (
        f'<div class="ls-tokens" tabindex="0" role="group" aria-label="{label}">'
        f"{''.join(cells)}</div>"
    )


def _cut(key: str, count: int, voice: Voice) -> str:
    return f'<span class="cut">✂ {escape(voice(key, n=f"{count:,}"))}</span>' if count else ""
