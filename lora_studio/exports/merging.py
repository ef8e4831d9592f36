"""An adapter made part of its base's weights, one module at a time.

W + ΔW is computed in float32, by PEFT's own rule for each kind of layer, compared with what the
layer computed before, and rounded once. So no more memory is needed than the model takes in its own
format, and one layer in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from lora_studio.chat.base import LoadedBase
from lora_studio.errors import AdapterError
from lora_studio.exports.probing import probe


@torch.no_grad()
def merge(
    loaded: LoadedBase, name: str, dtype: torch.dtype, report: Callable[[int, int], None]
) -> Any:
    """Put an adapter into its base and return the plain transformers model.

    What an adapter keeps beside LoRA, biases and whole layers, takes the place of the base's.

    Args:
        loaded: A base with the adapter attached, and no other; it is of no use afterwards.
        name: The adapter's.
        dtype: What weights are in afterwards. Those that the base keeps in another format than
            most of it stay in that.
        report: Told how many modules are done, and of how many, before each.

    Raises:
        StudioError: If a weight would be no finite number, or lack what the adapter adds.
        AdapterError: If it adds a bias to a layer that has none.
    """
    model, adapter = loaded.model, loaded.adapters[name]
    own = model.dtype
    found = [(path, one) for path, one in model.named_modules() if isinstance(one, LoraLayer)]
    _refuse_biases(found, adapter.key)
    outermost = [(path, one) for path, one in found if not _lies_in(path, found)]
    for done, (path, layer) in enumerate(outermost):
        report(done, len(outermost))
        merged = _merged(model, path, layer, key=adapter.key, own=own, dtype=dtype)
        _put(model, path, merged)
    for path, parameter in adapter.overrides.items():
        _put(model, path, parameter)
    for parameter in model.parameters():
        if parameter.dtype == own:
            parameter.data = parameter.data.to(dtype)
    _note_untied(model)
    return model


def _refuse_biases(found: list[tuple[str, Any]], key: str) -> None:
    """Refuse an adapter that adds to a bias where the base has none.

    Raises:
        AdapterError: With the layer's name.
    """
    for path, layer in found:
        if layer.lora_bias.get(key) and getattr(layer.get_base_layer(), "bias", None) is None:
            raise AdapterError("shipping.no_bias", name=path)


def _merged(
    model: nn.Module, path: str, layer: Any, *, key: str, own: torch.dtype, dtype: torch.dtype
) -> nn.Module:
    """Return a LoRA layer's own base layer with the change in its weight.

    What was in the model's `own` format is in `dtype` then.
    """
    base: nn.Module = layer.get_base_layer()
    _untie(model, base, inside=layer)
    formats = {one: one.dtype for one in base.parameters(recurse=False)}
    for parameter in formats:
        parameter.data = parameter.data.float()
    layers = [layer]  # one that changes two parameters is two layers
    while isinstance(layers[-1].base_layer, LoraLayer):
        layers.append(layers[-1].base_layer)
    probes = [probe(one, key) for one in layers]
    try:
        for one in layers:
            one.merge(safe_merge=True, adapter_names=[key])
    except ValueError as error:
        raise AdapterError("shipping.not_finite", name=path) from error
    for wanted in probes:
        if wanted is not None:
            wanted.require(base, path)
    for parameter, before in formats.items():
        parameter.data = parameter.data.to(dtype if before == own else before)
        if not parameter.isfinite().all():
            raise AdapterError("shipping.not_finite", name=path)
    return base


def _untie(model: nn.Module, base: nn.Module, *, inside: nn.Module) -> None:
    """Give a module a weight of its own where another one has the same: only one is changed."""
    within = set(inside.modules())
    elsewhere = {
        parameter
        for module in model.modules()
        if module not in within
        for parameter in module.parameters(recurse=False)
    }
    for name, parameter in list(base.named_parameters(recurse=False)):
        if parameter in elsewhere:
            setattr(base, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _note_untied(model: Any) -> None:
    """Have the configuration say that the head is not the embedding any more, where that is so."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if head is None or not config.tie_word_embeddings:
        return
    if head.weight is not model.get_input_embeddings().weight:
        config.tie_word_embeddings = model.config.tie_word_embeddings = False


def _lies_in(path: str, layers: list[tuple[str, Any]]) -> bool:
    return any(path.startswith(f"{outer}.") for outer, _ in layers)


def _put(model: nn.Module, path: str, value: nn.Module | nn.Parameter) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, value)
