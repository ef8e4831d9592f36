"""What an adapter would be at a lower rank, from its x-ray alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any


def squares(modules: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the square of each direction's size, the largest first, over all modules together.

    Args:
        modules: As `lora_studio.adapters.xray.Xray` has them; `singular_values` fall.
    """
    longest = max((len(module["singular_values"]) for module in modules), default=0)
    found = [0.0] * longest
    for module in modules:
        for at, value in enumerate(module["singular_values"]):
            found[at] += value**2
    return found


def predicted_errors(modules: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return ‖ΔW - ΔW'‖ / ‖ΔW‖ over all modules together if each were cut to rank 0, 1, 2, ….

    The nearest matrix of a rank has the largest singular values (Eckart and Young, 1936), so what
    is lost is the others.

    Args:
        modules: As for `squares`.

    Returns:
        For each rank up to the longest spectrum's length 0 to 1, falling; 0 where nothing was
        changed. What is lost to rounding in the number format of its file comes on top.
    """
    left_out = list(accumulate(reversed(squares(modules)), initial=0.0))[::-1]
    whole = left_out[0]
    return [math.sqrt(lost / whole) if whole else 0.0 for lost in left_out]


def predicted_bytes(modules: Sequence[Mapping[str, Any]], rank: int, weights_bytes: int) -> int:
    """Return the size of the weights' file if each module were cut to this rank.

    Args:
        modules: As for `squares`.
        rank: The new rank, 0 or more.
        weights_bytes: Size of the file as it is.
    """
    spared = sum(
        module["bytes_per_rank"]
        * (module["rank"] - min(max(rank, 0), len(module["singular_values"])))
        for module in modules
    )
    return weights_bytes - spared
