"""What the rows of a file mean, and each row as the examples it gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lora_studio.data import columns as names
from lora_studio.data import labels, pairs, prompting, turns
from lora_studio.data.columns import (
    ANSWER,
    CONTEXT,
    LABEL,
    LAYOUTS,
    PAIRS,
    QUESTION,
    SYSTEM,
    TEXT,
    TURNS,
    match,
)
from lora_studio.data.examples import Example, Message, Record
from lora_studio.errors import DatasetError
from lora_studio.recipe import CLASSIFICATION, DataSpec, FormatName

LONGEST_LABEL = 40
"""Characters of what is taken for a class where no name tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What the rows of one file mean; it can be pickled."""

    format: FormatName
    """Never `auto`."""
    parts: Mapping[str, str]
    """Part -> column; empty for documents."""
    columns: tuple[str, ...]
    """All columns of the head, in the order they appear; none for documents."""
    unused: tuple[str, ...]
    """Columns that nothing is taken from."""
    template: str = ""
    """The Jinja template that makes the question where there is an answer, else the text."""
    finds_pairs: bool = False
    """Whether a document gives the questions and answers found in it."""

    def examples(self, record: Record) -> list[Example]:
        """Return what a row gives to learn from: one example, of a document of pairs many.

        Alpaca's input and SQuAD's context follow their question after a blank line. A column that
        the row lacks is empty.

        Raises:
            turns.UnusableRowError: If it gives nothing; with the reason.
            DatasetError: If questions and answers are wanted of a document that has none.
        """
        if isinstance(record.value, str):
            return self._of_document(record, record.value)
        row = {part: record.value.get(column) for part, column in self.parts.items()}
        if self.template:
            part = QUESTION if ANSWER in self.parts else TEXT
            cells = {**dict.fromkeys(self.columns), **record.value}
            row[part] = prompting.render(self.template, cells)
        if LABEL in row:
            return [_labelled(record, row.get(TEXT), row[LABEL])]
        if TEXT in row or not row:
            return [_of_text(record, row.get(TEXT))]
        return [Example.of_messages(record, _messages(row))]

    def _of_document(self, record: Record, text: str) -> list[Example]:
        if not self.finds_pairs:
            return [_of_text(record, text)]
        found = pairs.find(text)
        if not found:
            raise DatasetError("data.no_pairs", file=record.file)
        return [
            Example.of_messages(
                Record(record.file, pair.line, {}),
                turns.pair(
                    system="",
                    question=turns.text_of(pair.question),
                    answer=turns.text_of(pair.answer),
                ),
            )
            for pair in found
        ]


def understand(file: str, head: Sequence[Record], spec: DataSpec) -> Meaning:
    """Return what the rows of one file mean.

    `spec.columns` goes before `spec.format`, and that before a guess: from the columns' names,
    then from what the cells hold. A part with an empty column is left out. `spec.template` makes
    the question if there is an answer: a named one, or one guessed that the template itself does
    not use. None of these touches documents, which have no columns.

    Args:
        file: The file's name, for errors.
        head: Its first records, all of which are read.
        spec: The recipe's data section.

    Raises:
        DatasetError: If the columns tell nothing, do not fit what was chosen, or are not there, or
            if the template is broken or fails on every row.
    """
    columns = _columns(head)
    if not columns:
        return _document(file, spec)
    named = _named(spec.columns, columns, file=file)
    if spec.format == CLASSIFICATION:
        return _classified(file, head, spec, columns=columns, named=named)
    named.pop(LABEL, None)
    if spec.template.strip():
        return _templated(file, head, spec, columns=columns, named=named)
    free = [column for column in columns if column not in named.values()]
    if {TURNS, TEXT, QUESTION, CONTEXT, ANSWER} & named.keys():
        format_name, parts = _around(named, free, head, file=file, chosen=spec.format)
    else:
        format_name, parts = _guessed(file, head, free, chosen=spec.format)
        parts |= named
    parts = {part: column for part, column in parts.items() if spec.columns.get(part) != ""}
    return Meaning(
        format=format_name,
        parts=parts,
        columns=columns,
        unused=tuple(column for column in columns if column not in parts.values()),
    )


def _document(file: str, spec: DataSpec) -> Meaning:
    if spec.format == CLASSIFICATION:
        expected = LAYOUTS[CLASSIFICATION].expected
        raise DatasetError("data.no_labels_in_document", file=file, expected=expected)
    finds_pairs = spec.text_as == "pairs"
    suits: tuple[FormatName, ...] = ("question_answer",) if finds_pairs else ("text",)
    if spec.format not in {"auto", "text", *suits}:
        expected = LAYOUTS[spec.format].expected
        raise DatasetError(
            "data.document_has_no_columns", file=file, format=spec.format, expected=expected
        )
    return Meaning(format=suits[0], parts={}, columns=(), unused=(), finds_pairs=finds_pairs)


def _templated(
    file: str,
    head: Sequence[Record],
    spec: DataSpec,
    *,
    columns: tuple[str, ...],
    named: Mapping[str, str],
) -> Meaning:
    used = prompting.columns_used(spec.template, columns)
    answer = named.get(ANSWER)
    if answer is None and spec.format != "text" and spec.columns.get(ANSWER) != "":
        free = [column for column in columns if column not in used]
        answer = names.guess(ANSWER, free)
    parts = {ANSWER: answer, SYSTEM: named.get(SYSTEM)} if answer else {}
    meaning = Meaning(
        format="question_answer" if answer else "text",
        parts={part: column for part, column in parts.items() if column},
        columns=columns,
        unused=tuple(c for c in columns if c not in used and c not in parts.values()),
        template=spec.template,
    )
    prompting.check(spec.template, head, columns=columns, file=file)
    return meaning


def _classified(
    file: str,
    head: Sequence[Record],
    spec: DataSpec,
    *,
    columns: tuple[str, ...],
    named: Mapping[str, str],
) -> Meaning:
    """Return a text and its label; a question is the text only where a person named it."""
    template = spec.template if spec.template.strip() else ""
    used = prompting.columns_used(template, columns) if template else frozenset()
    text, label = named.get(TEXT) or named.get(QUESTION), named.get(LABEL)
    known = {LABEL: label} if template else {TEXT: text, LABEL: label}
    parts = {part: column for part, column in known.items() if column}
    free = [column for column in columns if column not in used]
    for guess in (_part_by_name, _part_by_content):
        for part in (LABEL, TEXT):
            left = [column for column in free if column not in parts.values()]
            column = guess(part, left, head)
            if column and part in known and part not in parts:
                parts[part] = column
    missing = [part for part in known if part not in parts]
    if missing and not template and not named:
        raise _wrong_format(file, CLASSIFICATION, columns)
    if missing:
        raise DatasetError("data.part_missing", file=file, part=missing[0], columns=free)
    if template:
        prompting.check(template, head, columns=columns, file=file)
    return Meaning(
        format=CLASSIFICATION,
        parts=parts,
        columns=columns,
        unused=tuple(c for c in columns if c not in used and c not in parts.values()),
        template=template,
    )


def _part_by_name(part: str, columns: Sequence[str], _: Sequence[Record]) -> str | None:
    return names.guess(part, columns, [CLASSIFICATION])


def _part_by_content(part: str, columns: Sequence[str], head: Sequence[Record]) -> str | None:
    """Return the only column of few short values, or the only one of words."""
    kinds = [c for c in columns if not names.is_about(c) and _names_classes(_cells(head, c))]
    found = kinds if part == LABEL else _texts(head, [c for c in columns if c not in kinds])
    return found[0] if len(found) == 1 else None


def _names_classes(cells: Iterable[object]) -> bool:
    """Tell whether cells are short and few of them differ."""
    texts = [turns.text_of(cell) for cell in cells]
    is_short = max(map(len, texts), default=0) <= LONGEST_LABEL
    return is_short and 2 <= len(set(texts)) <= len(texts) // 2


def _named(wanted: Mapping[str, str], columns: Sequence[str], *, file: str) -> dict[str, str]:
    """Return the columns that a person named, as the file spells them."""
    named: dict[str, str] = {}
    for part, name in wanted.items():
        if not name:
            continue
        column = names.find(name, columns)
        if column is None:
            raise DatasetError(
                "data.no_such_column",
                file=file,
                part=part,
                column=name,
                columns=list(columns),
            )
        named[part] = column
    return named


def _around(
    named: dict[str, str],
    free: list[str],
    head: Sequence[Record],
    *,
    file: str,
    chosen: FormatName,
) -> tuple[FormatName, dict[str, str]]:
    """Return the format that the named parts make up, and the parts with the rest guessed."""
    kinds = [{TURNS}, {TEXT}, {QUESTION, CONTEXT, ANSWER}]
    kind, *others = [kind for kind in kinds if kind & named.keys()]
    if others:
        raise DatasetError("data.parts_clash", file=file, parts=list(named))
    if kind == {TEXT}:
        return "text", {TEXT: named[TEXT]}
    parts = dict(named)
    wanted = [] if kind == {TURNS} else [QUESTION, ANSWER]
    for part in wanted:
        left = [column for column in free if column not in parts.values()]
        if part not in parts:
            parts[part] = _missing(part, left, head, file=file)
    for part in (SYSTEM, CONTEXT) if wanted else (SYSTEM,):
        left = [column for column in free if column not in parts.values()]
        column = names.guess(part, left)
        if part not in parts and column:
            parts[part] = column
    if wanted:
        return (chosen if chosen in PAIRS else "question_answer"), parts
    if chosen in {"messages", "conversations"}:
        return chosen, parts
    cells = _cells(head, parts[TURNS])
    return ("conversations" if any(map(turns.is_sharegpt, cells)) else "messages"), parts


def _missing(part: str, free: list[str], head: Sequence[Record], *, file: str) -> str:
    """Return the column for a part that was not named though its counterpart was."""
    column = names.guess(part, free)
    if column is None:
        texts = _texts(head, free)
        column = texts[0] if len(texts) == 1 else None
    if column is None:
        raise DatasetError("data.part_missing", file=file, part=part, columns=free)
    return column


def _guessed(
    file: str, head: Sequence[Record], columns: Sequence[str], *, chosen: FormatName
) -> tuple[FormatName, dict[str, str]]:
    """Return the format and the parts by the columns' names, else by what the cells hold."""
    if chosen != "auto":
        parts = match(chosen, columns) or _by_content(chosen, head, columns)
        if parts:
            return chosen, parts
        raise _wrong_format(file, chosen, columns)
    for name in names.GUESSED:
        parts = match(name, columns)
        if parts and _holds(head, parts):
            return name, parts
    guesses: tuple[FormatName, ...] = ("conversations", "messages", "question_answer", "text")
    for name in guesses:
        parts = _by_content(name, head, columns)
        if parts:
            return name, parts
    choices = "; ".join(LAYOUTS[name].expected for name in names.GUESSED)
    raise DatasetError("data.unrecognised", file=file, columns=list(columns), choices=choices)


