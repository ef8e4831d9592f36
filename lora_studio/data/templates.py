"""Chat templates: the one a tokenizer brings, or one of ours, rendered the same way everywhere.

Training and answering must show the model the same text before an answer: both go through
`prompt_ids` or `render`, and so does a template that refuses system turns (Gemma's does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lora_studio.data.chat_formats import TEMPLATES
from lora_studio.data.examples import Message
from lora_studio.errors import DatasetError, ModelError
from lora_studio.recipe import ChatTemplateName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, str]
"""`{"role": …, "content": …}`, as transformers takes it."""
Span = tuple[int, int]
"""A first position, and the one after the last."""

PLAIN_TEMPLATE = TEMPLATES["plain"]
BEGINNING = "{{- bos_token -}}\n"
# A model's own template is a stranger's program: it may trip over anything.
REFUSALS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


def ensure_chat_template(
    tokenizer: PreTrainedTokenizerBase, name: ChatTemplateName = "plain"
) -> bool:
    """Give the tokenizer a chat template where it has none, and an id to pad with.

    The template begins with the tokenizer's beginning token if it puts one before other text, and
    ends every answer with its end token. Marks of the format that the tokenizer does not know are
    plain text to it.

    Args:
        tokenizer: The base model's.
        name: One of `chat_formats.TEMPLATES`.

    Returns:
        Whether a template was set.

    Raises:
        ModelError: If the tokenizer has no end token.
    """
    ensure_end_token(tokenizer)
    if tokenizer.chat_template:
        return False
    beginning = BEGINNING if adds_beginning(tokenizer) else ""
    tokenizer.chat_template = beginning + TEMPLATES[name]
    return True


def name_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplateName | None:
    """Return which of our chat templates the tokenizer has, None for the model's own or none."""
    current = str(tokenizer.chat_template or "").removeprefix(BEGINNING)
    return next((name for name, template in TEMPLATES.items() if template == current), None)


def ensure_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that answers can end, and pad with the end token where no other is set.

    Padding carries no label of its own, so that sharing the id does not mask an answer's end.

    Raises:
        ModelError: If the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("data.no_end_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def adds_beginning(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer puts its beginning token before a text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer: the end token, and what the template closes it with.

    The first mark after an answer counts: Phi-3's template has `<|end|>` there, and the end token
    only where a whole conversation is over.
    """
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        sample = (Message("user", "a"), Message("assistant", "⁂"))
        _, answer, tail = render(tokenizer, sample).rpartition("⁂")
        marks = set(tokenizer.get_added_vocab().values())
        closing = token_ids(tokenizer, [tail])[0] if answer else []
        ends |= set([token for token in closing if token in marks][:1])
    return frozenset(ends)


def token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool = False
) -> list[list[int]]:
    """Tokenise texts, as they stand or with what the tokenizer itself puts around them.

    A text to classify has the latter, when it is learned from and when it is tried out.
    """
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        encoded = tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            verbose=False,
        )
        return list(encoded["input_ids"])
    # The tokenizer itself would spend as long again on turning the result into its own.
    backend.no_truncation()
    backend.no_padding()
    rows = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
    return [row.ids for row in rows]


def decoded(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, special: bool = False
) -> str:
    """Return what token ids say, as it stands; special tokens by their names, or not at all."""
    return str(
        tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    )


def token_places(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[list[int], list[Span]]]:
    """Tokenise texts as `token_ids` does; return the characters that each token stands for too.

    Tokens that are bytes of one character all stand for it. Fast tokenizers only.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    found = backend.encode_batch(list(texts), add_special_tokens=False)
    return [(row.ids, row.offsets) for row in found]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return what the model sees before it answers `messages`; training shows it the same.

    Raises:
        DatasetError: If the template refuses the messages.
    """
    return token_ids(tokenizer, [render(tokenizer, messages, add_generation_prompt=True)])[0]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Return the messages as the template writes them.

    Raises:
        DatasetError: If the template refuses the messages.
    """
    renderer = Renderer(tokenizer)
    turns, whole = renderer.accepted(messages)
    return renderer.turns(turns, add_generation_prompt=True) if add_generation_prompt else whole


class Renderer:
    """Writes turns as a tokenizer's chat template has them.

    What `apply_chat_template` does for turns of plain text, in a third of the time: it copies them,
    looks for tools and documents, and gathers the names of the template anew for each of millions.

    Args:
        tokenizer: A tokenizer with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self._refusals = (TemplateError, *REFUSALS)
        self._end = str(tokenizer.eos_token)
        self._source = tokenizer.get_chat_template()
        try:
            self._template = _compile_jinja_template(self._source)
        except self._refusals as error:
            raise DatasetError("data.template_refuses", reason=str(error)) from error
        self._special = tokenizer.special_tokens_map
        self._names = dict(self._template.globals) | self._special
        self._names |= {"tools": None, "documents": None}

    def turns(self, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
        """Return turns as the template writes them, system turns and all.

        Raises:
            DatasetError: If the template refuses them.
        """
        values = {"messages": turns, "add_generation_prompt": add_generation_prompt}
        try:
            context = self._template.new_context(self._names | values, shared=True)
            return "".join(self._template.root_render_func(context))
        except self._refusals as error:
            raise DatasetError("data.template_refuses", reason=str(error)) from error

    @property
    def marks_answers(self) -> bool:
        """Whether the template has `{% generation %}` marks around what the model writes."""
        lexed = self._template.environment.lex(self._source)
        words = [(kind, word) for _, kind, word in lexed if kind != "whitespace"]
        return any(
            first[0] == "block_begin" and second == ("name", "generation")
            for first, second in pairwise(words)
        )

    def marks(self, turns: Sequence[Turn]) -> list[Span]:
        """Return which characters of these turns the template marks as what the model writes.

        The marks are returned as they are; whether they fit is for `masking` to say.

        Raises:
            DatasetError: If the template refuses the turns.
        """
        from transformers.utils.chat_template_utils import _render_with_assistant_indices

        try:
            _, spans = _render_with_assistant_indices(
                self._tracked, turns, None, None, add_generation_prompt=False, **self._special
            )
        except self._refusals as error:
            raise DatasetError("data.template_refuses", reason=str(error)) from error
        return list(spans)

    @cached_property
    def _tracked(self) -> Any:
        """The template once more: what is shared between threads cannot keep track of marks."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        return _compile_jinja_template.__wrapped__(self._source)

    def accepted(self, messages: Sequence[Message]) -> tuple[list[Turn], str]:
        """Return the messages as turns that the template accepts, and how it writes them.

        Where it refuses a system turn, that goes before the first question, a blank line between.

        Raises:
            DatasetError: If the template refuses the messages all the same.
        """
        turns: list[Turn] = [{"role": turn.role, "content": turn.content} for turn in messages]
        try:
            return turns, self.turns(turns)
        except DatasetError:
            if [turn["role"] for turn in turns[:2]] != ["system", "user"]:
                raise
        content = f"{turns[0]['content']}\n\n{turns[1]['content']}"
        turns = [{"role": "user", "content": content}, *turns[2:]]
        return turns, self.turns(turns)

    def beginning(self, full: str, turns: Sequence[Turn]) -> str:
        """Return how the template writes the first turns of a conversation that goes on.

        Some templates (Phi-3's) close what has no next turn with one more end token, which is left
        out where `full`, the whole conversation, does not have it.

        Raises:
            DatasetError: If the template refuses the turns.
        """
        text = self.turns(turns)
        shorter = text.removesuffix(self._end)
        return shorter if full.startswith(shorter) and not full.startswith(text) else text
