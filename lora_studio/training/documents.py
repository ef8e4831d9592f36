"""Rows laid end to end without padding, each of which attends to itself alone.

A batch of uneven rows is one long row for every layer but attention, so nothing is computed for
padding. Where rows begin with the same tokens, as under one system prompt, these are computed once
and read by all of them: a token's states depend on the tokens before it and on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from lora_studio.data.beginnings import shared_tokens
from lora_studio.data.encoding import IGNORE_INDEX
from lora_studio.training.kernels import kernel_for

ATTENTION = "lora_studio_documents"
WORTH_SHARING = 4
"""A common beginning of fewer tokens is not worth being gathered for each row."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Where rows begin and end in a batch without padding.

    The first row stands there whole, of the others what comes after the shared beginning.
    """

    lengths: tuple[int, ...]
    """Tokens of each row, its beginning included."""
    shared: int = 0
    """Tokens that all rows begin with and that the batch has once."""

    @property
    def own(self) -> list[int]:
        """Tokens of each row that no other has."""
        return [length - self.shared for length in self.lengths]


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """Lays rows end to end; what all of them begin with stands there once."""

    shares: bool
    """Whether a common beginning is computed once. Dropout draws anew for each row, so with
    dropout it would not be the same training."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch as `Writer.compute_loss` takes it.

        Args:
            rows: Each with `input_ids` and `labels`, not shifted, IGNORE_INDEX where not trained.

        Returns:
            `input_ids` and `position_ids`, int64 (1, T); `sources`, int64 (N,), the positions that
            labelled tokens are predicted from, and `labels`, int64 (N,), these tokens;
            `documents`; and `tokens`, the rows' own.
        """
        ids = [torch.as_tensor(row["input_ids"]).long() for row in rows]
        shared = shared_beginning([row["input_ids"] for row in rows]) if self.shares else 0
        # The first row stands there whole, of the others what comes after the beginning.
        starts, at = [], 0
        for number, row in enumerate(ids):
            starts.append(at - (shared if number else 0))
            at += len(row) - (shared if number else 0)
        sources, labels = [], []
        for row, start in zip(rows, starts, strict=True):
            wanted = torch.as_tensor(row["labels"]).long()[1:]
            places = (wanted != IGNORE_INDEX).nonzero()[:, 0]
            sources.append(torch.where(places < shared, places, places + start))
            labels.append(wanted[places])
        return {
            "input_ids": torch.cat([ids[0], *(row[shared:] for row in ids[1:])])[None],
            "position_ids": torch.cat(
                [torch.arange(shared if number else 0, len(row)) for number, row in enumerate(ids)]
            )[None],
            "sources": torch.cat(sources),
            "labels": torch.cat(labels),
            "documents": Documents(tuple(len(row) for row in ids), shared),
            "tokens": sum(len(row) for row in ids),
        }


@dataclass(frozen=True, slots=True)
class Padded:
    """Stacks rows, padded on the right: for models whose attention is not to be replaced."""

    padding: int
    """Token id to pad with; it is masked."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch as `EndToEnd` does, with `attention_mask` and without documents.

        `input_ids` and `attention_mask` are int64 (B, T); `sources` counts through all B·T.
        """
        stack = torch.nn.utils.rnn.pad_sequence
        ids = [torch.as_tensor(row["input_ids"]).long() for row in rows]
        labels = stack(
            [torch.as_tensor(row["labels"]).long() for row in rows],
            batch_first=True,
            padding_value=IGNORE_INDEX,
        )
        wanted = torch.full_like(labels, IGNORE_INDEX)
        wanted[:, :-1] = labels[:, 1:]
        sources = (wanted.flatten() != IGNORE_INDEX).nonzero()[:, 0]
        return {
            "input_ids": stack(ids, batch_first=True, padding_value=self.padding),
            "attention_mask": stack([torch.ones_like(row) for row in ids], batch_first=True),
            "sources": sources,
            "labels": wanted.flatten()[sources],
            "tokens": sum(len(row) for row in ids),
        }


def shared_beginning(rows: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all rows begin with, 0 if that is not worth sharing.

    Every row keeps at least one token of its own.
    """
    most = min(len(row) for row in rows) - 1
    count = min(shared_tokens(rows), most) if len(rows) > 1 else 0
    return count if count >= WORTH_SHARING else 0


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    documents: Documents | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Let the tokens of each document attend to those before them in the same document.

    Args:
        module: The attention layer.
        query: Shape (1, heads, T, head_dim), or (B, …) without documents.
        key: As `query`, perhaps with fewer heads.
        value: As `key`.
        attention_mask: None; documents take its place.
        documents: Where they begin and end; None where each row of the batch is one.
        scaling: Factor of the scores.
        dropout: Share of the scores that is dropped.
        sliding_window: How many tokens each one sees, itself included; None for all before it.
        softcap: As in Gemma 2; not done here.
        s_aux: Attention sinks; not done here.

    Returns:
        Shape (1, T, heads, head_dim), and nothing in place of the scores.

    Raises:
        NotImplementedError: For a model whose attention is of another kind.
    """
    is_odd = softcap is not None or s_aux is not None or attention_mask is not None
    if is_odd or query.shape[2] != key.shape[2]:
        raise NotImplementedError(type(module).__name__)
    documents = documents or Documents((query.shape[2],))
    window = sliding_window if max(documents.lengths) > (sliding_window or math.inf) else None
    # One kernel for all: FlashAttention over uneven rows (arXiv 2307.08691).
    is_one = query.is_cuda and not dropout and query.dtype in (torch.float16, torch.bfloat16)
    mix = _together if is_one else partial(_one_by_one, dropout=dropout)
    rows = [_apart(states, documents) for states in (query, key, value)]
    first, *others = mix(*rows, scale=scaling, window=window)
    return torch.cat([first, *(mixed[:, documents.shared :] for mixed in others)], dim=1), None


def _apart(states: torch.Tensor, documents: Documents) -> Sequence[torch.Tensor]:
    """Return the states of each row, its beginning included, shape (1, heads, T, head_dim)."""
    if not documents.shared:
        return states.split(documents.lengths, dim=2)
    beginning, *own = states.split([documents.shared, *documents.own], dim=2)
    return [torch.cat([beginning, rest], dim=2) for rest in own]


def _one_by_one(
    query: Sequence[torch.Tensor],
    key: Sequence[torch.Tensor],
    value: Sequence[torch.Tensor],
    *,
    scale: float | None,
    window: int | None,
    dropout: float,
) -> list[torch.Tensor]:
    """Return causal attention within each row, shape (1, T, heads, head_dim)."""
    return [
        functional.scaled_dot_product_attention(
            asked,
            keys,
            values,
            attn_mask=_band(asked, window),
            dropout_p=dropout,
            is_causal=window is None,
            scale=scale,
            enable_gqa=asked.shape[1] != keys.shape[1],
        ).transpose(1, 2)
        for asked, keys, values in zip(query, key, value, strict=True)
    ]


def _band(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """Return which tokens see which, bool, shape (T, T); None where all before it are seen."""
    if window is None:
        return None
    ones = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device)
    return ones.tril().triu(1 - window)


def _together(
    query: Sequence[torch.Tensor],
    key: Sequence[torch.Tensor],
    value: Sequence[torch.Tensor],
    *,
    scale: float | None,
    window: int | None,
) -> Sequence[torch.Tensor]:
    """Return the same out of one kernel, on CUDA in 16 bit."""
    lengths = [one.shape[2] for one in query]
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    ends = ends.to(query[0].device, non_blocking=True)
    states = [torch.cat(list(rows), dim=2)[0].transpose(0, 1) for rows in (query, key, value)]
    mix = kernel_for(query[0].device).mix
    mixed = mix(states, ends, max(lengths), scale, (-1 if window is None else window - 1, 0))
    return list(mixed[None].split(lengths, dim=1))


def attend_by_document(model: Any) -> None:
    """Have a PEFT model's base take batches of `EndToEnd`, and nothing else until `as_it_comes`.

    Raises:
        NotImplementedError: If the library does not let its attention be replaced.
    """
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, flash_attention_mask)
    base = model.get_base_model()
    base.set_attn_implementation(ATTENTION)
    if _attention_of(base) != ATTENTION:
        raise NotImplementedError(type(base).__name__)


def attend_as_it_comes(model: Any) -> None:
    """Have a PEFT model's base attend as its library would."""
    base = model.get_base_model()
    if _attention_of(base) == ATTENTION:
        base.set_attn_implementation("sdpa")


@contextmanager
def as_it_comes(model: Any) -> Iterator[None]:
    """Have a PEFT model attend as its library would inside the block: to write, to be compared."""
    base = model.get_base_model()
    before = _attention_of(base)
    attend_as_it_comes(model)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def _attention_of(base: Any) -> str:
    """Return the name of the attention in use; transformers has no other way to ask for it."""
    name: str = base.config._attn_implementation  # noqa: SLF001
    return name