def _wrong_format(file: str, chosen: FormatName, columns: Sequence[str]) -> DatasetError:
    expected = LAYOUTS[chosen].expected
    return DatasetError(
        "data.wrong_format", file=file, format=chosen, expected=expected, columns=list(columns)
    )


def _by_content(
    name: FormatName, head: Sequence[Record], columns: Sequence[str]
) -> dict[str, str] | None:
    """Return the parts where just one reading of the cells is possible.

    One column of turns is a conversation; two columns of text are question and answer, in that
    order unless a name says otherwise; one column of text beside numbers and labels is a text.
    """
    if name in {"messages", "conversations"}:
        test = turns.is_sharegpt if name == "conversations" else turns.holds_roles
        talks = [column for column in columns if any(map(test, _cells(head, column)))]
        return {TURNS: talks[0]} if len(talks) == 1 else None
    texts = _texts(head, columns)
    if name in PAIRS and len(texts) == 2:
        question, answer = texts
        if names.guess(ANSWER, [question]) or names.guess(QUESTION, [answer]):
            question, answer = answer, question
        return {QUESTION: question, ANSWER: answer}
    about = [column for column in columns if names.is_about(column)]
    if name == "text" and len(texts) == 1 and len(about) == len(columns) - 1:
        return {TEXT: texts[0]}
    return None


