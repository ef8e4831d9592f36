"""Counts what an adapter trains, exactly as PEFT will, from a model's description alone.

A LoRA adapter on a d_out×d_in weight is B (d_out×r) times A (r×d_in): r·(d_in + d_out) parameters
(arXiv 2106.09685, section 4.1). No torch: the page counts at every move of a slider.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lora_studio.errors import RecipeError, StudioError
from lora_studio.models.description import ModelInfo, ModuleGroup
from lora_studio.recipe import ALL_LINEAR, AdapterSpec

FLOAT32_BYTES = 4
# A tensor's entry in the safetensors header: its dotted name, type, shape and offsets.
HEADER_BYTES_PER_TENSOR = 144


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCount:
    """One group of layers with an adapter on each."""

    name: str
    """Last name of the layers, as in `q_proj`."""
    count: int
    """How many layers."""
    d_in: int
    """Input width of each layer."""
    d_out: int
    """Output width of each layer."""
    full: int
    """Parameters of the frozen weights: count·d_in·d_out."""
    adapter: int
    """Parameters of the adapter: count·r·(d_in + d_out)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """What a run trains, out of what."""

    trainable: int
    """Adapter parameters, and biases where they are trained."""
    total: int
    """The base model's parameters and the adapter's."""
    percent: float
    """100·trainable/total."""
    adapter_bytes: int
    """Size of the saved adapter's safetensors file, in float32; within a percent or so."""
    per_module: tuple[ModuleCount, ...]
    """The groups with an adapter, in model order."""


def count(info: ModelInfo, adapter: AdapterSpec) -> ParameterCount:
    """Count an adapter's parameters on a model.

    The numbers are those of PEFT's `get_nb_trainable_parameters`: with bias `all` every parameter
    named bias is trained, with `lora_only` those of the layers that have an adapter
    (`_mark_only_adapters_as_trainable` in peft/tuners/tuners_utils.py).

    Raises:
        RecipeError: If a target module is not in the model.
    """
    names = target_modules(info, adapter)
    groups = [group for group in info.modules if group.name in names]
    per_module = tuple(_count_group(group, adapter.r) for group in groups)
    weights = sum(module.adapter for module in per_module)
    biases = {
        "none": 0,
        "all": info.biases,
        "lora_only": sum(group.bias for group in groups),
    }[adapter.bias]
    trainable, total = weights + biases, info.parameters + weights
    tensors = 2 * sum(group.count for group in groups)
    return ParameterCount(
        trainable=trainable,
        total=total,
        percent=100 * trainable / total,
        adapter_bytes=FLOAT32_BYTES * trainable + HEADER_BYTES_PER_TENSOR * tensors,
        per_module=per_module,
    )


def _count_group(group: ModuleGroup, r: int) -> ModuleCount:
    return ModuleCount(
        name=group.name,
        count=group.count,
        d_in=group.d_in,
        d_out=group.d_out,
        full=group.count * group.d_in * group.d_out,
        adapter=group.count * r * (group.d_in + group.d_out),
    )


def target_modules(info: ModelInfo, adapter: AdapterSpec) -> list[str]:
    """Return the last names that get an adapter, in model order; `all-linear` is every one.

    Raises:
        RecipeError: If a name is not one of the model's linear layers.
    """
    known = info.target_names
    if adapter.target_modules == ALL_LINEAR:
        return list(known)
    unknown = [name for name in adapter.target_modules if name not in known]
    if unknown:
        problem = StudioError(
            "model.unknown_targets",
            names=", ".join(unknown),
            source=info.source,
            known=", ".join(known),
        )
        raise RecipeError.of([problem])
    return [name for name in known if name in adapter.target_modules]


def fan_in_fan_out(info: ModelInfo, targets: Iterable[str]) -> bool:
    """Say whether the targets store their weights as (d_in, d_out), as GPT-2's Conv1D does."""
    names = set(targets)
    return any(group.kind == "Conv1D" for group in info.modules if group.name in names)
