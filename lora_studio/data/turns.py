"""Cells into text and lists of turns into messages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lora_studio.data.examples import Message, Role

ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter", "question", "사용자"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer", "시스템"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}


class UnusableRowError(Exception):
    """A row that cannot be learned from; `reason` is the key of its sentence."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def text_of(cell: Any) -> str:
    r"""Return a cell as text: stripped, `\n` as its line end, valid Unicode.

    None and not-a-number are empty; true is `true`; lists and objects are JSON.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool | list | dict):
        cell = json.dumps(cell, ensure_ascii=False, default=str)
    text = str(cell).replace("\r\n", "\n").replace("\r", "\n").strip()
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of an escaped pair in JSON; tokenizers refuse it
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def pair(*, system: str, question: str, answer: str) -> tuple[Message, ...]:
    """Return a question and its answer as messages.

    Raises:
        UnusableRowError: If the question or the answer is empty.
    """
    if not answer:
        raise UnusableRowError("data.skip_no_answer")
    if not question:
        raise UnusableRowError("data.skip_no_question")
    return (*_system(system), Message("user", question), Message("assistant", answer))


def conversation(turns: Any, *, system: str = "") -> tuple[Message, ...]:
    """Return a list of turns as messages, up to its last answer.

    Args:
        turns: `{"role", "content"}` or `{"from", "value"}` objects, or their JSON text.
        system: Goes first where the list has no system turn of its own.

    Raises:
        UnusableRowError: If turns cannot be read, or there is no question, or no answer to it.
    """
    messages = [_message(turn) for turn in _listed(turns)]
    while messages and not (messages[-1].role == "assistant" and messages[-1].content):
        messages.pop()
    if not messages:
        raise UnusableRowError("data.skip_no_answer")
    if not any(message.role == "user" and message.content for message in messages):
        raise UnusableRowError("data.skip_no_question")
    if not all(message.content for message in messages if message.role in {"user", "assistant"}):
        raise UnusableRowError("data.skip_empty_turn")
    messages = [message for message in messages if message.content]
    return tuple(messages if messages[0].role == "system" else [*_system(system), *messages])


def is_conversation(cell: Any) -> bool:
    """Tell whether a cell holds a list of turns."""
    try:
        return bool(_listed(cell))
    except UnusableRowError:
        return False


def _system(content: str) -> tuple[Message, ...]:
    return (Message("system", content),) if content else ()


def _listed(turns: Any) -> list[dict[str, Any]]:
    """Return the turns, also out of a table's cell that holds them as JSON text."""
    if turns is None or turns == "":
        return []
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            turns = None
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        return turns
    raise UnusableRowError("data.skip_unreadable_turns")


def _message(turn: Mapping[str, Any]) -> Message:
    name = text_of(turn.get("role") or turn.get("from")).casefold()
    if name not in ROLES:
        raise UnusableRowError("data.skip_unknown_role")
    content = turn.get("content")
    if content is None:
        content = turn.get("value", turn.get("text"))
    if isinstance(content, list):
        content = _joined(content)
    return Message(ROLES[name], text_of(content))


def _joined(parts: list[Any]) -> str:
    """Join the text parts of a message; a picture or a sound cannot be learned from."""
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise UnusableRowError("data.skip_unreadable_turns")
    return "\n".join(part["text"] for part in parts)
