"""LoRA layers of one adapter, put into a model and taken out again.

PEFT puts them in. Where it has put others into the same layers before, they are only filled: going
through the model once more takes it half a second for 210 layers, filling them takes 30 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft.functional import (
    cast_adapter_dtype,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.lora import Embedding, LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, float32, nn

from lora_studio.adapters.factors import said_of, scale_of
from lora_studio.adapters.reading import AdapterWeights, BaseLayout
from lora_studio.adapters.weights import base_name, module_of
from lora_studio.chat.rows import WHOLE

MATRICES = {"lora_A.weight", "lora_B.weight"}

Matrices = Mapping[str, Mapping[str, Tensor]]
"""By the path of a layer, and then by names as in `MATRICES`."""


def put_in(model: nn.Module, weights: AdapterWeights, key: str, layout: BaseLayout) -> None:
    """Add an adapter's LoRA layers under PEFT's name `key`, none of them active.

    Raises:
        ValueError: If the file lacks tensors the configuration asks for, or has others.
    """
    matrices = _by_layer(weights.lora)
    if _fill(model, weights, key, matrices, layout):
        return
    _inject(model, weights, key)
    for layer in _layers(model):
        if key in layer.active_adapters:
            layer.set_adapter([], inference_mode=True)


def take_out(model: nn.Module, key: str) -> None:
    """Remove an adapter's LoRA layers, as far as they are there."""
    for layer in _layers(model):
        # Deleting the active adapter makes PEFT activate another one, with a warning.
        if key in layer.active_adapters:
            layer.set_adapter([], inference_mode=True)
        layer.delete_adapter(key)


def _layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _inject(model: nn.Module, weights: AdapterWeights, key: str) -> None:
    try:
        inject_adapter_in_model(weights.config, model, adapter_name=key, low_cpu_mem_usage=True)
        result = set_peft_model_state_dict(
            model, weights.lora, adapter_name=key, low_cpu_mem_usage=True
        )
        # 16-bit LoRA weights are multiplied in 32 bit, as they are while training. What is in 32
        # bit has been rounded to the base's format (peft 0.21.2, tuners_utils.py,
        # `_move_adapter_to_device_of_base_layer`), so it is written once more.
        cast_adapter_dtype(model, adapter_name=key)
        set_peft_model_state_dict(model, weights.lora, adapter_name=key)
    finally:
        # PEFT leaves its notes on the model and takes them for a mistake the next time.
        vars(model).pop("peft_config", None)
    missing = [name for name in result.missing_keys if key in name.split(".")]
    for problem, names in (("missing", missing), ("unexpected", result.unexpected_keys)):
        if names:
            message = f"{len(names)} {problem} tensors, the first {names[0]}"
            raise ValueError(message)
    model.eval()


def _by_layer(lora: Mapping[str, Tensor]) -> Matrices:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in lora.items():
        path = module_of(name)
        found.setdefault(path, {})[base_name(name).removeprefix(f"{path}.")] = tensor
    return found


def _fill(
    model: nn.Module, weights: AdapterWeights, key: str, matrices: Matrices, layout: BaseLayout
) -> bool:
    """Fill layers that PEFT has made for other adapters; return whether that could be done.

    It can for plain LoRA on linear layers, all of them there, with the ranks that the configuration
    says. All else is for PEFT to do, or to refuse.
    """
    config = weights.config
    if config.use_dora or config.target_parameters or config.lora_bias:
        return False
    wanted = {path for path in layout.modules if check_target_module_exists(config, path)}
    layers: dict[str, Any] = {path: model.get_submodule(path) for path in matrices}
    if wanted != matrices.keys() or not all(map(_is_linear, layers.values())):
        return False
    ranks = {path: said_of(config.rank_pattern, path, config.r) for path in layers}
    for path, found in matrices.items():
        if found.keys() != MATRICES or len(found["lora_A.weight"]) != ranks[path]:
            return False
    no_dropout = nn.Identity()
    for path, layer in layers.items():
        layer.r[key] = ranks[path]
        layer.lora_alpha[key] = said_of(config.alpha_pattern, path, config.lora_alpha)
        layer.scaling[key] = scale_of(config, path, ranks[path])
        layer.use_rslora[key], layer.use_dora[key] = config.use_rslora, False
        layer.lora_bias[key] = False
        layer.lora_dropout[key] = no_dropout
        device = layer.get_base_layer().weight.device
        for kind, modules in (("lora_A.weight", layer.lora_A), ("lora_B.weight", layer.lora_B)):
            modules[key] = Given(matrices[path][kind].to(device, float32))
    return True


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, LoraLayer) and not isinstance(layer, (Embedding, *WHOLE))


class Given(nn.Linear):
    """A linear layer without bias whose weight is given, so that none is drawn before.

    Args:
        weight: Shape (out, in).
    """

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)  # that of a linear layer would make and draw a weight
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None)
        self.training = False
