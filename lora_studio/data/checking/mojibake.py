"""Text that was decoded with the wrong encoding once, and its repair.

ftfy finds and repairs UTF-8 read as a one-byte encoding; its careful look costs fifty times as much
as a search for pairs of characters that such a mistake leaves, so that search comes first. What
ftfy does not know is Korean in the old encoding read as Latin-1, and "占쏙옙", which is what U+FFFD
becomes when it is read as Korean; nobody can repair the latter, nor U+FFFD itself.
"""

from __future__ import annotations

import re
from functools import cache

SHOWN_AROUND = 60
LOST = ("\ufffd", "占쏙옙")
# The encodings that ftfy repairs: https://ftfy.readthedocs.io/en/latest/encodings.html
ENCODINGS = (
    "latin-1",
    "cp1252",
    "cp1251",
    "cp1250",
    "cp1253",
    "cp1254",
    "cp1257",
    "iso8859-2",
    "mac-roman",
    "cp437",
)
# First bytes in UTF-8 of what stands in those encodings: in Korean text only some punctuation.
FOREIGN = bytes([*range(0xC2, 0xD4), 0xE2, 0xEF])
# Hangul and signs of KS X 1001, two Latin-1 characters each and nothing like them around. Three in
# a row tell that it is Korean, unless all of them could be UTF-8 of accented letters.
OLD_KOREAN_RUN = re.compile("(?<![\x80-\xff])(?:[\xa1-\xc8][\xa1-\xfe])++(?![\x80-\xff])")
OLD_KOREAN = re.compile(
    "(?<![\x80-\xff])(?!(?:[\xc2-\xc8][\xa1-\xbf])++(?![\x80-\xff]))"
    "(?:[\xb0-\xc8][\xa1-\xfe]){3,}+(?![\x80-\xff])"
)


def find(text: str) -> str | None:
    """Return the text around the first such place, or None."""
    if text.isascii():
        return None
    places = [at for mark in LOST if (at := text.find(mark)) >= 0]
    if places:
        return _around(text, min(places))
    raw = text.encode("utf-8", "replace")
    if len(raw.translate(None, FOREIGN)) == len(raw):
        return None
    if OLD_KOREAN.search(text) is None and _suspect(text) is None:
        return None
    for line in text.split("\n"):
        if _repaired(line) != line:
            found = OLD_KOREAN.search(line) or _suspect(line)
            return _around(line, found.start() if found else 0)
    return None


def mend(text: str) -> str:
    """Return the text with its encoding repaired where it can be; nothing else is changed."""
    if text.isascii():
        return text
    return "\n".join(map(_repaired, text.split("\n")))


def _repaired(line: str) -> str:
    if OLD_KOREAN.search(line):
        return OLD_KOREAN_RUN.sub(_as_korean, line)
    if _suspect(line) is None:
        return line
    import ftfy

    return ftfy.fix_encoding(line)


def _as_korean(match: re.Match[str]) -> str:
    try:
        return match[0].encode("latin-1").decode("cp949")
    except UnicodeDecodeError:
        return match[0]


def _suspect(text: str) -> re.Match[str] | None:
    """Find what may be UTF-8 read as something else: `match.start()` is in the middle of it."""
    return _trace().search(text)


@cache
def _trace() -> re.Pattern[str]:
    """Build the pattern from what the bytes of UTF-8 are in the encodings.

    It starts with the second character, which is rare in ordinary text of any language.
    """
    two, three, four, rest = (
        _read_as_any(*ends) for ends in ((0xC2, 0xDF), (0xE0, 0xEF), (0xF0, 0xF4), (0x80, 0xBF))
    )
    before = (
        "(?<=[\x80-\x9f])",
        "(?<=[ÂÃ][ \xa0])",
        f"(?<=[{two}][{rest}])",
        f"(?<=[{three}][{rest}])(?=[{rest}])",
        f"(?<=[{four}][{rest}])(?=[{rest}]{{2}})",
    )
    return re.compile(f"[{rest}\x80-\x9f \xa0](?:{'|'.join(before)})")


def _read_as_any(first: int, last: int) -> str:
    """Return the characters that a range of bytes is in the encodings, for use in a class."""
    raw = bytes(range(first, last + 1))
    return "".join(sorted({c for name in ENCODINGS for c in raw.decode(name, "ignore")}))


def _around(text: str, at: int) -> str:
    return text[max(at - SHOWN_AROUND, 0) : at + SHOWN_AROUND]
