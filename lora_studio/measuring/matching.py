"""Whether an answer is right: the same as the reference, the same number, the same finding."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Literal

import regex

from lora_studio.errors import StudioError

EXACT: Literal["exact"] = "exact"
NUMBER: Literal["number"] = "number"
SLOW_PATTERN = "measuring.slow_pattern"
SEARCH_S = 0.25
"""Longest that a person's expression may search one answer."""
LONGEST_PATTERN = 500
QUOTES = str.maketrans("“”„‘’`", "\"\"\"'''")
DIGITS = re.compile(r"(?:(?<![\w)])[-−])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")

Match = Callable[[str, str], bool]
"""Tells whether an answer is right, given the reference."""


def matcher(wanted: str) -> Match:
    """Return what tells right from wrong.

    Args:
        wanted: `exact`, `number`, or a regular expression. Of what it finds in answer and
            reference the last counts, its first group if it has one.

    Raises:
        StudioError: If the expression is not valid or too long.
    """
    if wanted == EXACT:
        return is_exact
    if wanted == NUMBER:
        return has_number
    if len(wanted) > LONGEST_PATTERN:
        raise StudioError("measuring.long_pattern", most=LONGEST_PATTERN)
    try:
        pattern = regex.compile(unicodedata.normalize("NFC", wanted))
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        raise StudioError("measuring.bad_pattern", pattern=wanted, reason=str(error)) from error

    def finds_the_same(answer: str, reference: str) -> bool:
        found = _last(pattern, answer)
        return found is not None and found == _last(pattern, reference)

    return finds_the_same


def composed(text: str) -> str:
    """Return a text as all measures read it, in NFKC: a syllable in one piece, ４２ as 42."""
    return unicodedata.normalize("NFKC", text)


def normalised(text: str) -> str:
    """Return a text as it is compared: composed, without case, curly quotes, spaces, a last dot."""
    plain = composed(text).casefold().translate(QUOTES)
    return " ".join(plain.split()).rstrip(" .。")


def is_exact(answer: str, reference: str) -> bool:
    """Tell whether two texts are the same but for case, spaces, quotes and a last dot."""
    return normalised(answer) == normalised(reference)


def has_number(answer: str, reference: str) -> bool:
    """Tell whether the last number of the answer is the last of the reference, as in GSM8K.

    Thousands may be parted by commas; 42, 42.0 and 42.00 are the same.
    """
    wanted = last_number(reference)
    return wanted is not None and last_number(answer) == wanted


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text, None where there is none."""
    found = DIGITS.findall(composed(text))
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None


def _last(pattern: regex.Pattern[str], text: str) -> str | None:
    """Return the last thing a pattern finds in a text as it is written (NFC).

    Raises:
        StudioError: If the search takes too long: an expression that backtracks without end.
    """
    last = None
    try:
        for found in pattern.finditer(unicodedata.normalize("NFC", text), timeout=SEARCH_S):
            last = found
    except TimeoutError as error:
        raise StudioError(SLOW_PATTERN, pattern=pattern.pattern, seconds=SEARCH_S) from error
    if last is None:
        return None
    return normalised(last[1] if pattern.groups and last[1] is not None else last[0])
