"""Cells into text and lists of turns into messages."""

from __future__ import annotations

import ast
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from lora_studio.data.examples import Message, Role

# OpenAI's roles, and the names that ShareGPT-like sets and Korean ones give them.
ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter", "question", "q", "query", "input"), "user"),
    **dict.fromkeys(("instruction", "prompt", "customer", "person", "asker"), "user"),
    **dict.fromkeys(("사용자", "유저", "질문", "질문자", "고객", "손님", "인간", "사람"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "gpt4", "gpt_4", "bot", "model"), "assistant"),
    **dict.fromkeys(("ai", "answer", "a", "chatbot", "chat_bot", "bard", "bing"), "assistant"),
    **dict.fromkeys(("claude", "gemini", "llama", "response", "output", "agent"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "assistant"),
    **dict.fromkeys(("어시스턴트", "도우미", "챗봇", "봇", "답변", "답변자", "답"), "assistant"),
    **dict.fromkeys(("상담사", "상담원", "모델", "인공지능"), "assistant"),
    **dict.fromkeys(("system", "developer", "system_prompt", "시스템"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "도구", "함수"), "tool"),
    **dict.fromkeys(("tool_response", "tool_result", "function_response"), "tool"),
}
SPEAKER_KEYS = ("role", "from", "speaker", "author", "역할", "화자")
SPOKEN_KEYS = ("content", "value", "text", "message", "utterance", "내용", "발화")
# A spreadsheet's cell is far shorter; a longer one is never read as Python.
LONGEST_PYTHON_CELL = 1_000_000


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
        cell = _json(cell)
    text = str(cell).replace("\r\n", "\n").replace("\r", "\n").strip()
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of an escaped pair in JSON; tokenizers refuse it
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def is_blank(cell: Any) -> bool:
    """Tell whether a cell holds nothing: no value, white space, not-a-number, an empty list."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return not cell.strip() if isinstance(cell, str) else cell is None or cell in ([], {})


def answer_of(cell: Any) -> str:
    """Return an answer's cell as text; of SQuAD's `{"text": […]}` the first answer counts."""
    if isinstance(cell, Mapping) and isinstance(cell.get("text"), list):
        return text_of(next(iter(cell["text"]), None))
    return text_of(cell)


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

    An assistant turn that calls tools says so in JSON: a list of `name` and `arguments`, after
    what it says besides. Templates differ in how they write calls; text is what all of them take.

    Args:
        turns: `{"role", "content"}` or `{"from", "value"}` objects or `{"user", "assistant"}`
            pairs, or their JSON text.
        system: Goes first where the list has no system turn of its own.

    Raises:
        UnusableRowError: If turns cannot be read, or there is no question, or no answer to it.
    """
    messages = [message for turn in _listed(turns) for message in _messages(turn)]
    while messages and not (messages[-1].role == "assistant" and messages[-1].content):
        messages.pop()
    if not messages:
        raise UnusableRowError("data.skip_no_answer")
    roles = [message.role for message in messages if message.content]
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
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


def is_sharegpt(cell: Any) -> bool:
    """Tell whether a cell's turns are written with `from`, as ShareGPT does."""
    return is_conversation(cell) and "from" in _listed(cell)[0]


def holds_roles(cell: Any) -> bool:
    """Tell whether a cell holds turns whose roles are all known."""
    try:
        return bool([message for turn in _listed(cell) for message in _messages(turn)])
    except UnusableRowError:
        return False


def of_lists(question: Any, answer: Any, *, system: str = "") -> tuple[Message, ...] | None:
    """Return messages of a pair whose question or answer is itself a list of turns.

    TRL writes `prompt` and `completion` so; UltraFeedback's `chosen` repeats the question.

    Returns:
        The messages, or None where both are texts.

    Raises:
        UnusableRowError: As `conversation`.
    """
    asked_in_turns = isinstance(question, list) and holds_roles(question)
    answered_in_turns = isinstance(answer, list) and holds_roles(answer)
    if not asked_in_turns and not answered_in_turns:
        return None
    said = answer if answered_in_turns else [{"role": "assistant", "content": answer}]
    if any(message.role == "user" for turn in said for message in _messages(turn)):
        return conversation(said, system=system)
    asked = question if asked_in_turns else [{"role": "user", "content": text_of(question)}]
    return conversation([*asked, *said], system=system)


def _system(content: str) -> tuple[Message, ...]:
    return (Message("system", content),) if content else ()


def _listed(turns: Any) -> list[dict[str, Any]]:
    """Return the turns, also out of a table's cell that holds them as text."""
    if turns is None or turns == "":
        return []
    if isinstance(turns, str):
        turns = _parsed(turns)
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        return turns
    raise UnusableRowError("data.skip_unreadable_turns")


def _parsed(text: str) -> Any:
    """Return what a cell's JSON says; pandas writes lists into CSV files as Python does."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if not text.lstrip().startswith("[{'") or len(text) > LONGEST_PYTHON_CELL:
            return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _messages(turn: Mapping[str, Any]) -> list[Message]:
    """Return a turn's message, or the two of a `{"user", "assistant"}` pair."""
    speaker = next((key for key in SPEAKER_KEYS if turn.get(key) is not None), None)
    if speaker is None:
        said = [(_role(key), cell) for key, cell in turn.items() if _plain(key) in ROLES]
        if not said or len({role for role, _ in said}) < len(said):
            raise UnusableRowError("data.skip_unknown_role")
        return [Message(role, _content(cell)) for role, cell in said]
    key = next((key for key in SPOKEN_KEYS if turn.get(key) is not None), "")
    role = _role(turn[speaker])
    content = _content(turn.get(key))
    calls = turn.get("tool_calls") or turn.get("function_call")
    if role == "assistant" and calls:
        content = "\n\n".join(filter(None, (content, _called(calls))))
    return [Message(role, content)]


def _role(name: Any) -> Role:
    role = ROLES.get(_plain(name))
    if role is None:
        raise UnusableRowError("data.skip_unknown_role")
    return role


def _plain(name: Any) -> str:
    plain = unicodedata.normalize("NFKC", text_of(name)).casefold()
    return plain.replace("-", "_").replace(" ", "_")


def _content(cell: Any) -> str:
    return text_of(_joined(cell) if isinstance(cell, list) else cell)


def _joined(parts: Iterable[Any]) -> str:
    """Join the text parts of a message; a picture or a sound cannot be learned from."""
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    spoken = [text for text in texts if isinstance(text, str)]
    if len(spoken) < len(texts):
        raise UnusableRowError("data.skip_unreadable_turns")
    return "\n".join(spoken)


def _called(calls: Any) -> str:
    """Return tool calls as JSON: each one's name and arguments, without its identifier."""
    listed = calls if isinstance(calls, list) else [calls]
    return _json([_call(call) for call in listed])


def _call(call: Any) -> Any:
    called = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(called, dict) or "name" not in called:
        return called
    arguments = called.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return {"name": called["name"], "arguments": arguments}


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError) as error:  # a circle, odd keys, too deep
        raise UnusableRowError("data.skip_unreadable_turns") from error
