"""Bytes of a text file into text, whatever wrote it."""

from __future__ import annotations

import codecs
import unicodedata

from lora_studio.errors import DatasetError

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# The most control characters a text in a guessed encoding may hold; above it the guess is wrong.
MOST_CONTROL = 0.005


def decode(raw: bytes, *, file: str) -> str:
    r"""Return the text, with `\n` as its only line end.

    UTF-8 comes first and must fit exactly, then UTF-16 with its byte order mark, then the old
    Korean encoding (cp949) if what comes out is Korean, then what charset-normalizer finds.

    Args:
        raw: The file's content.
        file: Its name, for the errors.

    Raises:
        DatasetError: If there is no text in it, or it is not text.
    """
    text = _text(raw)
    if text is None:
        raise DatasetError("data.binary_file", file=file)
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise DatasetError("data.empty_file", file=file)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _text(raw: bytes) -> str | None:
    """Return the text, or None where the bytes are none."""
    if raw.startswith(UTF16_MARKS):
        text = _exactly(raw, "utf-16")
        return None if text is None or "\0" in text else text
    if b"\0" in raw:
        return None
    text = _exactly(raw, "utf-8")
    if text is not None:
        return text
    text = _exactly(raw, "cp949")
    return text if text is not None and _is_korean(text) else _detected(raw)


def _exactly(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _is_korean(text: str) -> bool:
    """Tell whether nearly all letters outside ASCII are Hangul: a short text misleads detectors."""
    letters = [char for char in text if not char.isascii() and char.isalpha()]
    hangul = sum("가" <= char <= "힣" or "ㄱ" <= char <= "ㆎ" for char in letters)
    return bool(letters) and hangul >= 0.9 * len(letters)


def _detected(raw: bytes) -> str | None:
    """Return the text in the encoding charset-normalizer finds, None where it finds none.

    Of single-byte encodings that fit a short text equally, windows-1252 is the likeliest; the web
    falls back on it too (WHATWG Encoding Standard, section 4.2).
    """
    from charset_normalizer import from_bytes

    matches = from_bytes(raw)
    best = matches.best()
    if best is None:
        return None
    is_western = any("cp1252" in match.could_be_from_charset for match in matches)
    text = _exactly(raw, "cp1252") if is_western else str(best)
    if text is None:
        return None
    control = sum(unicodedata.category(char) == "Cc" and not char.isspace() for char in text)
    return text if control <= MOST_CONTROL * len(text) else None
