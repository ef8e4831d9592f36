"""Records into examples: what a row means, and which rows cannot be learned from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from lora_studio.data import turns
from lora_studio.data.columns import (
    ANSWER,
    CONTEXT,
    LAYOUTS,
    QUESTION,
    SYSTEM,
    TEXT,
    TURNS,
    match,
)
from lora_studio.data.examples import Example, Record, Skipped
from lora_studio.errors import DatasetError
from lora_studio.recipe import FormatName

NAMED_ROWS = 10


def by_file(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group records by file; the order stays."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.file, []).append(record)
    return groups


def recognise(records: Sequence[Record]) -> FormatName:
    """Return what the rows of one file mean.

    Raises:
        DatasetError: If the columns tell nothing; it names them and the choices.
    """
    columns = columns_of(records)
    if not columns:
        return "text"
    for name in LAYOUTS:
        parts = match(name, columns)
        if parts and _holds(records, parts):
            return name
    choices = "; ".join(layout.expected for layout in LAYOUTS.values())
    raise DatasetError(
        "data.unrecognised", file=records[0].file, columns=", ".join(columns), choices=choices
    )


def normalise(
    records: Sequence[Record], format_name: FormatName, empty_answers: Literal["skip", "stop"]
) -> tuple[list[Example], list[Skipped]]:
    """Turn records of any number of files into examples, each file by its own columns.

    Pairs and conversations all become messages, so that they train through the same chat template
    that answers later; Alpaca's input follows its instruction after a blank line.

    Args:
        records: What `files.read` returned.
        format_name: What every file must be, or `auto` to recognise each by itself.
        empty_answers: Whether a row without an answer is left out or refused.

    Returns:
        The examples, and the rows that give none, each in the order of the files.

    Raises:
        DatasetError: If columns do not fit, or rows without an answer are to be refused.
    """
    examples: list[Example] = []
    skipped: list[Skipped] = []
    for group in by_file(records).values():
        name = recognise(group) if format_name == "auto" else format_name
        parts = parts_of(group, name)
        for record in group:
            try:
                examples.append(_example(record, parts))
            except turns.UnusableRowError as error:
                skipped.append(Skipped(record.file, record.number, error.reason))
    if empty_answers == "stop":
        _refuse(skipped)
    return examples, skipped


def columns_of(records: Iterable[Record]) -> list[str]:
    """Return all columns of one file's rows, in the order they appear; none for a document."""
    columns: dict[str, None] = {}
    for record in records:
        if isinstance(record.value, dict):
            columns.update(dict.fromkeys(record.value))
    return list(columns)


def parts_of(records: Sequence[Record], format_name: FormatName) -> dict[str, str]:
    """Return which column of one file holds which part of the format; nothing for a document.

    Raises:
        DatasetError: If the file does not have the format's columns.
    """
    columns = columns_of(records)
    if not columns and format_name == "text":
        return {}
    parts = match(format_name, columns)
    if parts is None:
        raise DatasetError(
            "data.wrong_format" if columns else "data.document_has_no_columns",
            file=records[0].file,
            format=format_name,
            expected=LAYOUTS[format_name].expected,
            columns=", ".join(columns),
        )
    return parts


def _holds(records: Sequence[Record], parts: Mapping[str, str]) -> bool:
    """Tell whether the cells are what the columns' names promise: turns, or text."""
    column = parts.get(TURNS) or parts.get(TEXT)
    if column is None:
        return True
    cells = (record.value.get(column) for record in records if isinstance(record.value, dict))
    cell = next((cell for cell in cells if cell not in (None, "")), None)
    return turns.is_conversation(cell) if TURNS in parts else not isinstance(cell, list | dict)


def _example(record: Record, parts: Mapping[str, str]) -> Example:
    if isinstance(record.value, str):
        return Example.of_text(record, turns.text_of(record.value))
    row = {part: record.value.get(column) for part, column in parts.items()}
    if TEXT in parts:
        text = turns.text_of(row[TEXT])
        if not text:
            raise turns.UnusableRowError("data.skip_empty_text")
        return Example.of_text(record, text)
    system = turns.text_of(row.get(SYSTEM))
    if TURNS in parts:
        return Example.of_messages(record, turns.conversation(row[TURNS], system=system))
    asked = (turns.text_of(row.get(QUESTION)), turns.text_of(row.get(CONTEXT)))
    question = "\n\n".join(filter(None, asked))
    answer = turns.text_of(row.get(ANSWER))
    messages = turns.pair(system=system, question=question, answer=answer)
    return Example.of_messages(record, messages)


def _refuse(skipped: Sequence[Skipped]) -> None:
    rows = [row for row in skipped if row.reason == "data.skip_no_answer"]
    if not rows:
        return
    named = ", ".join(f"{row.file}:{row.number}" for row in rows[:NAMED_ROWS])
    more = ", …" if len(rows) > NAMED_ROWS else ""
    raise DatasetError("data.missing_answers", count=len(rows), rows=named + more)
