"""The order of rows that are padded: those of about the same length together.

A batch is padded to its longest row, so rows as they come have the model compute padding. Steps are
cut from pools of rows sorted by length and then drawn in any order, so that the length of a row
says nothing about when it is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.compute as pc
import torch
from torch.utils.data import Sampler

from lora_studio.training.plan import POOL


class ByLength(Sampler[int]):
    """Draws all rows once, anew in each epoch; an epoch's order is the same whenever it is asked.

    Args:
        lengths: Tokens of each row, int64, shape (rows,).
        together: Rows of an optimizer step, in all processes; so the order does not depend on how
            many of them go through the model at a time.
        seed: The recipe's.
        epoch: Asked which epoch begins, counted from 0.
    """

    def __init__(
        self, lengths: torch.Tensor, *, together: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self._lengths = lengths
        self._together = together
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        seed = self._seed + self._epoch()
        return iter(grouped(self._lengths, together=self._together, seed=seed))


def grouped(lengths: torch.Tensor, *, together: int, seed: int) -> list[int]:
    """Return the places of all rows, each `together` of them about equally long.

    Rows that do not make up another step come last, of any length.

    Args:
        lengths: Tokens of each row, int64, shape (rows,).
        together: Rows of a step.
        seed: Another one gives another order.
    """
    chance = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(lengths), generator=chance)
    whole = len(rows) - len(rows) % together
    pools = rows[:whole].split(POOL * together)
    steps = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
    steps = steps.view(-1, together)
    steps = steps[torch.randperm(len(steps), generator=chance)]
    return [*steps.flatten().tolist(), *rows[whole:].tolist()]


def lengths_of(dataset: Any) -> torch.Tensor:
    """Return the tokens of each row of a `datasets.Dataset`, int64, shape (rows,)."""
    column = dataset.with_format("arrow")[:]["input_ids"]
    return torch.tensor(pc.list_value_length(column).to_numpy(), dtype=torch.int64)
