"""An adapter folder, read and checked against a base model before anything is attached.

A PEFT folder may hold more than LoRA matrices: trained bias vectors, or whole layers
(`modules_to_save`). PEFT writes those over the base model's own weights or wraps its layers.
Here they are kept aside as overrides, so that the base stays the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from lora_studio.adapters.configuration import CONFIG, read_settings
from lora_studio.adapters.shapes import expected_shape
from lora_studio.adapters.weights import base_name, is_lora, module_of, opened, read_tensors
from lora_studio.errors import AdapterError

ASIDE = {"bias", "ensure_weight_tying", "init_lora_weights", "modules_to_save", "peft_type"}
"""Settings that PEFT is not told."""


@dataclass(frozen=True, slots=True)
class BaseLayout:
    """The modules and parameters of a base model as they were before any adapter.

    PEFT wraps the modules but keeps the objects, so these stay the base's own.
    """

    modules: Mapping[str, nn.Module]
    classifies: bool = False
    """Whether its head scores classes instead of tokens."""

    @classmethod
    def of(cls, model: nn.Module, *, classifies: bool = False) -> BaseLayout:
        """Take the layout of a model that no adapter has touched."""
        return cls(dict(model.named_modules()), classifies)

    def slot(self, name: str) -> tuple[nn.Module, str]:
        """Return the module and the attribute that hold a parameter."""
        module, _, attribute = name.rpartition(".")
        return self.modules[module], attribute

    def parameter(self, name: str) -> torch.Tensor | None:
        """Return a parameter by its dotted name, or None if the base has no such one."""
        module, _, attribute = name.rpartition(".")
        found = getattr(self.modules.get(module), attribute, None)
        return found if isinstance(found, torch.Tensor) else None


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """What an adapter folder holds, on the CPU."""

    config: LoraConfig
    """As PEFT is to attach it: no bias, no whole layers, no initialisation of its own."""
    lora: dict[str, torch.Tensor]
    """LoRA tensors under their names in the file."""
    overrides: dict[str, torch.Tensor] = field(default_factory=dict)
    """Other values for parameters of the base, by the base's own names."""

    @property
    def alone(self) -> str | None:
        """Key of the sentence why this adapter cannot share a batch, or None if it can.

        PEFT's mixed batches refuse DoRA and parameter targets; overrides change every row.
        """
        if self.config.use_dora:
            return "chat.one_by_one_dora"
        if self.overrides:
            return "chat.one_by_one_overrides"
        return "chat.one_by_one_parameters" if self.config.target_parameters else None


def read_adapter(folder: Path, base: BaseLayout) -> AdapterWeights:
    """Read a PEFT folder and check every tensor's place and shape against the base.

    Shapes come from the file's header: an adapter that does not fit is refused before its
    tensors are read.

    Raises:
        AdapterError: If the folder is incomplete, damaged, of another kind, or of another base.
    """
    config = read_config(folder)
    _check_task(config, base, folder)
    trained_on = str(config.base_model_name_or_path or "?")
    with opened(folder) as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            shape = tuple(file.get_slice(key).get_shape())
            _check_fit(key, shape, base, folder=folder, trained_on=trained_on)
    tensors = read_tensors(folder)
    lora = {key: tensor for key, tensor in tensors.items() if is_lora(key)}
    others = {base_name(key): tensor for key, tensor in tensors.items() if not is_lora(key)}
    return AdapterWeights(config, lora, _changed(others, base))


def read_config(folder: Path) -> LoraConfig:
    """Return the configuration of an adapter folder as PEFT is to attach it.

    Trained bias vectors and whole layers are left out of it: they are kept aside.

    Raises:
        AdapterError: As `read_settings`, or if PEFT refuses what it says.
    """
    said = read_settings(folder)
    try:
        config = LoraConfig(**{name: said[name] for name in said.keys() - ASIDE})
    except (ValueError, TypeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise AdapterError("adapters.unreadable", file=str(folder / CONFIG), cause=cause) from error
    config.inference_mode = True
    return config


def _check_task(config: LoraConfig, base: BaseLayout, folder: Path) -> None:
    """Refuse an adapter that scores classes where tokens are wanted, and the other way round."""
    classifies = config.task_type == "SEQ_CLS"
    if classifies and not base.classifies:
        raise AdapterError("adapters.sorts", folder=str(folder))
    if base.classifies and not classifies:
        raise AdapterError("adapters.writes", folder=str(folder))


def _check_fit(
    key: str, shape: tuple[int, ...], base: BaseLayout, *, folder: Path, trained_on: str
) -> None:
    """Refuse a tensor whose place the base lacks, or whose shape differs from what fits there."""
    name = base_name(key)
    if is_lora(key):
        at = module_of(key)
        module = base.modules.get(at)
        expected = None if module is None else expected_shape(name, shape, module)
    else:
        at, parameter = name, base.parameter(name)
        expected = None if parameter is None else tuple(parameter.shape)
    if expected is None:
        raise AdapterError("adapters.not_here", folder=str(folder), name=at, trained_on=trained_on)
    if expected != shape:
        raise AdapterError(
            "adapters.wrong_base",
            folder=str(folder),
            name=name,
            found=_times(shape),
            expected=_times(expected),
            trained_on=trained_on,
        )


def _changed(others: dict[str, torch.Tensor], base: BaseLayout) -> dict[str, torch.Tensor]:
    """Keep the tensors that differ from the base's; PEFT also saves untouched embeddings."""
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in others.items():
        own: Any = base.parameter(name)
        converted = tensor.to(device=own.device, dtype=own.dtype)
        # A base that is only looked at has no numbers to compare with.
        if own.is_meta or not torch.equal(converted, own.data):
            kept[name] = converted
    return kept


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "1"
