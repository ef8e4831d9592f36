"""What travels through the room: a record from a file, an example to learn from, a skipped row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, Self

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table, or one whole document, as the file holds it."""

    file: str
    """Name of the file as the person knows it."""
    number: int
    """Where it stands, from 1: the line of a JSON Lines file, the row of a spreadsheet (its header
    is row 1), the item of a JSON list, the row of a Parquet file; 1 for a document."""
    value: dict[str, Any] | str
    """Cells by column, or the document's text."""
    oddities: tuple[str, ...] = ()
    """What was mended in reading, each once: `nan` (now None), `duplicate_key` (the last value
    counts), `nul` (removed)."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    """Who speaks."""
    content: str
    """What is said, without white space at its ends."""


@dataclass(frozen=True, slots=True)
class Example:
    """Something to learn from: a conversation that ends in an answer, or a text, also labelled."""

    file: str
    """Name of the file it comes from."""
    number: int
    """Row number in that file, as in `Record`."""
    document: str
    """Same for all examples with the same question, or the same text: they are held out together,
    so that no held-out question is also trained on."""
    messages: tuple[Message, ...] = ()
    """The conversation; the last turn is the assistant's. Empty for plain text."""
    text: str = ""
    """The plain text; empty for a conversation."""
    label: str = ""
    """The class of the text in a text classification, else empty."""

    @property
    def is_chat(self) -> bool:
        """Whether this is a conversation."""
        return bool(self.messages)

    @property
    def is_plain(self) -> bool:
        """Whether this is a text to write like, which may be cut into pieces."""
        return not self.messages and not self.label

    @classmethod
    def of_text(cls, record: Record, text: str, label: str = "") -> Self:
        """Build an example of a plain text, or of a text and its class."""
        return cls(record.file, record.number, _identity(text), text=text, label=label)

    @classmethod
    def of_messages(cls, record: Record, messages: tuple[Message, ...]) -> Self:
        """Build an example of a conversation, known by all that is said before its first answer."""
        roles = [message.role for message in messages]
        start = roles.index("user")
        first_answer = roles.index("assistant", start)
        asked = "\n".join(f"{turn.role}:{turn.content}" for turn in messages[:first_answer])
        return cls(record.file, record.number, _identity(asked), messages=messages)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is not learned from, and why."""

    file: str
    """Name of the file."""
    number: int
    """Row number in that file, as in `Record`."""
    reason: str
    """Key of the sentence in the string table, as in `data.skip_no_answer`."""


def _identity(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
