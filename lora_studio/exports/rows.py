"""Encoded rows as text, one row a line.

What is read and what is learned stands there piece by piece; a text to classify with its label.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.data.encoding import IGNORE_INDEX, Encoded
from lora_studio.training.plan import evenly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_studio.data.prepared import Prepared, Rows

ROWS, HELD_OUT, CHAT_TEMPLATE = "rows.jsonl", "held_out.jsonl", "chat_template.jinja"
LABELS = "labels.json"

Piece = dict[str, Any]
Line = dict[str, Any]


def write_rows(prepared: Prepared, folder: Path, *, held_out: int) -> dict[str, int]:
    """Write what a training reads beside its script.

    Args:
        prepared: The rows.
        folder: Where to; it must exist.
        held_out: How many of the rows held out are measured on.

    Returns:
        `rows`, `held_out`, and `as_numbers`: pieces, or texts to classify, whose text alone would
        not give their tokens again, written as token ids.
    """
    tokenizer = prepared.tokenizer
    names = [name for name, _, _ in prepared.report.labels]
    numbers = _write(prepared.train.batches(), tokenizer, folder / ROWS, names)
    if held_out:
        measured = _measured(prepared.evaluation, held_out)
        numbers += _write(measured, tokenizer, folder / HELD_OUT, names)
    if names:
        (folder / LABELS).write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    if prepared.report.own_template:
        text = str(tokenizer.chat_template)
        (folder / CHAT_TEMPLATE).write_text(text, encoding="utf-8")
    return {"rows": len(prepared.train), "held_out": held_out, "as_numbers": numbers}


def _measured(rows: Rows, count: int) -> Iterator[list[Encoded]]:
    """Yield as many rows as a training measures on, the same ones."""
    wanted = set(evenly(len(rows), count))
    places = itertools.count()
    for batch in rows.batches():
        yield [row for row, place in zip(batch, places, strict=False) if place in wanted]


def _write(
    batches: Iterable[list[Encoded]],
    tokenizer: PreTrainedTokenizerBase,
    file: Path,
    names: Sequence[str],
) -> int:
    """Write rows; return how many pieces stand there as numbers."""
    numbers = 0
    with file.open("w", encoding="utf-8") as lines:
        for batch in batches:
            for line in _lines(batch, tokenizer, names):
                numbers += sum("ids" in piece for piece in line.get("pieces", [line]))
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    return numbers


def _lines(
    rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, names: Sequence[str]
) -> Iterator[Line]:
    if names:
        return as_labelled(rows, tokenizer, names)
    return ({"pieces": row} for row in as_pieces(rows, tokenizer))


def as_labelled(
    rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, names: Sequence[str]
) -> Iterator[Line]:
    """Yield each text with the name of its class.

    Its token ids stand in place of the text where the tokenizer would not make the same of it: a
    text cut within a character, or one that spells out a special token.
    """
    if not rows:
        return
    ids = [row.input_ids for row in rows]
    texts = tokenizer.batch_decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    again = tokenizer(texts, verbose=False)["input_ids"]
    for row, text, tokens in zip(rows, texts, again, strict=True):
        is_same = tokens == row.input_ids
        said = {"text": text} if is_same else {"ids": row.input_ids}
        yield said | {"label": names[row.label or 0]}


def as_pieces(rows: Iterable[Encoded], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[Piece]]:
    """Yield each row as pieces that are read or learned in turn.

    A piece is text where the tokenizer makes the same tokens of it, else its token ids: a row cut
    within a character, or a tokenizer that writes a space before every text.
    """
    parted = [list(_parted(row)) for row in rows]
    ids = [piece["ids"] for row in parted for piece in row]
    if not ids:
        return
    texts = tokenizer.batch_decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    again = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    written = iter(zip(texts, again, strict=True))
    for row in parted:
        yield [_shown(piece, *next(written)) for piece in row]


def _parted(row: Encoded) -> Iterator[Piece]:
    tokens = zip(row.input_ids, row.labels, strict=True)
    for learn, run in itertools.groupby(tokens, lambda token: token[1] != IGNORE_INDEX):
        yield {"learn": learn, "ids": [token for token, _ in run]}


def _shown(piece: Piece, text: str, again: list[int]) -> Piece:
    return {"learn": piece["learn"], "text": text} if again == piece["ids"] else piece
