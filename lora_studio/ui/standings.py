"""How often who wins, as a table; it shows no answer, so names that are hidden stay so."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lora_studio.judging.winning import WinRate
from lora_studio.ui import render
from lora_studio.ui.language import Voice

HEADS = ("votes_pair", "votes_count", "votes_rate")


def standings(rates: Sequence[WinRate], left_out: int, voice: Voice) -> str:
    """Return a row for any two contenders, and how votes are counted.

    Args:
        rates: How they did against each other.
        left_out: Votes that are not among these; see `VoteStore.unshared`.
        voice: Of who reads it.
    """
    unshared = render.quiet(voice("votes_unshared", n=left_out)) if left_out else ""
    if not rates:
        return unshared or render.quiet(voice("votes_none"))
    rows = "".join(row(rate, voice) for rate in rates)
    table = render.table(map(voice, HEADS), rows)
    return f"{table}{render.quiet(voice('votes_rule'))}{unshared}"


def row(rate: WinRate, voice: Voice) -> str:
    """Return two contenders in words, numbers and a bar, all as the left one sees them."""
    tally, (low, high) = rate.all, rate.all.interval
    counts = voice(
        "votes_counts", left=tally.wins, right=tally.losses, ties=tally.ties, n=tally.votes,
        blind=rate.blind.votes,
    )  # fmt: skip
    bar = (
        f'<div class="ls-interval" aria-hidden="true">'
        f'<i style="left:{low:.1%};width:{high - low:.1%}"></i>'
        f'<b style="left:{tally.rate:.1%}"></b></div>'
    )
    blind = rate.say_blind(voice.language)
    said = escape(rate.say(voice.language)) + (render.quiet(blind) if blind else "")
    return f"<tr><td>{said}</td><td>{escape(counts)}</td><td>{bar}</td></tr>"
