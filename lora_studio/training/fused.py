"""Layers of a frozen model with LoRA, their arithmetic put together by hand.

The libraries' layers are made for everything; here most weights get no gradient and the adapter is
the only thing that does. So a linear layer with its adapter adds the adapter's share onto the
result in place, forward and backward, and a norm and a gated feed-forward pass over their numbers
half as often and keep less of them. `fuse` changes what is as expected and leaves all else alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lora_studio.models.description import FUSED_FAMILIES


class Adapted(torch.autograd.Function):
    """x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ with W frozen (LoRA, arXiv 2106.09685, equation 3)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """Return shape (…, d_out) for x of shape (…, d_in), weight (d_out, d_in), a (r, d_in)."""
        flat = x.flatten(0, -2).to(weight.dtype)
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        down = flat @ a.T
        out = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
        out.addmm_(down, b.T, alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, down)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, bias, a and b."""
        flat, weight, a, b, down = ctx.saved_tensors
        grad = grad.flatten(0, -2).to(weight.dtype)
        grad_down = (grad @ b).mul_(ctx.scale)
        grad_b = (grad.T @ down).mul_(ctx.scale)
        grad_a = grad_down.T @ flat
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_down, a).view(ctx.shape).to(ctx.dtype)
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, grad_a, grad_b, None


class FrozenNorm(torch.autograd.Function):
    """Root mean square norm with a frozen weight (arXiv 1910.07467), in float32 as Llama's is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x of shape (…, H) normed, in its own dtype."""
        wide = x.float()
        inverse = wide.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of x."""
        x, weight, inverse = ctx.saved_tensors
        wide = x.float()
        weighted = (grad * weight).float()
        along = torch.linalg.vecdot(weighted, wide).unsqueeze(-1)
        along = along * inverse.pow(3) / -x.shape[-1]
        return weighted.mul_(inverse).addcmul_(wide, along).to(x.dtype), None, None


class GatedProduct(torch.autograd.Function):
    """silu(gate)·values (SwiGLU, arXiv 2002.05202), keeping the two and nothing made of them."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, values: Tensor) -> Tensor:
        """Return the product, in the shape of both."""
        ctx.save_for_backward(gate, values)
        return functional.silu(gate).mul_(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of both."""
        gate, values = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad * values, gate)
        return grad_gate, functional.silu(gate).mul_(grad)


class TokenLoss(torch.autograd.Function):
    """Sum of the cross entropies of tokens; the gradient takes the logits' place in memory."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, chunk: int) -> Tensor:
        """Return a float32 scalar.

        Args:
            ctx: Of autograd.
            logits: Shape (N, V); overwritten, so nobody else may need them afterwards.
            labels: Shape (N,).
            chunk: So many tokens at a time are turned into float32.
        """
        total = torch.zeros((), device=logits.device)
        for scores, wanted in zip(logits.split(chunk), labels.split(chunk), strict=True):
            chances = torch.log_softmax(scores, dim=-1, dtype=torch.float32)
            total -= chances.gather(1, wanted[:, None]).sum()
            chances.exp_().scatter_add_(
                1, wanted[:, None], torch.full_like(wanted[:, None], -1, dtype=torch.float32)
            )
            scores.copy_(chances)
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits."""
        (made,) = ctx.saved_tensors
        return made.mul_(grad.to(made.dtype)), None, None


def fuse(model: nn.Module) -> Mapping[str, int]:
    """Give layers of the expected kinds the arithmetic above; return how many of each.

    A layer that has dropout, DoRA, several adapters, or a quantised or merged weight keeps the
    library's; so does whatever is not of the expected kind.
    """
    done: Counter[str] = Counter()
    for module in model.modules():
        kind = _kind(module)
        if kind is not None:
            # Beside the class's own, which `separate` lets show again.
            vars(module)["forward"] = partial(_FORWARD[kind], module)
            done[kind] += 1
    return dict(done)


def separate(model: nn.Module) -> None:
    """Give all layers back the library's own arithmetic."""
    for module in model.modules():
        found = vars(module).get("forward")
        if isinstance(found, partial) and found.func in _FORWARD.values():
            del vars(module)["forward"]


def _kind(module: nn.Module) -> str | None:
    if type(module) is LoraLinear and _is_plain(module):
        return "adapted"
    name = type(module).__name__
    if name in RMS_NORMS and not any(weight.requires_grad for weight in module.parameters()):
        return "norm"
    if name in GATED and type(getattr(module, "act_fn", None)).__name__ in SILU:
        return "gated"
    return None


def _is_plain(layer: Any) -> bool:
    """Say whether a layer of PEFT's is a float weight with one adapter and no more."""
    base = layer.get_base_layer()
    return (
        type(base) in (nn.Linear, Conv1D)
        and base.weight.is_floating_point()
        and not base.weight.requires_grad
        and (base.bias is None or base.bias.dtype == base.weight.dtype)
        and layer.active_adapters == list(layer.lora_A)
        and len(layer.lora_A) == 1
        and not layer.lora_variant
        and all(isinstance(drop, nn.Identity) for drop in layer.lora_dropout.values())
        and all(not bias for bias in layer.lora_bias.values())
    )


def _adapted(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x, *args, **kwargs)
    (name,) = layer.lora_A
    base = layer.get_base_layer()
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight
    return Adapted.apply(
        x, weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight,
        layer.scaling[name],
    )  # fmt: skip


def _norm(layer: Any, hidden_states: Tensor) -> Tensor:
    return FrozenNorm.apply(hidden_states, layer.weight, layer.variance_epsilon)


def _gated(layer: Any, x: Tensor) -> Tensor:
    return layer.down_proj(GatedProduct.apply(layer.gate_proj(x), layer.up_proj(x)))


_FORWARD: dict[str, Callable[..., Tensor]] = {"adapted": _adapted, "norm": _norm, "gated": _gated}
RMS_NORMS = tuple(f"{family}RMSNorm" for family in FUSED_FAMILIES)
GATED = tuple(f"{family}MLP" for family in FUSED_FAMILIES)
SILU = ("SiLU", "SiLUActivation")
