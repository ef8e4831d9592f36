"""What an adapter would be at a lower rank, from its x-ray alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def predicted_error(modules: Sequence[Mapping[str, Any]], rank: int) -> float:
    """Return ‖ΔW - ΔW'‖ / ‖ΔW‖ over all modules together if each were cut to this rank.

    The nearest matrix of a rank has the largest singular values (Eckart and Young, 1936), so what
    is lost is the others.

    Args:
        modules: As `lora_studio.adapters.xray.Xray` has them; `singular_values` fall.
        rank: The new rank, 0 or more.

    Returns:
        0 to 1; 0 where nothing was changed. What is lost to rounding in the number format of its
        file comes on top.
    """
    spectra = [module["singular_values"] for module in modules]
    whole = sum(value**2 for values in spectra for value in values)
    lost = sum(value**2 for values in spectra for value in values[max(rank, 0) :])
    return math.sqrt(lost / whole) if whole else 0.0


def predicted_bytes(modules: Sequence[Mapping[str, Any]], rank: int, weights_bytes: int) -> int:
    """Return the size of the weights' file if each module were cut to this rank.

    Args:
        modules: As for `predicted_error`.
        rank: The new rank, 0 or more.
        weights_bytes: Size of the file as it is.
    """
    spared = sum(
        module["bytes_per_rank"]
        * (module["rank"] - min(max(rank, 0), len(module["singular_values"])))
        for module in modules
    )
    return weights_bytes - spared
