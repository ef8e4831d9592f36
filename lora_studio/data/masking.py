"""Where an answer begins and ends in a conversation's tokens.

Two ways say it. A template may carry `{% generation %}` marks around what the model writes: where
they fit a conversation they are followed, as characters that are then found among the tokens by
ourselves. transformers 5.23 looks for the tokens of the first and the last character only, which
loses an answer's end after some characters, and can mark all that follows an answer
(https://github.com/huggingface/transformers/issues/47325). Without marks, or where they do not fit,
what each turn adds to the text says it.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import chain, takewhile
from typing import TYPE_CHECKING

from lora_studio.data import templates
from lora_studio.data.templates import Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Closer:
    """Knows where answers end: at an end token, white space after it left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ends = templates.end_ids(tokenizer)
        self.special = frozenset(tokenizer.get_added_vocab().values())
        self.is_blank = cache(lambda token: not tokenizer.decode([token]).strip())
        names = tokenizer.convert_ids_to_tokens(sorted(self.ends))
        self.names = tuple(sorted(names, key=len, reverse=True))
        self.end = re.compile("|".join(map(re.escape, self.names)))
        self.following = re.compile(rf"\s*(?:{self.end.pattern})")

    def closed(self, tokens: Sequence[int]) -> int | None:
        """Return how many tokens there are up to the end token, None where there is no such."""
        count = len(tokens)
        while count and self.is_blank(tokens[count - 1]):
            count -= 1
        return count if count and tokens[count - 1] in self.ends else None

    def closed_text(self, text: str, span: Span) -> Span:
        """Return a span of a text with the end token that follows it, unless it has one already.

        An end that is not learned is never said: the model would not stop.
        """
        start, stop = span
        if text[start:stop].rstrip().endswith(self.names):
            return span
        found = self.following.match(text, stop)
        return (start, found.end()) if found else span

    def is_over(self, text: str) -> bool:
        """Tell whether nothing but end tokens and white space is left in a text."""
        return not self.end.sub("", text).strip()


def earlier_answers(
    ids: Sequence[int], counts: Sequence[int | None], closer: Closer
) -> list[Span] | None:
    """Return which tokens are earlier answers, each with its end.

    Args:
        ids: Tokens of the whole conversation.
        counts: For each earlier answer the number of tokens up to its start, and up to its end;
            None where those are not what the whole conversation begins with.
        closer: Knows where answers end.

    Returns:
        Start and end of each, None if one of them reads differently once more is said.
    """
    spans = []
    for start, end in zip(counts[::2], counts[1::2], strict=True):
        if start is None or end is None:
            return None
        answer = ids[start:end]
        spans.append((start, start + (closer.closed(answer) or len(answer))))
    return spans


def marked_answers(
    full: str,
    marks: Sequence[Span],
    *,
    answers: Sequence[str],
    bounds: Sequence[tuple[str, str]],
    header: str,
    closer: Closer,
) -> list[Span] | None:
    """Return which characters are answers by a template's marks, each with its end.

    What the prompt ends with is not learned, even if it is marked. White space between the prompt
    and the marks, and an end token right after them, are learned all the same: the model has to say
    them.

    Args:
        full: The whole conversation.
        marks: The characters that the template marks.
        answers: What was said in each of the assistant's turns.
        bounds: For each answer that is learned the text up to its start, as at inference, and up
            to its end. Turns before the first question have none.
        header: What the last of these prompts ends with for the model to speak.
        closer: Knows where answers end.

    Returns:
        Start and end of each answer that is learned. None if the marks do not fit: an answer
        without its own, or not covered by it; something of another turn marked; or more than an
        end after the last answer.
    """
    marks = _joined(full, marks, closer)
    prompt = bounds[-1][0]
    # Earlier turns may read differently once more is said, the last one may not.
    if len(marks) != len(answers) or not full.startswith(prompt):
        return None
    opening = full[marks[-1][0] : len(prompt)]
    if not header.endswith(opening) or not closer.is_over(full[marks[-1][1] :]):
        return None
    gaps = _between(full, marks)
    for mark, said, *around in zip(marks, answers, gaps, gaps[1:], strict=False):
        if not _covers(full[slice(*mark)], said, around, closer):
            return None
    learned = [
        _learned(full, mark, limits, opening, closer)
        for mark, limits in zip(marks[len(marks) - len(bounds) :], bounds, strict=True)
    ]
    fitting = [span for span in learned if span is not None]
    return fitting if len(fitting) == len(bounds) else None


def tokens_of(
    spans: Sequence[Span], ids: Sequence[int], places: Sequence[Span], closer: Closer
) -> list[Span]:
    """Return which tokens stand for characters of each span, up to its end token.

    A token that reaches into a span from before belongs to it (SentencePiece joins a word to the
    space before it), but a special token that swallows a line end does not.

    Args:
        spans: Characters, in order.
        ids: The tokens.
        places: The characters that each token stands for.
        closer: Knows where answers end.
    """
    starts = [start for start, _ in places]
    stops = [stop for _, stop in places]
    found = []
    for begin, end in spans:
        first, last = bisect_right(stops, begin), bisect_left(starts, end)
        if first < last and starts[first] < begin and ids[first] in closer.special:
            first += 1
        found.append((first, first + (closer.closed(ids[first:last]) or last - first)))
    return found


def _joined(full: str, marks: Sequence[Span], closer: Closer) -> list[Span]:
    """Return marks, those that hold only the end of what is marked before them as part of it."""
    joined: list[Span] = []
    for start, stop in marks:
        if joined and joined[-1][1] == start and closer.is_over(full[start:stop]):
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _between(full: str, marks: Sequence[Span]) -> list[str]:
    """Return what stands before, between and after marks."""
    edges = [0, *chain.from_iterable(marks), len(full)]
    return [full[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _covers(marked: str, said: str, around: Sequence[str], closer: Closer) -> bool:
    """Tell whether what is marked is an answer, and no more than that and its end.

    A template may leave out how an answer begins, as its reasoning, but not leave it unmarked.
    White space does not count: templates trim.
    """
    end = closer.end.search(marked)
    if end and not closer.is_over(marked[end.end() :]):
        return False
    said, shown = _packed(said), _packed(marked[: end.start()] if end else marked)
    if said in shown:
        return True
    ends = zip(reversed(said), reversed(shown), strict=False)
    kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    left_out = said[: len(said) - kept]
    return kept > 0 and not any(left_out in _packed(text) for text in around)


def _learned(
    full: str, mark: Span, bounds: tuple[str, str], opening: str, closer: Closer
) -> Span | None:
    """Return what is learned of a mark, None if it reaches out of its turn.

    A turn that reads differently by itself does not tell its bounds.
    """
    (start, stop), (prompt, through) = mark, bounds
    if full.startswith(opening, start, stop):
        start += len(opening)
    if full.startswith(through) and stop > len(through):
        return None
    if full.startswith(prompt):
        if start < len(prompt):
            return None
        if not full[len(prompt) : start].strip():
            start = len(prompt)
    return closer.closed_text(full, (start, stop))


def _packed(text: str) -> str:
    return "".join(text.split())
