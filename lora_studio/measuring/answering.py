"""Greedy answers to held-out questions, and how near they come to the ones that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lora_studio.chat.request import MOST_ROWS, OF_MANY, Pane, Sampling, finished
from lora_studio.errors import StudioError
from lora_studio.measuring.likeness import bleu, rouge_l
from lora_studio.measuring.matching import EXACT, SLOW_PATTERN, is_exact, matcher
from lora_studio.measuring.measurements import Answers, Compared, Example
from lora_studio.measuring.primitives import Primitives
from lora_studio.measuring.rows import HeldOutRow
from lora_studio.measuring.statistics import compared
from lora_studio.training.plan import evenly

Test = Callable[[str, str], float]
"""Rates an answer, given the reference."""
SHORTEST, LONGEST = 32, 512
"""Tokens: an answer may be twice as long as the longest reference, within these bounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which questions are put to whom."""

    rows: Sequence[HeldOutRow]
    adapter: str
    """Who answers beside the base."""
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What base and adapter wrote to one question."""

    row: int
    """Its number among the rows that were asked."""
    base: str
    adapter: str
    cut_off: int
    """How many of the two reached the longest answer."""


def asked_rows(rows: Sequence[HeldOutRow], count: int) -> list[HeldOutRow]:
    """Return rows with a question, at most so many, evenly from all."""
    can_be_asked = [row for row in rows if row.prompt]
    return [can_be_asked[at] for at in evenly(len(can_be_asked), min(count, len(can_be_asked)))]


def longest_answer(rows: Sequence[HeldOutRow]) -> int:
    """Return how many tokens an answer may have."""
    longest = max((row.last_answer_tokens for row in rows), default=0)
    return min(max(2 * longest, SHORTEST), LONGEST)


def answered(asked: Asked, primitives: Primitives) -> Iterator[Written]:
    """Have base and adapter answer, some questions at a time, each as soon as both have.

    Raises:
        StudioError: If somebody stops the answers, or the engine fails.
    """
    step = MOST_ROWS // len(_who(asked))
    for start in range(0, len(asked.rows), step):
        rows = range(start, min(start + step, len(asked.rows)))
        yield from _answered(asked, rows, primitives)


def _who(asked: Asked) -> tuple[str | None, str]:
    return None, asked.adapter


def _answered(asked: Asked, rows: Sequence[int], primitives: Primitives) -> Iterator[Written]:
    """Put some rows to both, one after the other where there is no memory for all at once."""
    try:
        yield from _answered_at_once(asked, rows, primitives)
    except StudioError as error:
        if error.key != OF_MANY or len(rows) == 1:
            raise
        for row in rows:
            yield from _answered(asked, [row], primitives)


def _answered_at_once(
    asked: Asked, rows: Sequence[int], primitives: Primitives
) -> Iterator[Written]:
    panes = [Pane(adapter=who, text=asked.rows[row].prompt) for row in rows for who in _who(asked)]
    texts, reasons = [""] * len(panes), [""] * len(panes)
    for event in finished(primitives.generate(panes, asked.sampling)):
        if "pane" not in event:
            continue
        if event["reason"] == "stopped":
            raise StudioError("measuring.stopped")
        texts[event["pane"]], reasons[event["pane"]] = event["text"].strip(), event["reason"]
        at = event["pane"] // 2
        pair = slice(2 * at, 2 * at + 2)
        if all(reasons[pair]):
            base, adapter = texts[pair]
            cut_off = reasons[pair].count("length")
            yield Written(row=rows[at], base=base, adapter=adapter, cut_off=cut_off)


def require_quick(match: str, rows: Sequence[HeldOutRow]) -> None:
    """Try what tells right from wrong on the references, before anything is loaded or answered.

    Raises:
        StudioError: If it searches one of them too long.
    """
    if match:
        test = matcher(match)
        for row in rows:
            test(row.reference, row.reference)


def scored(asked: Asked, answers: Sequence[Written], *, match: str) -> tuple[Answers, list[str]]:
    """Compare what was written to each row, in their order, with the references.

    Returns:
        The scores, and keys of sentences on those that are left out.
    """
    written = [(one.base, one.adapter) for one in answers]
    references = [row.reference for row in asked.rows]
    tests: dict[str, Test] = {"exact": is_exact, "rouge_l": rouge_l}
    if match and match != EXACT:
        tests["match"] = matcher(match)
    scores, notes = {}, []
    for name, test in tests.items():
        try:
            scores[name] = _compared(test, written, references)
        except StudioError as error:
            if error.key != SLOW_PATTERN:
                raise
            notes.append("measuring.no_match")
    base, adapter = ([pair[side] for pair in written] for side in (0, 1))
    whole = bleu(base, adapter, references)
    if whole is None:
        notes.append("measuring.no_bleu")
    else:
        scores["bleu"] = whole.score
    found = Answers(
        rows=len(written),
        max_new_tokens=asked.sampling.max_new_tokens,
        cut_off=sum(one.cut_off for one in answers),
        match=match,
        scores=scores,
        bleu_signature=whole.signature if whole else "",
        examples=tuple(
            Example(question=row.question, reference=row.reference, base=base, adapter=adapter)
            for row, (base, adapter) in zip(asked.rows, written, strict=True)
        ),
    )
    return found, notes


def _compared(
    test: Test, written: Sequence[tuple[str, str]], references: Sequence[str]
) -> Compared:
    sides = (
        [float(test(pair[side], wanted)) for pair, wanted in zip(written, references, strict=True)]
        for side in (0, 1)
    )
    return compared(*sides)