def _texts(head: Sequence[Record], columns: Iterable[str]) -> list[str]:
    """Return the columns that hold words, most of them; numbers and labels do not count."""

    def is_text(column: str) -> bool:
        cells = list(_cells(head, column))
        words = [isinstance(cell, str) and any(map(str.isalpha, cell)) for cell in cells]
        return sum(words) * 2 > len(words)

    return [column for column in columns if not names.is_about(column) and is_text(column)]


def _holds(head: Sequence[Record], parts: Mapping[str, str]) -> bool:
    """Tell whether the cells are what the columns' names promise: turns, or text."""
    column = parts.get(TURNS) or parts.get(TEXT)
    if column is None:
        return True
    cells = list(_cells(head, column))
    if TURNS in parts:
        return any(map(turns.is_conversation, cells))
    return not cells or not all(isinstance(cell, list | dict) for cell in cells)


def _cells(head: Sequence[Record], column: str) -> Iterable[object]:
    """Yield the cells of a column that hold something."""
    for record in head:
        cell = record.value.get(column) if isinstance(record.value, dict) else None
        if not turns.is_blank(cell):
            yield cell


def _columns(head: Iterable[Record]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for record in head:
        if isinstance(record.value, dict):
            found.update(dict.fromkeys(record.value))
    return tuple(found)


def _messages(row: Mapping[str, object]) -> tuple[Message, ...]:
    system = turns.text_of(row.get(SYSTEM))
    if TURNS in row:
        return turns.conversation(row[TURNS], system=system)
    listed = turns.of_lists(row.get(QUESTION), row.get(ANSWER), system=system)
    if listed:
        return listed
    asked = (turns.text_of(row.get(QUESTION)), turns.text_of(row.get(CONTEXT)))
    question = "\n\n".join(filter(None, asked))
    return turns.pair(system=system, question=question, answer=turns.answer_of(row.get(ANSWER)))


def _of_text(record: Record, cell: object) -> Example:
    text = turns.text_of(cell)
    if not text:
        raise turns.UnusableRowError("data.skip_empty_text")
    return Example.of_text(record, text)


def _labelled(record: Record, cell: object, label: object) -> Example:
    text = turns.text_of(cell)
    if not text:
        raise turns.UnusableRowError("data.skip_empty_text")
    return Example.of_text(record, text, labels.name_of(label))
