"""An answer as it differs: its tokens coloured by what the adapter changed, and word by word."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import takewhile
from typing import Any

from lora_studio.ui.language import Voice

STRONGEST = 3.0
"""A difference of so many nats, a factor of 20, has the full colour."""
SLIGHT = 0.05
"""One below has none."""
MOST_STEPS = 2**26
"""So many may be taken to find where two texts agree, words by pairs of equal ones: a fifth of a
second."""
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
    head = _agreeing(old, new)
    tail = _agreeing(old[head:][::-1], new[head:][::-1])
    old_end, new_end = len(old) - tail, len(new) - tail
    parts = [
        escape("".join(old[:head])),
        *_changes(old[head:old_end], new[head:new_end]),
        escape("".join(old[old_end:])),
    ]
    title = escape(voice("differences_words"))
    return (
        f'<details class="ls-changed"><summary>{title}</summary><p>{"".join(parts)}</p></details>'
    )


def _agreeing(old: Sequence[str], new: Sequence[str]) -> int:
    """Return with how many of the same words two texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))


def _changes(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    repeated = _repeated(old, new)
    matcher = difflib.SequenceMatcher(repeated.__contains__, old, new, autojunk=False)
    for kind, start, end, begin, stop in matcher.get_opcodes():
        if kind == "equal":
            yield escape("".join(old[start:end]))
            continue
        if start < end:
            yield f"<del>{escape(''.join(old[start:end]))}</del>"
        if begin < stop:
            yield f"<ins>{escape(''.join(new[begin:stop]))}</ins>"


def _repeated(old: Sequence[str], new: Sequence[str]) -> set[str]:
    """Return the words by which two texts are not aligned: those that make too many pairs.

    An answer that goes in circles would take time with the third power of its length.
    """
    counts, others = Counter(old), Counter(new)
    pairs = {word: count * others[word] for word, count in counts.items() if word in others}
    most, total = MOST_STEPS // (len(old) + len(new) + 1), sum(pairs.values())
    repeated: set[str] = set()
    for word in sorted(pairs, key=pairs.__getitem__, reverse=True):
        if total <= most:
            break
        repeated.add(word)
        total -= pairs[word]
    return repeated
