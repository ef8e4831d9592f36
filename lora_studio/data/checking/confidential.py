"""Keys, passwords and personal data: formats known well enough to be found by their looks.

Formats are those that the issuers document. A password in prose has no format, and a number that
only might be one of a card or a person is checked by its own check digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

SHOWN_AROUND = 60
DIGITS = b"0123456789"
# The shortest number below is that of a mobile phone.
FEWEST_DIGITS = 11


def _passes_luhn(digits: str) -> bool:
    """Check the last digit of a card's number (ISO/IEC 7812-1, annex B)."""
    numbers = [int(digit) for digit in reversed(digits) if digit.isdigit()]
    doubled = [sum(divmod(number * 2, 10)) for number in numbers[1::2]]
    return (sum(numbers[::2]) + sum(doubled)) % 10 == 0


def _passes_resident(number: str) -> bool:
    """Check a Korean resident registration number.

    One written without its hyphen must have the right last digit; numbers given out since October
    2020 have none, and are only known by their hyphen and their date of birth.
    """
    if "-" in number:
        return True
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    total = sum(weight * int(digit) for weight, digit in zip(weights, number[:12], strict=True))
    return (11 - total % 11) % 10 == int(number[12])


def _always(_: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing that nobody should learn by heart."""

    placeholder: str
    """What is put in its place."""
    pattern: re.Pattern[str]
    """What it looks like; in time linear in the text."""
    needles: tuple[str, ...] = ()
    """One of these is in every text that holds it; found much faster than the pattern."""
    is_real: Callable[[str], bool] = _always
    """Whether what looks like it is it."""


_AFTER_NAME = "(?P<kept>(?i:secret_?access_?key)[\"' :=]{1,5})[A-Za-z0-9/+]{40}"
_JWT = "eyJ[A-Za-z0-9_-]{8,}+\\.eyJ[A-Za-z0-9_-]{8,}+\\.[A-Za-z0-9_-]{8,}"
_IN_ADDRESS = "(?<=://)[^\\s/:@]{1,64}:[^\\s/@]{1,128}(?=@[A-Za-z0-9\\[])"
_PRIVATE_KEY = (
    "-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----))*+"
    "(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
)
_EMAIL = (
    "(?<![A-Za-z0-9._%+-])(?!git@)[A-Za-z0-9_%+][A-Za-z0-9._%+-]{0,63}@(?![0-9.]+x\\.)"
    "(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_CARD = (
    "(?<![0-9.,-])(?:[2-6][0-9]{3}([ -]?)[0-9]{4}\\1[0-9]{4}\\1[0-9]{4}"
    "|3[47][0-9]{2}([ -]?)[0-9]{6}\\2[0-9]{5})(?![0-9-]|[.,][0-9])"
)
_RESIDENT = (
    "(?<![0-9-])[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])-?[1-8][0-9]{6}(?![0-9-])"
)
_MOBILE = (
    "(?<![0-9-])010([-.])[0-9]{4}\\1[0-9]{4}(?![0-9-])"
    "|\\+82[- ]?\\(?0?\\)?10[- .]?[0-9]{4}[- .]?[0-9]{4}(?![0-9-])"
)


def _key(pattern: str, *needles: str) -> Kind:
    """Return a kind of key that begins where no longer word goes on."""
    return Kind("[key]", re.compile(f"(?<![A-Za-z0-9_-]){pattern}"), needles)


# By a sign that they all hold: one look for it rules them out together.
BY_SIGN = (
    (
        "_",
        (
            _key("github_pat_[A-Za-z0-9_]{60,}", "github_pat_"),
            _key("gh[pousr]_[A-Za-z0-9]{36,}", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
            _key("hf_[A-Za-z0-9]{34,}", "hf_"),
            _key("[rs]k_(?:live|test)_[A-Za-z0-9]{16,}", "k_live_", "k_test_"),
            _key("npm_[A-Za-z0-9]{36}", "npm_"),
            Kind("[key]", re.compile(_AFTER_NAME), ("secret_access_key", "SECRET_ACCESS_KEY")),
        ),
    ),
    (
        "-",
        (
            Kind("[key]", re.compile(_PRIVATE_KEY), ("PRIVATE KEY",)),
            _key("sk-(?:ant|proj|svcacct|admin|or)-[A-Za-z0-9_-]{32,}", "sk-"),
            _key("sk-[A-Za-z0-9]{32,}", "sk-"),
            _key("xox[abeoprs]-[A-Za-z0-9-]{16,}", "xox"),
            _key("glpat-[A-Za-z0-9_-]{20,}", "glpat-"),
            _key("pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{30,}", "pypi-"),
        ),
    ),
    (
        "A",
        (
            _key("A(?:KI|SI)A[A-Z2-7]{16}(?![A-Z0-9])", "AKIA", "ASIA"),
            _key("AIza[A-Za-z0-9_-]{35}", "AIza"),
            Kind("[key]", re.compile(_AFTER_NAME), ("SecretAccessKey",)),
        ),
    ),
    ("J", (_key(_JWT, "eyJ"),)),
    (
        "@",
        (
            Kind("[password]", re.compile(_IN_ADDRESS), ("://",)),
            Kind("[email]", re.compile(_EMAIL), ("@",)),
        ),
    ),
)
NUMBERS = (
    Kind("[card number]", re.compile(_CARD), is_real=_passes_luhn),
    Kind("[ID number]", re.compile(_RESIDENT), is_real=_passes_resident),
    Kind("[phone number]", re.compile(_MOBILE)),
)


def find(text: str) -> str | None:
    """Return the text around the first such thing, with placeholders instead, or None."""
    starts = [
        match.start()
        for kind in _likely(text)
        for match in kind.pattern.finditer(text)
        if kind.is_real(match[0])
    ]
    if not starts:
        return None
    mended = mend(text)
    # No placeholder stands before the first place, so that it is the same in both texts.
    return mended[max(min(starts) - SHOWN_AROUND, 0) : min(starts) + SHOWN_AROUND]


def mend(text: str) -> str:
    """Return the text with a placeholder for each such thing."""
    for kind in _likely(text):
        text = kind.pattern.sub(partial(_placed, kind), text)
    return text


def _likely(text: str) -> Iterator[Kind]:
    """Yield the kinds that may be in a text, after looks that cost next to nothing."""
    for sign, kinds in BY_SIGN:
        if sign in text:
            yield from (kind for kind in kinds if any(needle in text for needle in kind.needles))
    raw = text.encode("utf-8", "replace")
    if len(raw) - len(raw.translate(None, DIGITS)) >= FEWEST_DIGITS:
        yield from NUMBERS


def _placed(kind: Kind, match: re.Match[str]) -> str:
    if not kind.is_real(match[0]):
        return match[0]
    return match.groupdict().get("kept", "") + kind.placeholder
