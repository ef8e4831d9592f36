"""Which encoding the bytes of a text file are in, whatever wrote it."""

from __future__ import annotations

import codecs
import unicodedata

from lora_studio.data.reading import scripts
from lora_studio.data.reading.scripts import Script

HEAD_BYTES = 2**20
"""How much of a file's beginning is looked at."""
SAMPLE_BYTES = 2**15
# Longer marks first: that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# The old encodings of East Asia; cp932 is Shift-JIS with the characters Windows added.
EAST_ASIAN: tuple[tuple[str, Script], ...] = (
    ("cp949", "korean"),
    ("shift_jis", "japanese"),
    ("cp932", "japanese"),
    ("euc_jp", "japanese"),
    ("gb18030", "chinese"),
    ("big5", "traditional"),
)
LEAST_LIKENESS = 0.42
# Detectors know nothing of a few words; everyday letters are then a better sign than theirs.
SHORT_BYTES = 100
LEAST_LIKENESS_OF_SHORT = 0.25
# Not in doubt by now: these were tried before.
UNICODE = ["utf_7", "utf_8", "utf_8_sig", "utf_16", "utf_16_be", "utf_16_le", "utf_32"]
# The most control characters a text in a guessed encoding may hold; above it the guess is wrong.
MOST_CONTROL = 0.005
# The same in all of them: no second byte of a character is below 0x30.
CONTROL = bytes({*range(32), 127} - set(b"\t\n\v\f\r\x1c\x1d\x1e\x1f"))
MOST_NUL = 0.2
"""The largest share of NUL characters in a text; UTF-16 taken for UTF-8 has about a half."""


def detect(head: bytes, *, is_whole: bool) -> str | None:
    """Return the encoding, as Python names it, or None where the bytes are no text.

    A byte order mark decides; then UTF-8 if it fits, UTF-16 without a mark if it is clear, the
    old encodings of East Asia by the letters that come out, and what charset-normalizer finds.

    Args:
        head: The file's content, or its beginning, which may end within a character.
        is_whole: Whether that is all of it.
    """
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding if _fits(head, encoding, is_whole=is_whole) else None
    if _fits(head, "utf-8", is_whole=is_whole):
        return "utf-8"
    if b"\0" in head and (unmarked := _unmarked_utf16(head)):
        return unmarked
    if is_mostly_utf8(head):
        return "utf-8"
    return next(iter(candidates(head, is_whole=is_whole)), None)


def candidates(head: bytes, *, is_whole: bool) -> list[str]:
    """Return the encodings besides Unicode's that the bytes may well be in, the likeliest first.

    Args:
        head: As for `detect`.
        is_whole: As for `detect`.
    """
    if len(head) - len(head.translate(None, CONTROL)) > max(1, MOST_CONTROL * len(head)):
        return []
    sample = _telling(head)
    is_short = len(sample) <= SHORT_BYTES
    found: dict[str, float] = {}
    for encoding, script in EAST_ASIAN:
        text = _decoded(sample, encoding, is_whole=False)
        if text is None or not _is_clean(text) or not _fits(head, encoding, is_whole=is_whole):
            continue
        likeness = scripts.likeness(text, script)
        # An accent before a letter is a character of Big5.
        has_few = is_short and encoding != "big5"
        least = LEAST_LIKENESS_OF_SHORT if has_few else LEAST_LIKENESS
        if likeness >= least or (script == "korean" and scripts.is_hangul(text)):
            found[encoding] = likeness
    # Sorting keeps the order of equals: cp932 comes after shift_jis, which says the same.
    ranked = sorted(found, key=lambda name: -found[name])
    ranked = ranked or _nearly(sample)
    return ranked or _detected(head if len(head) <= 2 * SAMPLE_BYTES else sample)


def is_mostly_utf8(head: bytes) -> bool:
    """Tell whether this is UTF-8 with a few broken places: most characters outside ASCII fit."""
    text = head.decode("utf-8", "replace")
    broken = text.count("\ufffd") - head.count("\ufffd".encode())
    fitting = sum(not char.isascii() for char in text[: 2 * SAMPLE_BYTES]) - broken
    return fitting >= 8 and fitting >= 8 * broken


def _fits(head: bytes, encoding: str, *, is_whole: bool) -> bool:
    text = _decoded(head, encoding, is_whole=is_whole)
    return text is not None and text.count("\0") <= MOST_NUL * len(text)


def _decoded(head: bytes, encoding: str, *, is_whole: bool) -> str | None:
    """Return the text, without a character that is cut off at the end unless that is the end."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head, final=is_whole)
    except UnicodeError:
        return None


def _unmarked_utf16(head: bytes) -> str | None:
    """Return the byte order in which a text without a mark has letters and spaces of ASCII."""
    found = {}
    for encoding in ("utf-16-le", "utf-16-be"):
        text = _decoded(head[: 2 * SAMPLE_BYTES], encoding, is_whole=False)
        if text and not any(_is_strange(char) for char in text):
            found[encoding] = sum(map(str.isascii, text)) / len(text)
    best = max(found, key=lambda name: found[name], default=None)
    return best if best and found[best] >= 0.05 else None


def _is_strange(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs") and not char.isspace()


def _is_clean(text: str) -> bool:
    """Tell whether control characters are as few as in a text; a stray one is no sign."""
    control = sum(unicodedata.category(char) == "Cc" and not char.isspace() for char in text)
    return control <= max(1, MOST_CONTROL * len(text))


def _telling(head: bytes) -> bytes:
    """Return the lines with bytes outside ASCII, as far as a sample goes."""
    lines: list[bytes] = []
    size = 0
    for line in head.split(b"\n"):
        if not line.isascii():
            lines.append(line[:SAMPLE_BYTES])
            size += len(lines[-1])
            if size >= SAMPLE_BYTES:
                break
    return b"\n".join(lines)


def _nearly(sample: bytes) -> list[str]:
    """Return the East Asian encoding that most of the text is in, if a few places are broken."""
    for encoding, script in EAST_ASIAN:
        text = sample.decode(encoding, "replace")
        broken = text.count("\ufffd")
        fitting = sum(not char.isascii() for char in text) - broken
        is_most = fitting >= 8 and fitting >= 8 * broken
        if is_most and scripts.likeness(text, script) >= LEAST_LIKENESS:
            return [encoding]
    return []


def _detected(sample: bytes) -> list[str]:
    """Return the encoding charset-normalizer finds, if any.

    Of single-byte encodings that fit a short text equally, windows-1252 is the likeliest; the web
    falls back on it too (WHATWG Encoding Standard, section 4.2).
    """
    from charset_normalizer import from_bytes

    matches = from_bytes(sample, cp_exclusion=UNICODE)
    best = matches.best()
    if best is None:
        return []
    is_western = any("cp1252" in match.could_be_from_charset for match in matches)
    encoding = "cp1252" if is_western else codecs.lookup(best.encoding).name
    text = _decoded(sample, encoding, is_whole=False)
    return [encoding] if text is not None and _is_clean(text) else []
