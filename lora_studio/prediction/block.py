"""One decoder block with LoRA in plain torch, for a calibration to time as a step would do it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a block and of the batch that goes through it."""

    rows: int
    length: int
    """Tokens of a row."""
    width: int
    """Of the hidden state."""
    inner: int
    """Of the feed-forward."""
    heads: int
    """Of attention."""
    r: int = 16
    """Rank of every adapter."""

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """d_in and d_out of queries, keys, values, output, gate, up and down."""
        wide, narrow = (self.width, self.inner), (self.inner, self.width)
        return (*[(self.width, self.width)] * 4, wide, wide, narrow)

    @property
    def flop(self) -> int:
        """FLOP of a forward and a backward pass, counted as `time.pass_flop` does."""
        weights = sum(d_in * d_out for d_in, d_out in self.sizes)
        adapters = sum(self.r * (d_in + d_out) for d_in, d_out in self.sizes)
        attention = 6 * self.length * self.width
        return self.rows * self.length * (4 * weights + 6 * adapters + attention)


SHAPES = {
    "cpu": Shape(rows=2, length=128, width=768, inner=2048, heads=12),
    "mps": Shape(rows=4, length=256, width=1024, inner=2816, heads=16),
    "cuda": Shape(rows=4, length=1024, width=2048, inner=5632, heads=16),
}
"""About those of a training step on such a device; a pass takes some tenth of a second at most."""


class Adapted(nn.Module):
    """A frozen linear layer and its adapter: x·Wᵀ + (x·Aᵀ)·Bᵀ."""

    def __init__(self, d_in: int, d_out: int, r: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) * d_in**-0.5, requires_grad=False)
        self.a = nn.Parameter(torch.randn(r, d_in) * d_in**-0.5)
        self.b = nn.Parameter(torch.zeros(d_out, r))

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (…, d_in) to (…, d_out)."""
        down = functional.linear(x, self.a.to(x.dtype))
        return functional.linear(x, self.weight) + functional.linear(down, self.b.to(x.dtype))


class Block(nn.Module):
    """Attention and a gated feed-forward, as in Llama (arXiv 2302.13971), positions left out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._heads = shape.heads
        layers = [Adapted(d_in, d_out, shape.r) for d_in, d_out in shape.sizes]
        self.query, self.key, self.value, self.output = layers[:4]
        self.gate, self.up, self.down = layers[4:]

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states of shape (B, T, width) to new ones."""
        normed = functional.rms_norm(x, x.shape[-1:])
        query, key, value = (
            layer(normed).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(-2))
        normed = functional.rms_norm(x, x.shape[-1:])
        return x + self.down(functional.silu(self.gate(normed)) * self.up(normed))


class Pass:
    """A block on a device, ready to be run forward and backward again and again.

    Args:
        shape: Its sizes.
        device: `cuda`, `mps` or `cpu`.
        dtype: Of the frozen weights and the hidden states; adapters are float32.
    """

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype) -> None:
        self._block = Block(shape).to(device)
        for parameter in self._block.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        self._x = torch.randn(
            shape.rows, shape.length, shape.width, device=device, dtype=dtype, requires_grad=True
        )

    def run(self) -> None:
        """Make one pass; the gradients are thrown away."""
        self._block(self._x).sum().backward()
        self._x.grad = None
        self._block.zero_grad()
