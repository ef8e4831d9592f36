"""A GGUF file as a model of Ollama: the Modelfile, whose template is the model's own.

Ollama writes conversations with Go's templates. A Jinja template is not translated: it is asked to
write a known conversation, and what stands before and after each turn is read off that. Format:
https://github.com/ollama/ollama/blob/main/docs/modelfile.md and docs/template.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.chat.request import Sampling
from lora_studio.data.templates import Renderer, Turn, end_ids
from lora_studio.errors import DatasetError, StudioError

SYSTEM, QUESTION, ANSWER, NEXT = "⁂system⁂", "⁂question⁂", "⁂answer⁂", "⁂next⁂"
"""Words that no template writes by itself."""
QUOTES = '"""'
ADDS_BEGINNING, KIND = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a chat template writes between the words of a conversation."""

    first: str
    """Before the first question, where nothing was said before."""
    later: str
    """Before the other questions."""
    answer: tuple[str, str]
    """Before and after an answer."""
    cue: str
    """After the last question, where the model is to go on."""
    system: tuple[str, str] | None
    """Before a system turn, and between it and the question; None where the template has none."""

    def write(self, turns: Sequence[Turn]) -> str:
        """Return a conversation as the template writes it, up to where the model goes on."""
        said, last = "", ""
        for turn in turns:
            role, content = turn["role"], turn["content"]
            if role == "system":
                said += f"{(self.system or ('', ''))[0]}{content}"
            elif role == "user":
                said += f"{self._before(last)}{content}"
            else:
                said += f"{self.answer[0]}{content}{self.answer[1]}"
            last = role
        return said + self.cue

    def _before(self, last: str) -> str:
        if last == "system" and self.system is not None:
            return self.system[1]
        return self.later if last else self.first

    def without(self, beginning: str) -> Frame:
        """Return the frame of a conversation before which a token is put by somebody else."""
        system = self.system and (self.system[0].removeprefix(beginning), self.system[1])
        return Frame(
            first=self.first.removeprefix(beginning),
            later=self.later,
            answer=self.answer,
            cue=self.cue,
            system=system,
        )


def modelfile(gguf: Path, tokenizer: Any) -> str:
    """Return the Modelfile that belongs beside a GGUF file.

    Args:
        gguf: The file.
        tokenizer: The model's; one without a chat template continues texts.

    Raises:
        StudioError: As `frame_of`.
    """
    template = "{{ .Prompt }}"
    if tokenizer.chat_template:
        beginning = str(tokenizer.bos_token) if adds_beginning(gguf) else ""
        template = template_of(frame_of(tokenizer).without(beginning))
    ends = tokenizer.convert_ids_to_tokens(sorted(end_ids(tokenizer)))
    lines = [
        f"FROM ./{gguf.name}",
        f"TEMPLATE {_quoted(template)}",
        *(f'PARAMETER stop "{_escaped(end)}"' for end in ends),
        f"PARAMETER temperature {Sampling().temperature:g}",
    ]
    return "\n".join(lines) + "\n"


def adds_beginning(gguf: Path) -> bool:
    """Say whether llama.cpp puts the beginning token before a text of this file by itself."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    said = reader.get_field(ADDS_BEGINNING)
    if said is not None:
        return bool(said.contents())
    kind = reader.get_field(KIND)
    return kind is not None and kind.contents() == "llama"


def frame_of(tokenizer: Any) -> Frame:
    """Read off what a tokenizer's chat template writes between the words of a conversation.

    Raises:
        StudioError: If that depends on more than who speaks, and who spoke before.
    """
    renderer = Renderer(tokenizer)
    user, reply, more = _turn("user", QUESTION), _turn("assistant", ANSWER), _turn("user", NEXT)
    try:
        whole = renderer.turns([user, reply, more], add_generation_prompt=True)
        closed = renderer.turns([user, reply])
    except DatasetError as error:
        raise StudioError("shipping.ollama_template") from error
    first, rest = _parted(whole, QUESTION)
    opening, rest = _parted(rest, ANSWER)
    between, cue = _parted(rest, NEXT)
    closing = _common_start(_parted(closed, ANSWER)[1], between)
    frame = Frame(
        first=first,
        later=between.removeprefix(closing),
        answer=(opening, closing),
        cue=cue,
        system=_system(renderer),
    )
    _require_same(frame, renderer)
    return frame


def template_of(frame: Frame) -> str:
    """Return a frame as Go's template, with the conversation in `.Messages`."""
    first, later, opening, closing, cue = map(
        _literal, (frame.first, frame.later, *frame.answer, frame.cue)
    )
    system = after_system = ""
    if frame.system is not None:
        before, between = map(_literal, frame.system)
        system = (
            f'{{{{ if eq .Role "system" }}}}{before}{{{{ .Content }}}}{{{{ $last = .Role }}}}'
            "{{ else }}"
        )
        after_system = f'{{{{ if eq $last "system" }}}}{between}{{{{ else }}}}'
    question = (
        f"{after_system}{{{{ if $last }}}}{later}{{{{ else }}}}{first}{{{{ end }}}}"
        f"{'{{ end }}' if after_system else ''}{{{{ .Content }}}}{{{{ $last = .Role }}}}"
    )
    answer = f"{opening}{{{{ .Content }}}}{closing}{{{{ $last = .Role }}}}"
    return (
        f'{{{{ $last := "" }}}}{{{{ range .Messages }}}}{system}'
        f'{{{{ if eq .Role "user" }}}}{question}{{{{ end }}}}'
        f'{{{{ if eq .Role "assistant" }}}}{answer}{{{{ end }}}}'
        f"{'{{ end }}' if system else ''}{{{{ end }}}}{cue}"
    )


def _system(renderer: Renderer) -> tuple[str, str] | None:
    """Return what stands before a system turn and after it, None where the template refuses it."""
    try:
        text = renderer.turns([_turn("system", SYSTEM), _turn("user", QUESTION)])
    except DatasetError:
        return None
    before, rest = _parted(text, SYSTEM)
    return before, _parted(rest, QUESTION)[0]


def _require_same(frame: Frame, renderer: Renderer) -> None:
    """Compare a frame with its template on a longer conversation, with and without a system turn.

    Raises:
        StudioError: If they do not write the same.
    """
    spoken = [("user", "One."), ("assistant", "Two."), ("user", "Three."),
              ("assistant", "Four."), ("user", "Five.")]  # fmt: skip
    turns = [_turn(*one) for one in spoken]
    conversations = [turns[:1], turns]
    if frame.system is not None:
        conversations += [[_turn("system", "Zero."), *turns]]
    for turns in conversations:
        if frame.write(turns) != renderer.turns(turns, add_generation_prompt=True):
            raise StudioError("shipping.ollama_template")


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _parted(text: str, words: str) -> tuple[str, str]:
    """Return what stands before a turn's words, and after them.

    Raises:
        StudioError: If they do not stand there once, as they were given.
    """
    before, found, after = text.partition(words)
    if not found or words in after:
        raise StudioError("shipping.ollama_template")
    return before, after


def _common_start(one: str, other: str) -> str:
    """Return how two texts begin; some templates write one more end token at the very end."""
    return next((one[:end] for end in range(len(one), 0, -1) if other.startswith(one[:end])), "")


def _literal(text: str) -> str:
    """Return a text as Go's template writes it as it is."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    """Return a text between a Modelfile's long quotes.

    Raises:
        StudioError: If it has such quotes itself: there is no way to write them.
    """
    if QUOTES in text or text.endswith('"'):
        raise StudioError("shipping.ollama_template")
    return f"{QUOTES}{text}{QUOTES}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
