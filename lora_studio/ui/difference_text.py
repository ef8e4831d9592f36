"""An answer as it differs: its tokens coloured by what the adapter changed, and word by word."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from lora_studio.ui.language import Voice

STRONGEST = 3.0
"""A difference of so many nats, a factor of 20, has the full colour."""
SLIGHT = 0.05
"""One below has none."""
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
Score = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens that write whole characters together, most often a single one."""

    text: str
    base: float
    """Log-probability of all of them to the base,"""
    other: float
    """and to who is compared with it."""
    first: str
    """What the base would rather have written; empty for a part of a character."""
    first_base: float
    """Log-probability to the base of the tokens up to there."""


def coloured(score: Score, judge: int, voice: Voice, against: str = "") -> str:
    """Return an answer whose tokens are coloured by who finds them likelier.

    Args:
        score: The engine's, the base the first who judged.
        judge: Who is compared with the base: their place among those who judged.
        voice: Speaks to the person.
        against: Their name, where it is not plain from the answer.
    """
    spans = "".join(_span(one, voice) for one in stretches(score, judge))
    moved, total = score["is_first"].count(False), len(score["is_first"])
    told = [voice("differences_count", n=moved, total=total)]
    if against:
        told.append(voice("differences_against", name=against))
    return (
        f'<div class="ls-differ"><p class="ls-quiet">{escape(" ".join(told))}</p>'
        f'<p class="tokens">{spans}</p></div>'
    )


def stretches(score: Score, judge: int) -> Iterator[Stretch]:
    """Yield an answer's tokens, those that write a character together as one."""
    base, other, first = score["logprobs"][0], score["logprobs"][judge], score["first_logprobs"]
    start = 0
    for end, piece in enumerate(score["pieces"], 1):
        if not piece:
            continue
        parts = range(start, end)
        at = next((place for place in parts if not score["is_first"][place]), end - 1)
        yield Stretch(
            text=piece,
            base=sum(base[start:end]),
            other=sum(other[start:end]),
            first=score["first"][at],
            first_base=sum(first[start : at + 1]),
        )
        start = end


def _span(one: Stretch, voice: Voice) -> str:
    told = voice(
        "differences_token",
        base=_percent(one.base),
        adapter=_percent(one.other),
        first=voice("differences_first", text=one.first)
        if one.first
        else voice("differences_part"),
        first_share=_percent(one.first_base),
    )
    gain = one.other - one.base
    strength = min(abs(gain) / STRONGEST, 1.0)
    kind = "" if abs(gain) < SLIGHT else " up" if gain > 0 else " down"
    style = f' style="--by:{strength:.0%}"' if kind else ""
    return (
        f'<span class="t{kind}"{style} title="{escape(told, quote=True)}">{escape(one.text)}</span>'
    )


def _percent(logprob: float) -> str:
    share = math.exp(logprob)
    return f"{share:.0%}" if share >= 0.1 else f"{share:.2%}" if share >= 0.0001 else "< 0.01%"


def changed(before: str, after: str, voice: Voice) -> str:
    """Return what of a text was dropped and what is new in another, word by word."""
    old, new = WORDS.findall(before), WORDS.findall(after)
    parts = []
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    for kind, start, end, begin, stop in matcher.get_opcodes():
        if kind == "equal":
            parts.append(escape("".join(old[start:end])))
            continue
        if start < end:
            parts.append(f"<del>{escape(''.join(old[start:end]))}</del>")
        if begin < stop:
            parts.append(f"<ins>{escape(''.join(new[begin:stop]))}</ins>")
    title = escape(voice("differences_words"))
    return (
        f'<details class="ls-changed"><summary>{title}</summary><p>{"".join(parts)}</p></details>'
    )
