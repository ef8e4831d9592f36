"""Attention over rows laid end to end on a GPU: torch's own kernel, or one that is installed.

torch brings FlashAttention 2 (arXiv 2307.08691) along, so flash-attn 2 would be the same once more.
FlashAttention 3 is another kernel, for Hopper alone (arXiv 2407.08608); its package is
`flash_attn_interface`, which has to be built, and it is taken where it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

HOPPER = 9
"""The first number of its compute capability."""
FLASH_3 = "flash_attn_interface"

States = Sequence[torch.Tensor]
Mix = Callable[[States, torch.Tensor, int, float | None, tuple[int, int]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to attend to rows laid end to end."""

    name: str
    """As the run's log and its `started` event call it."""
    mix: Mix
    """Takes query, key and value, 16 bit, shape (T, heads, head_dim), key and value perhaps with
    fewer heads; where rows end, int32, shape (rows + 1,), from 0; tokens of the longest row; the
    factor of the scores, None for the usual one; and how many tokens before and after itself each
    one sees, -1 for all. Returns the query's shape."""


@cache
def kernel_for(device: torch.device) -> Kernel:
    """Return the quickest kernel of this machine for a CUDA device."""
    major, _ = torch.cuda.get_device_capability(device)
    if major == HOPPER and find_spec(FLASH_3):
        return Kernel("FlashAttention 3", _flash_3)
    return Kernel("FlashAttention 2 (torch)", _torch)


def _torch(
    states: States,
    ends: torch.Tensor,
    longest: int,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = states
    mixed: Any = varlen_attn(
        query,
        key,
        value,
        ends,
        ends,
        longest,
        longest,
        scale=scale,
        window_size=window_size,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed


def _flash_3(
    states: States,
    ends: torch.Tensor,
    longest: int,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    found = import_module(FLASH_3).flash_attn_varlen_func(
        *states,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        causal=True,
        window_size=window_size,
    )
    # Its first versions return the scores' logarithms too.
    mixed: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return mixed
