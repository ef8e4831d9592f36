"""How the next tokens are picked: the likeliest, or drawn for each row from a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from lora_studio.chat.request import Sampling

TINY = torch.finfo(torch.float32).tiny


class DrawnByRow(LogitsProcessor):
    """Makes the likeliest token a draw: the largest of log p + g, g from Gumbel's distribution.

    That is a draw from p (the Gumbel-max trick, arXiv 1411.0030, section 2). So rows of one batch
    with the same seed and the same scores agree, and with other scores differ by these alone.

    Args:
        seeds: One for each row.
        device: Where the scores are.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with each row's own noise, float32, shape (B, V)."""
        drawn = torch.empty_like(scores)
        for row, generator in zip(drawn, self._generators, strict=True):
            row.exponential_(generator=generator)
        # -log of an exponential number is one of Gumbel's.
        return scores - drawn.clamp_(min=TINY).log_()


def processors(
    sampling: Sampling, seeds: Sequence[int], device: torch.device
) -> LogitsProcessorList:
    """Return what generate is to do with the scores before it takes the largest.

    Args:
        sampling: How tokens are picked.
        seeds: One for each row.
        device: Where the scores are.
    """
    if sampling.greedy:
        return LogitsProcessorList()
    picked: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_p < 1:
        picked.append(TopPLogitsWarper(float(sampling.top_p)))
    return LogitsProcessorList([*picked, DrawnByRow(seeds, device)])
