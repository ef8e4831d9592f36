"""Whether a merged layer computes what its base and the adapter's factors compute together.

Both are asked for a few random inputs, in float32 and before anything is rounded. So an adapter
that is too weak to be seen in the model's answers is still found missing, and ΔW is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Embedding
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from lora_studio.chat.rows import WHOLE, answered_by
from lora_studio.errors import StudioError

INPUTS, TOKENS = 4, 64
LACKING = 0.01
"""So much of the change may be missing or other."""
ROUNDING = 1e-5
"""So much of the output float32 may round away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a layer is to compute once it is merged."""

    inputs: Tensor
    parameter: str | None
    """The name of the parameter that is multiplied; None where the layer is called."""
    bare: Tensor
    wanted: Tensor

    def require(self, merged: nn.Module, path: str) -> None:
        """Refuse a merged layer that computes something else.

        Raises:
            StudioError: With the layer's name, and how much of the change it lacks.
        """
        found = _said(merged, self.parameter, self.inputs)
        lack, change = (found - self.wanted).norm(), (self.wanted - self.bare).norm()
        if not lack <= LACKING * change + ROUNDING * self.wanted.norm():
            share = f"{float(lack / change.clamp_min(1e-30)):.0%}"
            raise StudioError("shipping.not_merged", name=path, share=share)


def probe(layer: Any, key: str) -> Probe | None:
    """Ask a LoRA layer, not merged yet and in float32, what it computes.

    Returns:
        None for a kind of layer that only PEFT can compute.
    """
    draw = torch.Generator().manual_seed(0)
    base = layer.get_base_layer()
    if isinstance(layer, ParamWrapper):
        name = layer.parameter_name
        inputs = torch.randn(layer.get_param().shape[-1], INPUTS, generator=draw)
        bare = _said(base, name, inputs)
        wanted = bare + layer.get_delta_weight(key) @ inputs
        return Probe(inputs=inputs, parameter=name, bare=bare, wanted=wanted)
    if isinstance(layer, WHOLE):
        return None
    if isinstance(layer, Embedding):
        inputs = torch.randint(base.num_embeddings, (1, TOKENS), generator=draw)
    else:
        inputs = torch.randn(INPUTS, layer.in_features, generator=draw)
    with answered_by(layer, [((key, 1.0),)] * len(inputs)):
        wanted = layer(inputs)
    return Probe(inputs=inputs, parameter=None, bare=base(inputs), wanted=wanted)


def _said(module: nn.Module, parameter: str | None, inputs: Tensor) -> Tensor:
    by = module if parameter is None else module.get_parameter(parameter).matmul
    found: Tensor = by(inputs)
    return found
