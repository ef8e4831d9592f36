"""The random generators of a process, and how to leave them as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class RandomStates:
    """The states of all random generators of this process."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: list[torch.Tensor] | None

    @classmethod
    def now(cls) -> Self:
        """Return the present states."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def put_back(self) -> None:
        """Make these the present states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)


@contextmanager
def undrawn() -> Iterator[None]:
    """Leave the random generators as they were before the block.

    What is measured on the way must not change what is learned: a run that was stopped within an
    evaluation would else go on otherwise than one that was not.
    """
    before = RandomStates.now()
    try:
        yield
    finally:
        before.put_back()
