"""An adapter folder, read and checked against a base model before anything is attached.

A PEFT folder may hold more than LoRA matrices: trained bias vectors, or whole layers
(`modules_to_save`). PEFT writes those over the base model's own weights or wraps its layers.
Here they are kept aside as overrides, so that the base stays the base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from torch import nn

from lora_studio.errors import AdapterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA_MARKS = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude")
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base as it is; PiSSA, OLoRA, CorDA and LoftQ
replace its weights by a residual (PEFT, developer guide on LoRA initialisation)."""
FOREIGN_SETTINGS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""LoRA relatives that need more than the matrices, or that change the base."""


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
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AdapterError("chat.adapter_incomplete", folder=str(folder), missing=name)
    config = read_config(folder)
    _check_task(config, base, folder)
    trained_on = config.base_model_name_or_path or "?"
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                shape = tuple(file.get_slice(key).get_shape())
                _check_fit(key, shape, base, folder=folder, trained_on=trained_on)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            "chat.adapter_unreadable", file=str(folder / WEIGHTS), cause=str(error)
        ) from error
    lora = {key: tensor for key, tensor in tensors.items() if _is_lora(key)}
    others = {base_name(key): tensor for key, tensor in tensors.items() if not _is_lora(key)}
    return AdapterWeights(config, lora, _changed(others, base))


def base_name(key: str) -> str:
    """Return the name, in the base model, of what a tensor of an adapter file belongs to.

    >>> base_name("base_model.model.lm_head.base_layer.bias")
    'lm_head.bias'
    """
    return key.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _is_lora(key: str) -> bool:
    return any(mark in key for mark in LORA_MARKS)


def read_config(folder: Path) -> LoraConfig:
    """Return the configuration of an adapter folder as PEFT is to attach it.

    Trained bias vectors and whole layers are left out of it: they are kept aside.

    Raises:
        AdapterError: If it cannot be read, or is not of plain LoRA.
    """
    file = folder / CONFIG
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        kind = raw.get("peft_type")
        config = LoraConfig.from_pretrained(str(folder)) if kind == "LORA" else None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise AdapterError("chat.adapter_unreadable", file=str(file), cause=cause) from error
    if config is None:
        raise AdapterError("chat.adapter_kind", folder=str(folder), kind=str(kind))
    for name in FOREIGN_SETTINGS:
        if getattr(config, name, None):
            raise AdapterError("chat.adapter_kind", folder=str(folder), kind=f"LORA ({name})")
    if config.init_lora_weights not in PLAIN_STARTS:
        init = str(config.init_lora_weights)
        raise AdapterError("chat.adapter_rewrites_base", folder=str(folder), init=init)
    config.bias = "none"
    config.modules_to_save = None
    config.ensure_weight_tying = False
    config.init_lora_weights = True
    config.inference_mode = True
    return config


def _check_task(config: LoraConfig, base: BaseLayout, folder: Path) -> None:
    """Refuse an adapter that scores classes where tokens are wanted, and the other way round."""
    classifies = config.task_type == "SEQ_CLS"
    if classifies and not base.classifies:
        raise AdapterError("chat.adapter_sorts", folder=str(folder))
    if base.classifies and not classifies:
        raise AdapterError("chat.adapter_writes", folder=str(folder))


def _check_fit(
    key: str, shape: tuple[int, ...], base: BaseLayout, *, folder: Path, trained_on: str
) -> None:
    """Refuse a tensor whose place the base lacks, or whose shape differs from what fits there."""
    name = base_name(key)
    if _is_lora(key):
        at = name[: min(name.index(mark) for mark in LORA_MARKS if mark in name)]
        module = base.modules.get(at)
        expected = None if module is None else _expected(name, shape, module)
    else:
        at, parameter = name, base.parameter(name)
        expected = None if parameter is None else tuple(parameter.shape)
    if expected is None:
        raise AdapterError(
            "chat.adapter_not_here", folder=str(folder), name=at, trained_on=trained_on
        )
    if expected != shape:
        raise AdapterError(
            "chat.adapter_wrong_base",
            folder=str(folder),
            name=name,
            found=_times(shape),
            expected=_times(expected),
            trained_on=trained_on,
        )


def _expected(name: str, shape: tuple[int, ...], module: nn.Module) -> tuple[int, ...]:
    """Return the shape a LoRA tensor must have on a module; the rank is the file's own.

    A is (r, in) and B is (out, r) (arXiv 2106.09685, section 4.1). Modules of a kind whose
    sizes are not known here, such as fused experts, are left to PEFT.
    """
    sizes = _sizes(module)
    if sizes is None:
        return shape
    inputs, outputs = sizes
    if ".lora_A." in name or ".lora_embedding_A" in name:
        return shape[0], inputs
    if name.endswith(".lora_B.weight") or ".lora_embedding_B" in name:
        return outputs, shape[-1]
    return (outputs,)


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """Return a layer's inputs and outputs; quantised weights are packed and say nothing."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if hasattr(module, "nf") and hasattr(module, "nx"):  # transformers' Conv1D, as in GPT-2
        return int(module.nx), int(module.nf)
    return None


def _changed(others: dict[str, torch.Tensor], base: BaseLayout) -> dict[str, torch.Tensor]:
    """Keep the tensors that differ from the base's; PEFT also saves untouched embeddings."""
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in others.items():
        own: Any = base.parameter(name)
        converted = tensor.to(device=own.device, dtype=own.dtype)
        if not torch.equal(converted, own.data):
            kept[name] = converted
    return kept


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "1"
