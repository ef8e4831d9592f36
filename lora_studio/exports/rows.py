"""Encoded rows as text: what is read and what is learned, piece by piece, one row a line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.data.encoding import IGNORE_INDEX, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_studio.data.prepared import Prepared, Rows

ROWS, HELD_OUT, CHAT_TEMPLATE = "rows.jsonl", "held_out.jsonl", "chat_template.jinja"

Piece = dict[str, Any]


def write_rows(prepared: Prepared, folder: Path, *, most_held_out: int) -> dict[str, int]:
    """Write what a training reads beside its script.

    Args:
        prepared: The rows.
        folder: Where to; it must exist.
        most_held_out: How many held-out rows the loss is measured on.

    Returns:
        `rows`, `held_out`, and `as_numbers`: pieces whose text alone would not give their tokens
        again, written as token ids.
    """
    tokenizer = prepared.tokenizer
    numbers = _write(prepared.train, len(prepared.train), tokenizer, folder / ROWS)
    held_out = min(len(prepared.evaluation), most_held_out)
    if held_out:
        numbers += _write(prepared.evaluation, held_out, tokenizer, folder / HELD_OUT)
    if prepared.report.own_template:
        text = str(tokenizer.chat_template)
        (folder / CHAT_TEMPLATE).write_text(text, encoding="utf-8")
    return {"rows": len(prepared.train), "held_out": held_out, "as_numbers": numbers}


def _write(rows: Rows, most: int, tokenizer: PreTrainedTokenizerBase, file: Path) -> int:
    """Write the first rows of a part; return how many pieces stand there as numbers."""
    numbers, left = 0, most
    with file.open("w", encoding="utf-8") as lines:
        for batch in rows.batches():
            for row in as_pieces(batch[:left], tokenizer):
                numbers += sum("ids" in piece for piece in row)
                lines.write(json.dumps({"pieces": row}, ensure_ascii=False) + "\n")
            left -= len(batch)
            if left <= 0:
                break
    return numbers


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
