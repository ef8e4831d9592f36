"""A list of prompts put to several contenders: a table that grows, on disk from the first answer.

The file is one JSON object a line: first what is asked of whom, then each answer as it comes.
Whatever stops the work, what is there stays, and the rest can be asked later.
"""

from __future__ import annotations

import calendar
import functools
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from lora_studio.chat.request import Pane, Sampling, seed_apart
from lora_studio.errors import RunError, StudioError
from lora_studio.files import reason_of, write_whole
from lora_studio.judging.contenders import Contender, Loaded
from lora_studio.judging.exporting import csv_text
from lora_studio.judging.prompts import Prompt

SUFFIX = ".jsonl"
STAMP = "%Y%m%d-%H%M%S"
"""Of the seconds in a name, UTC; the rest of the time follows, and what makes it the only one."""
CELLS = ("text", "reason", "tokens", "seconds")
"""What a CSV has of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a table is about."""

    base: str
    """Source of the base model."""
    contenders: tuple[Contender, ...]
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    as_text: bool = False
    """Whether the questions are continued as texts, without a chat template."""
    apart: bool = False
    """Whether each contender has a seed of its own."""
    loaded: Loaded = field(default_factory=Loaded)
    """What stood behind the names at first; nothing where that was not kept."""

    def pane(self, prompt: int, contender: int) -> Pane:
        """Return what one contender is asked with one prompt."""
        who, asked = self.contenders[contender], self.prompts[prompt]
        pane = who.pane(text=asked.question) if self.as_text else who.pane(asked.messages)
        if not self.apart:
            return pane
        return replace(pane, seed=seed_apart(self.sampling.seed, contender))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one contender said to one prompt."""

    text: str
    tokens: int
    seconds: float
    reason: str
    """As in `chat.request.Reason`, or `refused`."""
    problem: Mapping[str, Any] | None = None
    """Why the prompt was refused, as `StudioError.to_dict` has it."""


class Batch:
    """A table of answers, prompts by contenders.

    Args:
        file: Where it lies.
        asked: What it is about.
        answers: What is there, by prompt and contender, each from 0.
    """

    def __init__(
        self, file: Path, asked: Asked, answers: Mapping[tuple[int, int], Answer] | None = None
    ) -> None:
        self._file = file
        self.asked = asked
        self.answers = dict(answers or {})

    @classmethod
    def start(cls, folder: Path, asked: Asked) -> Self:
        """Begin a table in a folder, under a name of its own.

        Raises:
            RunError: If the disk does not take it.
        """
        seconds, rest_ns = divmod(time.time_ns(), 10**9)
        stamp = time.strftime(STAMP, time.gmtime(seconds))
        name = f"{stamp}-{rest_ns:08x}{secrets.token_hex(3)}"
        file = folder / f"{name}{SUFFIX}"
        head = {
            "base": asked.base,
            "contenders": [one.to_dict() for one in asked.contenders],
            "prompts": [asdict(prompt) for prompt in asked.prompts],
            "sampling": asdict(asked.sampling),
            "as_text": asked.as_text,
            "apart": asked.apart,
            "loaded": asdict(asked.loaded),
        }
        with _written("judging.not_begun", folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(head, ensure_ascii=False) + "\n")
        return cls(file, asked)

    @classmethod
    def open(cls, folder: Path, name: str) -> Self:
        """Read a table that was begun; a line that was not written to its end is left out.

        Args:
            folder: Where tables lie.
            name: One of `listed`; compared with those, never joined to a path.

        Raises:
            StudioError: If there is no such table, or it cannot be read.
        """
        file = next((file for file in _files(folder) if file.stem == name), None)
        if file is None:
            raise StudioError("judging.no_such_batch", name=name)
        try:
            head, *lines = file.read_text(encoding="utf-8").split("\n")
            asked = _asked(json.loads(head))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StudioError("judging.unreadable_batch", file=str(file)) from error
        return cls(file, asked, dict(_answers(lines)))

    @property
    def name(self) -> str:
        """What `open` finds it by."""
        return self._file.stem

    @property
    def begun(self) -> float:
        """When, in seconds of the epoch; 0 if the name does not say it."""
        try:
            return calendar.timegm(time.strptime(self.name.rpartition("-")[0], STAMP))
        except ValueError:
            return 0.0

    @property
    def done(self) -> int:
        """How many prompts every contender has answered."""
        return len(self.asked.prompts) - len(self.pending())

    def pending(self) -> list[int]:
        """Return the prompts that somebody has not answered yet."""
        return [at for at in range(len(self.asked.prompts)) if self.missing(at)]

    def missing(self, prompt: int) -> list[int]:
        """Return the contenders who have not answered a prompt yet."""
        contenders = range(len(self.asked.contenders))
        return [who for who in contenders if (prompt, who) not in self.answers]

    def add(self, prompt: int, contender: int, answer: Answer) -> None:
        """Write an answer into the table and the file.

        Raises:
            RunError: If the disk does not take it.
        """
        line = {"prompt": prompt, "contender": contender, **asdict(answer)}
        with _written("judging.not_kept", self._file.parent):
            _append(self._file, json.dumps(line, ensure_ascii=False) + "\n")
        self.answers[prompt, contender] = answer

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each prompt, as `row` has it."""
        return [self.row(at) for at in range(len(self.asked.prompts))]

    def row(self, prompt: int) -> dict[str, Any]:
        """Return a prompt's `question`, `reference`, and `answers` by contender.

        An answer is `Answer`'s fields, or None where it is pending.
        """
        asked = self.asked.prompts[prompt]
        contenders = range(len(self.asked.contenders))
        return {
            "question": asked.question,
            "reference": asked.reference,
            "answers": [self._plain(prompt, who) for who in contenders],
        }

    def csv(self) -> str:
        """Return the table as CSV: for each contender its answer, why it ended, tokens, seconds."""
        keys = [one.key for one in self.asked.contenders]
        head = ["prompt", "reference"]
        for key in keys:
            head += [key, f"{key} reason", f"{key} tokens", f"{key} seconds"]
        rows: list[list[Any]] = [head]
        for entry in self.table():
            row = [entry["question"], entry["reference"]]
            for found in entry["answers"]:
                row += [found[key] for key in CELLS] if found else [""] * len(CELLS)
            rows.append(row)
        return csv_text(rows)

    def jsonl(self) -> Iterator[str]:
        """Yield the table as lines of JSON."""
        keys = [one.key for one in self.asked.contenders]
        for prompt, entry in zip(self.asked.prompts, self.table(), strict=True):
            messages = [dict(message) for message in prompt.messages]
            asked = {"text": prompt.question} if self.asked.as_text else {"messages": messages}
            line = {
                **asked,
                "reference": prompt.reference,
                "answers": dict(zip(keys, entry["answers"], strict=True)),
            }
            yield json.dumps(line, ensure_ascii=False) + "\n"

    def _plain(self, prompt: int, contender: int) -> dict[str, Any] | None:
        found = self.answers.get((prompt, contender))
        return None if found is None else asdict(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a list of tables says of one."""

    name: str
    begun: float
    """As `Batch.begun`."""
    done: int
    """How many prompts every contender has answered,"""
    total: int
    """of so many."""


def known(folder: Path, name: str) -> Known:
    """Return what a list says of a table; its file is read again only when it has changed.

    Raises:
        StudioError: As `Batch.open`.
    """
    file = folder / f"{name}{SUFFIX}"
    try:
        at = file.stat()
    except OSError as error:
        raise StudioError("judging.no_such_batch", name=name) from error
    return _known(file, (at.st_mtime_ns, at.st_size))


@functools.lru_cache(maxsize=256)
def _known(file: Path, _written_at: tuple[int, int]) -> Known:
    batch = Batch.open(file.parent, file.stem)
    total = len(batch.asked.prompts)
    return Known(name=batch.name, begun=batch.begun, done=batch.done, total=total)


def listed(folder: Path) -> list[str]:
    """Return the names of the tables in a folder, the newest first."""
    return [file.stem for file in _files(folder)]


@contextmanager
def _written(key: str, folder: Path) -> Iterator[None]:
    """Say in words that the disk does not take something.

    Raises:
        RunError: If so.
    """
    try:
        yield
    except OSError as error:
        raise RunError(key, folder=str(folder), reason=reason_of(error)) from error


def _append(file: Path, line: str) -> None:
    """Add a line, behind the end of one that was torn when its writer was killed."""
    with file.open("a+b") as out:
        out.seek(-1, os.SEEK_END)
        end = b"" if out.read(1) == b"\n" else b"\n"
        out.write(end + line.encode())


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"), reverse=True)


def _asked(head: Mapping[str, Any]) -> Asked:
    return Asked(
        base=head["base"],
        contenders=tuple(map(Contender.from_dict, head["contenders"])),
        prompts=tuple(
            Prompt(messages=tuple(entry["messages"]), reference=entry["reference"])
            for entry in head["prompts"]
        ),
        sampling=Sampling(**head["sampling"]),
        as_text=head.get("as_text", False),
        apart=head.get("apart", False),
        loaded=Loaded(**head.get("loaded", {})),
    )


def _answers(lines: Iterable[str]) -> Iterator[tuple[tuple[int, int], Answer]]:
    for line in lines:
        try:
            fields = json.loads(line)
            place = fields.pop("prompt"), fields.pop("contender")
            yield place, Answer(**fields)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # torn, when its writer was killed
