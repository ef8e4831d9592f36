"""One loaded base model with adapters attached, and the switch between them.

The base's own weights are never written: LoRA layers add to them, and an adapter's overrides
(trained bias vectors, whole layers) stand in only while that adapter answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peft.functional import (
    cast_adapter_dtype,
    delete_adapter,
    inject_adapter_in_model,
    set_adapter,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from torch import nn

from lora_studio.adapters.reading import WEIGHTS, AdapterWeights, BaseLayout, read_adapter
from lora_studio.data.templates import end_ids, ensure_chat_template
from lora_studio.errors import AdapterError
from lora_studio.models.loading import load_tokenizer

BASE = "__base__"
"""PEFT's name, inside a mixed batch, for a row without an adapter."""


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
            AdapterError: If one cannot be used; the ones attached before are then unchanged.
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
        except AdapterError:
            self._detach(added.values())
            raise
        self._detach([one for one in self.adapters.values() if one not in kept.values()])
        self.adapters = {name: (kept | added)[name] for name in folders}
        self._choose_template()

    @contextmanager
    def answering_as(self, adapters: Sequence[str | None]) -> Iterator[None]:
        """Let the rows of the next forward passes be answered by these adapters, None the base.

        Adapters that must answer alone (`Attached.alone`) may only stand in rows of their own
        kind. Everything is undone on leaving, by whatever way.
        """
        first = None if adapters[0] is None else self.adapters[adapters[0]]
        if first is not None and first.alone and len(set(adapters)) == 1:
            set_adapter(self.model, first.key, inference_mode=True)
            with self._overridden(first.overrides):
                yield
        else:
            keys = [BASE if name is None else self.adapters[name].key for name in adapters]
            with self._rows(keys):
                yield

    @contextmanager
    def _rows(self, keys: list[str]) -> Iterator[None]:
        """Tell each LoRA layer which adapter each row belongs to.

        The hooks are our own: PEFT's (`PeftModel.generate(adapter_names=…)`) stay behind when
        generate raises, because its context manager has no `finally` (peft 0.21.2,
        tuners/lora/model.py, `_enable_peft_forward_hooks`), and break the next call.
        """
        give = partial(_give_names, keys=keys)
        hooks = [
            module.register_forward_pre_hook(give, with_kwargs=True)
            for module in self.model.modules()
            if isinstance(module, LoraLayer)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _overridden(self, overrides: dict[str, nn.Parameter]) -> Iterator[None]:
        """Let other parameters stand in for the base's; the base's own objects come back."""
        slots = {name: self._layout.slot(name) for name in overrides}
        own = {name: getattr(*slot) for name, slot in slots.items()}
        try:
            for name, slot in slots.items():
                setattr(*slot, overrides[name])
            yield
        finally:
            for name, slot in slots.items():
                setattr(*slot, own[name])

    def _choose_template(self) -> None:
        """Render with the base's template, or an adapter's, or the plain one of the data room.

        All panes are asked in the same words, those an adapter was trained on if need be.
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
        key = next(self._keys)
        try:
            self._inject(weights, key)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            self._remove(key)
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AdapterError("chat.adapter_unusable", folder=str(folder), cause=cause) from error
        finally:
            # PEFT leaves its notes on the model and takes them for a mistake the next time.
            vars(self.model).pop("peft_config", None)
        self.model.eval()
        template, end_id = _own_template(folder)
        overrides = {
            name: nn.Parameter(tensor, requires_grad=False)
            for name, tensor in weights.overrides.items()
        }
        return Attached(key, folder, stamp, overrides, weights.alone, template, end_id)

    def _inject(self, weights: AdapterWeights, key: str) -> None:
        """Add the LoRA layers and fill them.

        Raises:
            ValueError: If the file lacks tensors the configuration asks for, or has others.
        """
        inject_adapter_in_model(
            weights.config, self.model, adapter_name=key, low_cpu_mem_usage=True
        )
        result = set_peft_model_state_dict(
            self.model, weights.lora, adapter_name=key, low_cpu_mem_usage=True
        )
        missing = [name for name in result.missing_keys if key in name.split(".")]
        for problem, names in (("missing", missing), ("unexpected", result.unexpected_keys)):
            if names:
                message = f"{len(names)} {problem} tensors, the first {names[0]}"
                raise ValueError(message)
        # 16-bit LoRA weights are multiplied in 32 bit, as they are while training.
        cast_adapter_dtype(self.model, adapter_name=key)

    def _detach(self, adapters: Iterable[Attached]) -> None:
        for adapter in adapters:
            self._remove(adapter.key)

    def _remove(self, key: str) -> None:
        # Deleting the active adapter makes PEFT activate another one, with a warning.
        set_adapter(self.model, [], inference_mode=True)
        delete_adapter(self.model, key, prefix="lora_")


def _give_names(
    _module: nn.Module, args: Any, kwargs: dict[str, Any], *, keys: list[str]
) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"adapter_names": keys}


def _stamp(folder: Path) -> int:
    file = folder / WEIGHTS
    return file.stat().st_mtime_ns if file.is_file() else 0


def _is_current(adapter: Attached, folder: Path) -> bool:
    return adapter.folder == folder and adapter.stamp == _stamp(folder)


def _own_template(folder: Path) -> tuple[str | None, int | None]:
    """Return the chat template and end token saved beside an adapter, if any."""
    if not (folder / "tokenizer_config.json").is_file():
        return None, None
    tokenizer = load_tokenizer(folder)
    return tokenizer.chat_template, tokenizer.eos_token_id
