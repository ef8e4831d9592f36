"""Numbers with their units, as a person reads them."""

from __future__ import annotations

import time

from lora_studio.wording import say


def count(value: float) -> str:
    """Return a count in three digits: 4.88 M, 12.3 k, 154."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{value:,.0f}"


def size(bytes_: float) -> str:
    """Return bytes in decimal units, as file managers do: 19.5 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_ >= factor:
            return f"{bytes_ / factor:.3g} {unit}"
    return f"{bytes_:.0f} B"


def percent(share: float) -> str:
    """Return a share of 1 in percent: 87.2 %."""
    return f"{100 * max(share, 0):.1f} %"


def duration(seconds: float, language: str) -> str:
    """Return a span of time: 45 s, 12 min 5 s, 2 h 10 min."""
    seconds = max(round(seconds), 0)
    if seconds < 60:
        return say("page.seconds", language, s=seconds)
    if seconds < 3600:
        return say("page.minutes", language, m=seconds // 60, s=seconds % 60)
    return say("page.hours", language, h=seconds // 3600, m=seconds % 3600 // 60)


def moment(seconds: float) -> str:
    """Return a time as `2026-11-22 21:30`, the same in every language.

    Args:
        seconds: Since 1970, UTC.
    """
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
