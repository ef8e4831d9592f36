"""JSON and JSON Lines into records."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from lora_studio.data.examples import Record
from lora_studio.data.reading.rows import NAN, Repeated, Unreadable, tidy
from lora_studio.data.reading.texts import MIB, Text
from lora_studio.errors import DatasetError

LARGEST_JSON_BYTES = 256 * MIB
"""JSON is parsed as a whole; JSON Lines may be of any size."""
# An escaped NUL, or what may be half of a surrogate pair.
ODD_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
BROKEN = (ValueError, RecursionError)  # also a number or a nesting beyond all reason


class _Parser:
    """Parses JSON and knows whether `tidy` has to look at what came out."""

    def __init__(self) -> None:
        self.is_odd = False
        self._decode = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
        ).decode

    def parse(self, text: str) -> Any:
        self.is_odd = False
        content = self._decode(text)
        if not self.is_odd and "\\u" in text:
            self.is_odd = ODD_ESCAPE.search(text) is not None
        return content

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        self.is_odd = True
        return Repeated(made)

    def _constant(self, _: str) -> Any:
        self.is_odd = True
        return NAN

    def _float(self, digits: str) -> float:
        number = float(digits)
        if math.isinf(number):  # as 1e999
            self.is_odd = True
        return number


def read_json(text: Text) -> Iterator[Record | Unreadable]:
    """Yield the objects of a list, of the one list inside an object, or of JSON lines.

    Raises:
        DatasetError: For broken JSON, naming its line, where no rows are found, or for a file
            too large to be parsed as a whole.
    """
    whole = text.whole(most_bytes=LARGEST_JSON_BYTES, key="data.large_json")
    parser = _Parser()
    try:
        content = _parsed(whole, parser)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and whole.lstrip().startswith("{"):
            del whole
            yield from read_json_lines(text)
            return
        raise DatasetError("data.broken_json", file=text.file, line=error.lineno) from error
    except BROKEN as error:
        raise DatasetError("data.broken_json", file=text.file, line=1) from error
    del whole
    rows = _rows_within(content) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DatasetError("data.no_rows", file=text.file)
    if not rows:
        raise DatasetError("data.header_only", file=text.file)
    text.position.begin(len(rows))
    for number, row in enumerate(rows, start=1):
        text.position.done = number
        yield _record(row, text.file, number, is_odd=parser.is_odd)


def read_json_lines(text: Text) -> Iterator[Record | Unreadable]:
    """Yield one object per line; blank lines are left out but counted in the numbers.

    A line that is not a JSON object is unreadable.

    Raises:
        DatasetError: As `read_json`, where the file is a JSON list instead.
    """
    parser = _Parser()
    file = text.file
    is_first = True
    for number, line in enumerate(text.lines(), start=1):
        if not line or line.isspace():
            continue
        if is_first and line.lstrip().startswith("["):
            yield from read_json(text)
            return
        is_first = False
        has_nul = text.has_nul and "\0" in line
        try:
            row = parser.parse(line.replace("\0", "") if has_nul else line)
        except BROKEN:
            yield Unreadable(file, number, _broken(file, number))
            continue
        if has_nul:
            yield _marked(_record(row, file, number, is_odd=parser.is_odd))
        elif parser.is_odd or not isinstance(row, dict):
            yield _record(row, file, number, is_odd=parser.is_odd)
        else:
            yield Record(file, number, row)


def _parsed(whole: str, parser: _Parser) -> Any:
    """Parse with the NUL characters as escapes, so that `tidy` finds their rows, or without."""
    if "\0" not in whole:
        return parser.parse(whole)
    try:
        return parser.parse(whole.replace("\0", "\\u0000"))
    except BROKEN:
        return parser.parse(whole.replace("\0", ""))


def _record(row: Any, file: str, number: int, *, is_odd: bool) -> Record | Unreadable:
    if not isinstance(row, dict):
        error = DatasetError("data.row_not_object", file=file, row=number)
        return Unreadable(file, number, error)
    if not is_odd:
        return Record(file, number, row)
    try:
        return Record(file, number, *tidy(row))
    except RecursionError:
        return Unreadable(file, number, _broken(file, number))


def _marked(row: Record | Unreadable) -> Record | Unreadable:
    """Note that NUL characters were taken out before parsing."""
    if isinstance(row, Unreadable):
        return row
    oddities = tuple(dict.fromkeys((*row.oddities, "nul")))
    return Record(row.file, row.number, row.value, oddities)


def _broken(file: str, line: int) -> DatasetError:
    return DatasetError("data.broken_json", file=file, line=line)


def _rows_within(content: dict[str, Any]) -> list[Any] | None:
    """Return the one list of objects inside; an object that is itself a conversation is one row."""
    lists = [
        value
        for value in content.values()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    if len(lists) != 1:
        return [content] if not lists else None
    turn = lists[0][0]
    is_conversation = {"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys()
    return [content] if is_conversation else lists[0]
