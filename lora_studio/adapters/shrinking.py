"""The same adapter at a lower rank: of each module's change the largest directions stay.

The truncated singular value decomposition is the nearest matrix of its rank (Eckart and Young,
1936), so the error is known before anything is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lora_studio.adapters.archive import adapter_files
from lora_studio.adapters.configuration import CONFIG, WEIGHTS
from lora_studio.adapters.factors import Factors, factors_of, product_norm, spectrum
from lora_studio.adapters.reading import read_config
from lora_studio.adapters.weights import read_tensors
from lora_studio.errors import AdapterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """What an adapter is at a lower rank."""

    rank: int
    """The largest rank of its modules."""
    error: float
    """‖ΔW - ΔW'‖ / ‖ΔW‖ over all modules together, Frobenius norms; what rounding loses counts."""
    errors: Mapping[str, float]
    """The same of each module, by its name in the base."""
    bytes: int
    """Size of its weights' file."""


def shrink(adapter: Path, target: Path, rank: int) -> Shrunk:
    """Write an adapter once more with modules of this rank at most; return what it lost.

    Tensors keep their number format; lora_alpha is chosen so that ΔW is B·A. Bias vectors, whole
    layers and the files beside the adapter are copied.

    Args:
        adapter: A PEFT folder in the safetensors format.
        target: The new folder; it may not exist yet.
        rank: 1 or more.

    Raises:
        AdapterError: As `read_factors`, or if the adapter has no module of a higher rank.
    """
    config, tensors = read_config(adapter), read_tensors(adapter)
    factors = factors_of(adapter, config, tensors)
    highest = max((one.rank for one in factors), default=0)
    if not 1 <= rank < highest:
        raise AdapterError(
            "adapters.shrinks_nothing", folder=str(adapter), rank=rank, highest=highest
        )
    lost, whole, errors, ranks = 0.0, 0.0, {}, {}
    for one in factors:
        b, a, gone, all_of_it = _truncated(one, rank)
        tensors |= dict(zip(one.keys, (a, b), strict=True))
        ranks[one.name] = a.shape[0]
        errors[one.name] = (gone / all_of_it) ** 0.5 if all_of_it else 0.0
        lost, whole = lost + gone, whole + all_of_it
    _copy_beside(adapter, target)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    raw = json.loads((adapter / CONFIG).read_text(encoding="utf-8")) | _settings(ranks)
    (target / CONFIG).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    return Shrunk(
        rank=max(ranks.values()),
        error=(lost / whole) ** 0.5 if whole else 0.0,
        errors=errors,
        bytes=(target / WEIGHTS).stat().st_size,
    )


def _truncated(one: Factors, rank: int) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Return the new b and a, whose product is the change, and the squares lost and of all."""
    parts = spectrum(one)
    root = parts.s[:rank].sqrt()
    b = (parts.u[:, :rank] * root).to(one.b.dtype).contiguous()
    a = (parts.v[:, :rank] * root).T.to(one.a.dtype).contiguous()
    gone = product_norm(
        torch.cat([one.scale * one.b.double(), -b.double()], dim=1),
        torch.cat([one.a.double(), a.double()]),
    )
    return b, a, gone**2, float((parts.s**2).sum())


def _settings(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return PEFT's settings of modules of these ranks, each scaled by 1."""
    usual = max(ranks.values())
    odd = {name.replace(".", r"\."): own for name, own in ranks.items() if own != usual}
    patterns = {f"^{name}": own for name, own in odd.items()}
    return {
        "r": usual,
        "lora_alpha": usual,
        "use_rslora": False,
        "rank_pattern": patterns,
        "alpha_pattern": dict(patterns),
        "init_lora_weights": True,
    }


def _copy_beside(adapter: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in adapter_files(adapter):
        if file.name not in {CONFIG, WEIGHTS}:
            shutil.copy2(file, target / file.name)
