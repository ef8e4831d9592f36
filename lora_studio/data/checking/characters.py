"""Characters that cannot be seen and mean nothing where they stand.

Lines and tabs stay, carriage returns too: they are line ends. Where a script needs an invisible
character, it stays: joiners in emoji and in Indic and Arabic scripts, marks of direction in a text
with right-to-left letters, word breaks in Thai, Lao, Khmer and Burmese, tags behind a flag (Unicode
Standard 16, sections 23.2 and 23.9).
"""

from __future__ import annotations

import re
from functools import cache

SHOWN_AROUND = 40

# Controls, soft hyphen, invisible operators, byte order marks, halves of pairs, noncharacters.
ALWAYS = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u180e\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
)
DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
WORD_BREAK = "\u200b"
# Latin letters, digits and ASCII signs, Hangul, kana, Chinese characters: they are never joined.
PLAIN = "\x00-\u024f\u1100-\u11ff\u3000-\u318f\u4e00-\u9fff\uac00-\ud7a3"
JOINERS = f"(?<![^{PLAIN}])[\u200c\u200d]+(?![^{PLAIN}])"
TAGS = "(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+"

RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc]")
WITHOUT_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
HALVES = re.compile("[\ud800-\udfff]")
# These part words or lines, so that something visible takes their place.
PARTING = dict.fromkeys("\x0b\x0c\x85", "\n") | dict.fromkeys("\x1c\x1d\x1e\x1f", " ")


def find(text: str) -> str | None:
    """Return the text around the first such character, escaped, or None."""
    if text.replace("\n", " ").isprintable():
        return None
    pattern = _pattern_for(text)
    match = pattern.search(text)
    if match is None:
        return None
    start = max(match.start() - SHOWN_AROUND, 0)
    return pattern.sub(_written, text[start : match.end() + SHOWN_AROUND])


def mend(text: str) -> str:
    """Return the text without such characters."""
    if HALVES.search(text):
        # Two halves that belong together become the character they stand for.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return _pattern_for(text).sub(_parted, text)


def _pattern_for(text: str) -> re.Pattern[str]:
    return _pattern(
        directions=RIGHT_TO_LEFT.search(text) is None,
        breaks=WITHOUT_SPACES.search(text) is None,
    )


@cache
def _pattern(*, directions: bool, breaks: bool) -> re.Pattern[str]:
    single = ALWAYS + DIRECTIONS * directions + WORD_BREAK * breaks
    return re.compile(f"[{single}]+|{JOINERS}|{TAGS}")


def _parted(match: re.Match[str]) -> str:
    return "".join(PARTING.get(character, "") for character in match[0])


def _written(match: re.Match[str]) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in match[0])
