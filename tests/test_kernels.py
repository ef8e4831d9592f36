"""An installed attention kernel is given the rows as it wants them, and named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional

from lora_studio.training import documents, kernels
from lora_studio.training.documents import Documents

LENGTHS = (5, 3, 9)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that says it is a Hopper GPU; nothing is installed on it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    kernels.kernel_for.cache_clear()
    yield
    kernels.kernel_for.cache_clear()


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """What FlashAttention 3's function of this name does, by its documentation, in plain torch."""
    assert q.shape[0] == k.shape[0] == v.shape[0] == int(cu_seqlens_q[-1])
    assert torch.equal(cu_seqlens_q, cu_seqlens_k) and cu_seqlens_q.dtype == torch.int32
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    mixed = []
    for start, stop in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        seen = torch.ones(stop - start, stop - start, dtype=torch.bool)
        seen = seen.tril() if causal else seen
        seen = seen if window_size[0] < 0 else seen.triu(-window_size[0])
        rows = (one[start:stop].transpose(0, 1)[None] for one in (q, k, v))
        one = functional.scaled_dot_product_attention(
            *rows, attn_mask=seen, scale=softmax_scale, enable_gqa=True
        )
        mixed.append(one[0].transpose(0, 1))
    return torch.cat(mixed)


@pytest.fixture
def flash_3(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine with FlashAttention 3."""
    module: Any = ModuleType(kernels.FLASH_3)
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, kernels.FLASH_3, module)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name == kernels.FLASH_3)


@pytest.mark.usefixtures("flash_3")
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_flash_attention_3_attends_as_row_by_row(
    window: int | None, shared: int, scale: float | None
) -> None:
    torch.manual_seed(0)
    rows = Documents(LENGTHS, shared)
    total = shared + sum(rows.own)
    states = [torch.randn(1, heads, total, 8, requires_grad=True) for heads in (4, 2, 2)]
    apart = [documents._apart(one, rows) for one in states]
    found = documents._together(*apart, scale=scale, window=window)
    expected = documents._one_by_one(*apart, scale=scale, window=window, dropout=0.0)
    assert len(found) == len(LENGTHS)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    learned, wanted = (
        torch.autograd.grad(sum(one.square().sum() for one in ways), states, retain_graph=True)
        for ways in (found, expected)
    )
    for one, other in zip(learned, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("flash_3")
def test_an_installed_kernel_is_named() -> None:
    assert kernels.kernel_for(torch.device("cpu")).name == "FlashAttention 3"


@pytest.mark.usefixtures("hopper")
def test_without_it_torchs_own_is_taken() -> None:
    kernel = kernels.kernel_for(torch.device("cpu"))
    assert kernel.name == "FlashAttention 2 (torch)"
    assert kernel.mix is kernels._torch


@pytest.mark.usefixtures("flash_3")
def test_a_gpu_of_another_kind_keeps_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert kernels.kernel_for(torch.device("cpu")).name == "FlashAttention 2 (torch)"
