"""How far two models are apart: their logits on a few texts, computed in float32.

Weights stay in the format they are in. Each module's are widened while it computes, so that a
model in 16 bit is measured without the noise of 16-bit arithmetic and without a second copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

TEXTS = (
    "The lighthouse keeper wrote down the wind every evening, and in March he stopped. Why?",
    "바다가 잔잔한 날에는 등대지기도 쉬어요. 그런 날이 일 년에 며칠이나 될까요?",
    '{"name": "Mill Lane 12", "rooms": 3, "open": true, "price": 1250.50}',
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))",
)
"""What is compared, as it stands: prose in two languages, data, a program."""
LONGEST = 128
"""Tokens of a text that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far what a model says is from what it should say."""

    tokens: int
    """Over so many positions."""
    largest: float
    """Of any logit."""
    relative: float
    """Root mean square of the differences, over that of the logits about their mean."""
    divergence: float
    """Kullback-Leibler divergence of the next token, in nats, mean over positions."""
    same_first: float
    """Share of positions at which both find the same token likeliest."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@torch.no_grad()
def logits_of(model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the logits of each row of tokens, float32, shape (T, V); of classes (1, C).

    Args:
        model: In evaluation mode, on the CPU. What follows a position does not change it.
        rows: Token ids; shorter rows are padded on the right.
    """
    width, padding = max(map(len, rows)), model.config.get_text_config().pad_token_id or 0
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with computing_in_float32(model):
        found = model(ids, attention_mask=mask).logits.float()
    if found.ndim == 2:
        return list(found[:, None])
    return [one[: len(row)] for one, row in zip(found, rows, strict=True)]


def compare(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Difference:
    """Return how far logits are from those wanted; both as `logits_of` gives them.

    A vocabulary that was padded is compared as far as both reach.
    """
    width = min(wanted[0].shape[-1], found[0].shape[-1])
    right, other = (torch.cat([one[:, :width] for one in rows]) for rows in (wanted, found))
    centred = [rows - rows.mean(-1, keepdim=True) for rows in (right, other)]
    logs = [functional.log_softmax(rows, -1) for rows in (right, other)]
    return Difference(
        tokens=len(right),
        largest=float((right - other).abs().max()),
        relative=float((centred[0] - centred[1]).norm() / centred[0].norm().clamp_min(1e-30)),
        divergence=float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()),
        same_first=float((right.argmax(-1) == other.argmax(-1)).float().mean()),
    )


def share_moved(
    start: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
) -> float:
    """Return how far logits have come from where they start towards those wanted: 1 is all the way.

    Least squares over all logits about their mean; what lies beside the way, as rounding does,
    counts for nothing. 1 where nothing is to be moved.
    """
    three = (start, wanted, found)
    width = min(rows[0].shape[-1] for rows in three)
    begin, end, here = (torch.cat([one[:, :width] for one in rows]) for rows in three)
    way, walked = end - begin, here - begin
    way, walked = (rows - rows.mean(-1, keepdim=True) for rows in (way, walked))
    length = float((way * way).sum())
    return float((way * walked).sum()) / length if length else 1.0


@contextmanager
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Let a model of 16-bit weights compute in float32, one module's weights at a time."""
    narrow: dict[nn.Parameter, list[torch.Tensor]] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                narrow.setdefault(parameter, []).append(parameter.data)
                parameter.data = parameter.data.float()

    def put_back(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if narrow.get(parameter):
                parameter.data = narrow[parameter].pop()

    hooks = []
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(put_back, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
