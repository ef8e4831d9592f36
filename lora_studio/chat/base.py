"""One loaded base model with adapters attached, and the switch between them.

The base's own weights are never written: LoRA layers add to them, and an adapter's overrides
(trained bias vectors, whole layers) stand in only while that adapter answers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import OutOfMemoryError, nn

from lora_studio.adapters.configuration import WEIGHTS
from lora_studio.adapters.reading import BaseLayout, read_adapter
from lora_studio.chat.attaching import put_in, take_out
from lora_studio.chat.request import Voice, Who, voice
from lora_studio.chat.rows import WHOLE, answered_by
from lora_studio.data.templates import end_ids, ensure_chat_template
from lora_studio.errors import AdapterError, StudioError
from lora_studio.models.loading import load_tokenizer

ROUTED = ".experts."
"""In the name of a layer that is given the tokens of any row, as a router sends them."""


@dataclass(frozen=True, slots=True)
class Attached:
    """One adapter in the model."""

    key: str
    """PEFT's name for it; unique for life, and free of the dots a person's name may have."""
    folder: Path
    stamp: int
    """Modification time of its weights, in nanoseconds: a newer file is another adapter."""
    overrides: dict[str, nn.Parameter]
    alone: str | None
    """Key of the sentence why it cannot share a batch."""
    template: str | None
    """Its own chat template."""
    end_id: int | None
    """End token of its own tokenizer."""


class LoadedBase:
    """A base model, its tokenizer and its adapters. Not thread-safe: the engine holds a lock.

    Args:
        model: A causal language model, or a sequence classifier.
        tokenizer: The model's own.
        classifies: Whether it is a sequence classifier.
    """

    def __init__(self, model: Any, tokenizer: Any, *, classifies: bool = False) -> None:
        self.model = model
        self.classifies = classifies
        self.tokenizer = tokenizer
        self.adapters: dict[str, Attached] = {}
        self.end_ids: frozenset[int] = frozenset()
        self._layout = BaseLayout.of(model, classifies=classifies)
        self._own_template = tokenizer.chat_template
        self._keys = (f"adapter{number}" for number in itertools.count())
        self._choose_template()

    @property
    def context(self) -> int | None:
        """How many tokens the model's positions reach, or None if it does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def attach(self, folders: dict[str, Path]) -> None:
        """Make these the attached adapters, by name; those already there stay untouched.

        Raises:
            AdapterError: If one cannot be used, or two were trained with different chat templates
                and the base has none of its own; the ones attached before are then unchanged.
            StudioError: If memory runs out; likewise.
        """
        kept = {
            name: self.adapters[name]
            for name, folder in folders.items()
            if name in self.adapters and _is_current(self.adapters[name], folder)
        }
        added: dict[str, Attached] = {}
        try:
            for name in folders.keys() - kept.keys():
                added[name] = self._attach(folders[name])
            found = {name: (kept | added)[name] for name in folders}
            _refuse_other_template(found)
        except StudioError:
            self._detach(added.values())
            raise
        self._detach([one for one in self.adapters.values() if one not in kept.values()])
        self.adapters = found
        self._choose_template()

    def alone(self, who: Who) -> tuple[str, str] | None:
        """Return which adapter cannot share a batch, and the key of the sentence why, if one is."""
        reasons = ((name, self.adapters[name].alone) for name, _ in voice(who))
        return next(((name, why) for name, why in reasons if why), None)

    def together(self, asked: Sequence[Who]) -> list[list[int]]:
        """Return the places of those who can share a batch, the shared batch first."""

        def alone(place: int) -> Voice:
            return voice(asked[place]) if self.alone(asked[place]) else ()

        # Sorting keeps the order within each.
        places = sorted(range(len(asked)), key=alone)
        return [list(batch) for _, batch in itertools.groupby(places, alone)]

    @contextmanager
    def answering_as(self, rows: Sequence[Who]) -> Iterator[None]:
        """Let the rows of the next forward passes be answered by these, None the base.

        Who must answer `alone` may only stand beside rows of the same voice. Everything is undone
        on leaving, by whatever way.
        """
        voices = [voice(who) for who in rows]
        by_key = [
            tuple((self.adapters[name].key, weight) for name, weight in one) for one in voices
        ]
        with answered_by(self.model, by_key), self._overridden(voices[0]):
            yield

    @contextmanager
    def _overridden(self, parts: Voice) -> Iterator[None]:
        """Let other parameters stand in for the base's; the base's own objects come back."""
        names = {name for one, _ in parts for name in self.adapters[one].overrides}
        slots = {name: self._layout.slot(name) for name in names}
        own = {name: getattr(*slot) for name, slot in slots.items()}
        try:
            for name, slot in slots.items():
                setattr(*slot, self._blend(own[name], name, parts))
            yield
        finally:
            for name, slot in slots.items():
                setattr(*slot, own[name])

    def _blend(self, own: nn.Parameter, name: str, parts: Voice) -> nn.Parameter:
        """Return own + Σ weight·(override - own), the override itself where that is all."""
        overrides = [(self.adapters[one].overrides.get(name), weight) for one, weight in parts]
        found = [(override, weight) for override, weight in overrides if override is not None]
        if [weight for _, weight in found] == [1.0]:
            return found[0][0]
        start = own.detach().float()
        total = sum((weight * (value.float() - start) for value, weight in found), start)
        return nn.Parameter(total.to(own.dtype), requires_grad=False)

    def _choose_template(self) -> None:
        """Render with the base's template, or the adapters', or the plain one of the data room.

        All panes are asked in the same words, those the adapters were trained on if need be.
        """
        self.tokenizer.chat_template = self._own_template
        borrowed = next((one for one in self.adapters.values() if one.template), None)
        if self._own_template is None and borrowed is not None:
            self.tokenizer.chat_template = borrowed.template
        ensure_chat_template(self.tokenizer)
        self.end_ids = end_ids(self.tokenizer)
        if self._own_template is None and borrowed is not None and borrowed.end_id is not None:
            self.end_ids |= {borrowed.end_id}

    def _attach(self, folder: Path) -> Attached:
        stamp = _stamp(folder)
        weights = read_adapter(folder, self._layout)
        if weights.config.use_dora and getattr(self.model, "is_loaded_in_8bit", False):
            # It reads the base's weights anew at every step, and bitsandbytes moves int8 ones away.
            raise AdapterError("chat.dora_in_int8", folder=str(folder))
        # A base that has a template of its own needs no other, and a tokenizer takes long to load.
        template, end_id = (None, None) if self._own_template else _own_template(folder)
        key = next(self._keys)
        try:
            put_in(self.model, weights, key, self._layout)
        except (OutOfMemoryError, MemoryError) as error:
            take_out(self.model, key)
            raise StudioError("chat.out_of_memory") from error
        except (ValueError, RuntimeError, KeyError, TypeError, re.error) as error:
            take_out(self.model, key)
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AdapterError("adapters.unusable", folder=str(folder), cause=cause) from error
        overrides = {
            name: nn.Parameter(tensor, requires_grad=False)
            for name, tensor in weights.overrides.items()
        }
        alone = weights.alone or self._alone_by_layers(key)
        return Attached(key, folder, stamp, overrides, alone, template, end_id)

    def _alone_by_layers(self, key: str) -> str | None:
        """Return the key of the sentence why a layer that an adapter changes mixes rows."""
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer) and key in {*module.lora_A, *module.lora_embedding_A}:
                if ROUTED in name:
                    return "chat.one_by_one_parameters"
                if isinstance(module, WHOLE):
                    return "chat.one_by_one_layers"
        return None

    def _detach(self, adapters: Iterable[Attached]) -> None:
        for adapter in adapters:
            take_out(self.model, adapter.key)


def _stamp(folder: Path) -> int:
    file = folder / WEIGHTS
    return file.stat().st_mtime_ns if file.is_file() else 0


def _is_current(adapter: Attached, folder: Path) -> bool:
    return adapter.folder == folder and adapter.stamp == _stamp(folder)


def _refuse_other_template(adapters: Mapping[str, Attached]) -> None:
    """Refuse an adapter that would be asked in the words of another's chat template."""
    spoken = {name: (one.template, one.end_id) for name, one in adapters.items() if one.template}
    for name, own in spoken.items():
        first = next(iter(spoken))
        if own != spoken[first]:
            raise AdapterError("chat.other_template", name=name, other=first)


def _own_template(folder: Path) -> tuple[str | None, int | None]:
    """Return the chat template and end token saved beside an adapter, if any."""
    if not (folder / "tokenizer_config.json").is_file():
        return None, None
    tokenizer = load_tokenizer(folder)
    return tokenizer.chat_template, tokenizer.eos_token_id
