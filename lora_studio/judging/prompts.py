"""A list of prompts, as somebody pastes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from lora_studio.chat.request import Message
from lora_studio.data import columns, turns
from lora_studio.errors import StudioError

MOST_PROMPTS = 2000
LONGEST_CHARACTERS = 100_000
RULE = re.compile(r"^[ \t]*-{3,}[ \t]*$", re.MULTILINE)
BLANK = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question of a list."""

    messages: tuple[Message, ...]
    """The conversation, the question last."""
    reference: str = ""
    """The answer that is known to be right; empty where there is none."""

    @classmethod
    def of(cls, question: str, *, system: str = "", reference: str = "") -> Self:
        """Build a prompt of one question."""
        asked: list[Message] = [{"role": "user", "content": question}]
        before: list[Message] = [{"role": "system", "content": system}] if system else []
        return cls(messages=(*before, *asked), reference=reference)

    @property
    def question(self) -> str:
        """The last turn."""
        return self.messages[-1]["content"]


def parse_prompts(text: str) -> list[Prompt]:
    """Read a pasted list of prompts.

    JSON Lines or a JSON list, if that is what it begins with: texts, or objects with columns as
    the data room knows them (question, answer; messages). Else texts parted by lines of `---`;
    else by blank lines, where a part has several lines; else one a line.

    Raises:
        StudioError: If there are none, too many, or a line is no JSON or holds no question.
    """
    text = text.strip().replace("\r\n", "\n")
    if text.startswith(("{", "[", '"')):
        found = [_of_json(value, number) for number, value in _json_values(text)]
    else:
        found = [Prompt.of(part) for part in _parts(text)]
    if not found:
        raise StudioError("judging.no_prompts")
    if len(found) > MOST_PROMPTS:
        raise StudioError("judging.too_many_prompts", prompts=len(found), most=MOST_PROMPTS)
    for number, prompt in enumerate(found, 1):
        if len(prompt.question) > LONGEST_CHARACTERS:
            raise StudioError(
                "judging.long_prompt",
                number=number,
                characters=len(prompt.question),
                most=LONGEST_CHARACTERS,
            )
    return found


def as_lines(prompts: Sequence[Prompt]) -> str:
    """Return prompts as JSON Lines, as `parse_prompts` reads them."""
    return "\n".join(json.dumps(_line(prompt), ensure_ascii=False) for prompt in prompts)


def _line(prompt: Prompt) -> dict[str, Any]:
    known: list[Message] = [{"role": "assistant", "content": prompt.reference}]
    answer = known if prompt.reference else []
    return {"messages": [*prompt.messages, *answer]}


def _parts(text: str) -> Iterator[str]:
    blocks = RULE.split(text)
    if len(blocks) == 1:
        blocks = BLANK.split(text)
        if len(blocks) == 1 or not any("\n" in block.strip() for block in blocks):
            blocks = text.split("\n")
    return (block.strip() for block in blocks if block.strip())


def _json_values(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the items of a JSON list, or of each line; with their numbers, from 1."""
    if text.startswith("["):
        try:
            yield from enumerate(cast("Iterable[Any]", json.loads(text)), 1)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", 1)
            raise StudioError("judging.not_json", number=line) from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StudioError("judging.not_json", number=number) from error


def _of_json(value: Any, number: int) -> Prompt:
    if isinstance(value, str) and value.strip():
        return Prompt.of(value.strip())
    if isinstance(value, dict):
        prompt = _of_turns(value) or _of_cells(value)
        if prompt is not None:
            return prompt
    raise StudioError("judging.no_question", number=number)


def _of_turns(row: Mapping[str, Any]) -> Prompt | None:
    """Return a conversation; its last answer is the reference."""
    for name in ("messages", "conversations"):
        cell = columns.match(name, row)
        turned = row[cell[columns.TURNS]] if cell else None
        if not isinstance(turned, list):
            continue
        said: list[Message] = []
        for turn in turned:
            found = [message for message in _turn(turn) if message["content"].strip()]
            said += found
        reference = said.pop()["content"] if said and said[-1]["role"] == "assistant" else ""
        if said and said[-1]["role"] == "user":
            return Prompt(messages=tuple(said), reference=reference)
    return None


def _turn(turn: Any) -> list[Message]:
    if not isinstance(turn, dict):
        return []
    role = next((turn[key] for key in turns.SPEAKER_KEYS if key in turn), "")
    content = next((turn[key] for key in turns.SPOKEN_KEYS if key in turn), "")
    known = turns.ROLES.get(str(role).casefold())
    return [{"role": known, "content": turns.text_of(content)}] if known else []


def _of_cells(row: Mapping[str, Any]) -> Prompt | None:
    """Return a question with its context, system turn and answer, as far as they are there."""

    def cell(part: str) -> str:
        name = columns.guess(part, row)
        return turns.answer_of(row[name]) if name else ""

    name = columns.guess(columns.TEXT, row, ["text"])
    question = cell(columns.QUESTION) or (turns.text_of(row[name]) if name else "")
    if not question:
        return None
    context = cell(columns.CONTEXT)
    asked = f"{question}\n\n{context}" if context else question
    return Prompt.of(asked, system=cell(columns.SYSTEM), reference=cell(columns.ANSWER))
