"""Every check that one look at an example can make, in one pass over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

from lora_studio.data.checking import characters, confidential, mojibake
from lora_studio.data.checking.answers import SameAnswers
from lora_studio.data.checking.findings import Findings
from lora_studio.data.checking.languages import Languages
from lora_studio.data.checking.repeats import NearRepeats, Seen, identity
from lora_studio.data.examples import Example, Message, Record, Skipped
from lora_studio.recipe import ChecksSpec

# Encoding comes first: controls are part of wrongly decoded text, and removed they are lost.
TEXT_CHECKS: tuple[tuple[str, Callable[[str], str | None], Callable[[str], str]], ...] = (
    ("mojibake", mojibake.find, mojibake.mend),
    ("control_characters", characters.find, characters.mend),
    ("secrets", confidential.find, confidential.mend),
)
EXPECTED_ROWS = 1000


class Inspector:
    """Looks at examples one after another, in the order of the data.

    It holds 32 bytes for each row, and the first 30,000 rows' signatures.

    Args:
        checks: What to do about what is found.
        findings: Where it is noted.
        seed: Same seed and rows, same findings.
    """

    def __init__(self, checks: ChecksSpec, findings: Findings, *, seed: int = 0) -> None:
        self._findings = findings
        self._seen = Seen()
        self._near = NearRepeats(seed)
        self._near_ended: int | None = None
        self._languages = Languages(skips=checks.languages == "skip")
        self._answers = SameAnswers()
        self._merged: dict[str, str] = {}

    @property
    def documents(self) -> dict[str, str]:
        """Documents that became part of another one, also after an example of them was returned.

        Whoever holds out documents asks here for each example's: `documents.get(name, name)`.
        """
        return {name: self._document(name) for name in self._merged}

    def expect(self, examples: Iterable[Example]) -> None:
        """Learn the main language from the head of the data; needed only to skip from row 1 on."""
        self._languages.expect(_answer(example) for example in islice(examples, EXPECTED_ROWS))

    def look(self, example: Example) -> Example | Skipped:
        """Check one example.

        Returns:
            The example, as it is, mended, or in the document of the one it nearly repeats; or why
            it is skipped. Never raises: the choice to stop is `findings.stop_at` at the end.
        """
        text = _joined(example)
        for check, find, mend in TEXT_CHECKS:
            excerpt = find(text)
            if excerpt is None:
                continue
            choice = self._findings.add(check, example.file, example.number, excerpt)
            if choice == "skip":
                return _skipped(example, check)
            if choice == "fix":
                mended = self._mended(example, mend)
                if isinstance(mended, Skipped):
                    return mended
                example, text = mended, _joined(mended)
        return self._among_others(example, text)

    def finish(self) -> None:
        """Note what is only known at the end."""
        self._answers.report(self._findings)
        self._languages.report(self._findings)
        if self._near_ended is not None:
            self._findings.limit("near_duplicates", self._near_ended)

    def _among_others(self, example: Example, text: str) -> Example | Skipped:
        """Compare an example with those before it."""
        check = self._repeats(example, text)
        if check is not None:
            return _skipped(example, check)
        place, answer = (example.file, example.number), _answer(example)
        if self._languages.is_other(answer, place):
            return _skipped(example, "languages")
        if example.messages:
            self._answers.add(answer, place)
        document = self._document(example.document)
        return example if document == example.document else replace(example, document=document)

    def _repeats(self, example: Example, text: str) -> str | None:
        """Note a repeat of an earlier example; return the check's name where it is to be skipped.

        A near repeat that stays joins the earlier one's document.
        """
        check, earlier = "duplicates", None
        roles = tuple([message.role for message in example.messages])
        # A text with another label is no repeat.
        if self._seen.add(identity(text, roles or (example.label,))):
            check, earlier = "near_duplicates", self._near_document(example)
            if earlier is None:
                return None
        if self._findings.add(check, example.file, example.number, text) == "skip":
            return check
        if earlier is not None:
            self._merge(example.document, earlier)
        return None

    def _near_document(self, example: Example) -> str | None:
        """Return the document of an earlier example that this one nearly repeats."""
        if self._near.is_over:
            if self._near_ended is None:
                self._near_ended = self._near.rows
            return None
        turns = [turn.content for turn in example.messages if turn.role != "system"]
        text = "\n".join(turns) if turns else example.text
        answer = example.messages[-1].content if example.messages else example.label
        return self._near.earlier(text, answer, example.document)

    def _document(self, name: str) -> str:
        """Return the document that a document belongs to now."""
        while name in self._merged:
            name = self._merged[name]
        return name

    def _merge(self, name: str, earlier: str) -> None:
        """Make one document of two."""
        name, earlier = self._document(name), self._document(earlier)
        if name != earlier:
            self._merged[name] = earlier

    def _mended(self, example: Example, mend: Callable[[str], str]) -> Example | Skipped:
        """Return the example with its texts mended; skipped where nothing is left to learn."""
        mended = replace(
            example,
            messages=tuple(
                Message(turn.role, mend(turn.content).strip()) for turn in example.messages
            ),
            text=mend(example.text).strip() if example.text else "",
        )
        if not _answer(mended):
            reason = "data.skip_no_answer" if example.messages else "data.skip_empty_text"
            self._findings.add("empty_answers", example.file, example.number, _joined(example))
            return Skipped(example.file, example.number, reason)
        # The same question as another row's may only show now.
        if _natural_document(example) == example.document:
            return replace(mended, document=_natural_document(mended))
        return mended


def _joined(example: Example) -> str:
    """Return all that is said, or the plain text."""
    if not example.messages:
        return example.text
    return "\n".join([message.content for message in example.messages])


def _answer(example: Example) -> str:
    return example.messages[-1].content if example.messages else example.text


def _natural_document(example: Example) -> str:
    """Return the document that an example belongs to by its question or its text."""
    record = Record(example.file, example.number, "")
    if not example.messages:
        return Example.of_text(record, example.text).document
    try:
        return Example.of_messages(record, example.messages).document
    except ValueError:  # No question, or no answer after it.
        return example.document


def _skipped(example: Example, check: str) -> Skipped:
    return Skipped(example.file, example.number, f"data.skip_{check}")
