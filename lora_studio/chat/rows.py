"""The rows of one batch, each answered by adapters of its own at strengths of its own.

LoRA adds to what a layer makes of its input: y = W·x + Σ wᵢ·sᵢ·Bᵢ·(Aᵢ·x) (arXiv 2106.09685,
equation 3; sᵢ is the adapter's own scaling, wᵢ the weight that the row gives it). With weights this
is what an adapter of PEFT's `add_weighted_adapter(combination_type="cat")` does, but none is made.
A row that names no adapter is left as the base's layer made it.

PEFT's own mixed batches know no weights, copy rows together and apart at every layer (1.7 times the
processor time of the base's answer alone, against 1.3), and leave their hooks behind when generate
raises (peft 0.21.2, tuners/lora/model.py, `_enable_peft_forward_hooks`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from peft.functional import set_adapter
from peft.tuners.lora import Embedding, LoraLayer
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper, _ConvNd
from torch import Tensor, nn
from torch.nn import functional

from lora_studio.chat.request import Voice

WHOLE = (ParamWrapper, _ConvNd, MultiheadAttention)
"""Layers that PEFT alone computes, every row in the same way."""
Add = Callable[[Tensor, Tensor, Tensor], None]
"""Takes a layer's input, what the base makes of it, and the sum so far, to which it adds."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one adapter adds to neighbouring rows."""

    key: str
    """PEFT's name of the adapter."""
    rows: slice
    weight: float


def shares(voices: Sequence[Voice]) -> list[Share]:
    """Return who adds what to which rows of a batch, given each row's adapters and weights."""
    found = []
    for key in dict.fromkeys(key for voice in voices for key, _ in voice):
        weights = enumerate(dict(voice).get(key, 0.0) for voice in voices)
        for weight, run in itertools.groupby(weights, lambda row: row[1]):
            rows = [row for row, _ in run]
            if weight:
                found.append(Share(key, slice(rows[0], rows[-1] + 1), weight))
    return found


@contextmanager
def answered_by(model: nn.Module, voices: Sequence[Voice]) -> Iterator[None]:
    """Let the rows of the next forward passes be answered by these voices, in order.

    Layers of the kinds in `WHOLE` take the first row's voice for all. Everything is undone on
    leaving, by whatever way.
    """
    wanted = shares(voices)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    with ExitStack() as undo:
        if any(isinstance(layer, WHOLE) for layer in layers):
            undo.callback(set_adapter, model, [], inference_mode=True)
            set_adapter(model, [key for key, _ in voices[0]], inference_mode=True)
        for layer in layers:
            if isinstance(layer, WHOLE):
                undo.enter_context(_weighted(layer, voices[0]))
            else:
                undo.callback(vars(layer).pop, "forward", None)
                layer.forward = _forward(layer, wanted, len(voices))
        yield


@contextmanager
def _weighted(layer: LoraLayer, voice: Voice) -> Iterator[None]:
    """Multiply the scaling of a layer's adapters by their weights."""
    own = dict(layer.scaling)
    try:
        for key, weight in voice:
            if key in own:
                layer.scaling[key] = own[key] * weight
        yield
    finally:
        layer.scaling.update(own)


def _forward(layer: LoraLayer, wanted: Sequence[Share], batch: int) -> Callable[..., Tensor]:
    """Return what a layer computes while the rows belong to these shares."""
    adds = [add for share in wanted if (add := _add(layer, share)) is not None]
    base = layer.base_layer
    if not adds:
        return partial(nn.Module.__call__, base)
    varies = any(share.key in layer.lora_variant for share in wanted)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made: Tensor = base(x, *args, **kwargs)
        total = made.clone() if varies else made
        read, own, out = x, made, total
        if len(x) != batch:  # all tokens in one line, row after row
            read = x.reshape(batch, -1, x.shape[-1])
            own, out = (one.view(batch, -1, one.shape[-1]) for one in (made, total))
        for add in adds:
            add(read, own, out)
        return total

    return forward


def _add(layer: LoraLayer, share: Share) -> Add | None:
    """Return how an adapter adds its share to what a layer makes, None if it leaves it alone."""
    key = share.key
    scale = layer.scaling.get(key, 0.0) * share.weight
    if key in layer.lora_variant:
        return partial(_add_variant, layer=layer, share=share)
    if key in layer.lora_A:
        a, b = layer.lora_A[key], layer.lora_B[key]
        return partial(
            _add_linear, a=a.weight, b=b.weight, bias=b.bias, rows=share.rows, scale=scale
        )
    if isinstance(layer, Embedding) and key in layer.lora_embedding_A:
        return partial(_add_embedding, layer=layer, share=share, scale=scale)
    return None


def _add_linear(
    x: Tensor, _made: Tensor, total: Tensor, *,
    a: Tensor, b: Tensor, bias: Tensor | None, rows: slice, scale: float,
) -> None:  # fmt: skip
    """Add scale·(B·(A·x) + bias): x is (B, T, in), A (r, in), B (out, r)."""
    down = functional.linear(x[rows].to(a.dtype), a)
    total[rows].add_(functional.linear(down, b, bias), alpha=scale)


def _add_embedding(
    x: Tensor, _made: Tensor, total: Tensor, *, layer: Any, share: Share, scale: float
) -> None:
    """Add the rows of A that the tokens x (B, T) choose, times B; scaled as the base's are."""
    a, b = (one[share.key].T for one in (layer.lora_embedding_A, layer.lora_embedding_B))
    change = functional.embedding(x[share.rows], a) @ b
    own = layer._get_embed_scale()  # noqa: SLF001 - Gemma's factor, which PEFT alone knows
    total[share.rows].add_(change if own is None else change * own.to(change.dtype), alpha=scale)


def _add_variant(x: Tensor, made: Tensor, total: Tensor, *, layer: LoraLayer, share: Share) -> None:
    """Add the weight's part of what PEFT's variant of LoRA, such as DoRA, makes differently."""
    rows, key = share.rows, share.key
    inputs = x[rows] if isinstance(layer, Embedding) else x[rows].to(layer.lora_A[key].weight.dtype)
    variant = layer.lora_variant[key]
    changed = variant.forward(layer, active_adapter=key, x=inputs, result=made[rows])
    total[rows].add_(changed - made[rows], alpha=share.weight)
