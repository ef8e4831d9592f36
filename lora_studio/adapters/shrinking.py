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
    predicted: float
    """The same without rounding: what the spectra alone say."""
    bytes: int
    """Size of its weights' file."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """One module at the lower rank, and squares of Frobenius norms: of what goes, and of ΔW."""

    b: torch.Tensor
    a: torch.Tensor
    left_out: float
    """Of the directions that are left out."""
    lost: float
    """Of ΔW - ΔW', rounding included."""
    whole: float


def shrink(adapter: Path, target: Path, rank: int) -> Shrunk:
    """Write an adapter once more with modules of this rank at most; return what it lost.

    Tensors keep their number format; lora_alpha is chosen so that ΔW is B·A, and the bias of a B
    (PEFT's lora_bias), which is scaled as B·A is, follows. Bias vectors of the base, whole layers
    and the files beside the adapter are copied.

    Args:
        adapter: A PEFT folder in the safetensors format.
        target: The new folder; it may not exist yet.
        rank: 1 or more.

    Raises:
        AdapterError: As `read_config`, `read_tensors` and `factors_of`, or if the adapter has no
            module of a higher rank.
        OSError: If the disk does not take it.
        SafetensorError: Likewise, while the weights are written.
    """
    config, tensors = read_config(adapter), read_tensors(adapter)
    factors = factors_of(adapter, config, tensors)
    highest = max((one.rank for one in factors), default=0)
    if not 1 <= rank < highest:
        raise AdapterError(
            "adapters.shrinks_nothing", folder=str(adapter), rank=rank, highest=highest
        )
    cuts = {one.name: _cut(one, rank) for one in factors}
    for one in factors:
        cut = cuts[one.name]
        tensors |= dict(zip(one.keys, (cut.a, cut.b), strict=True)) | _bias(one, tensors)
    _copy_beside(adapter, target)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    ranks = {name: cut.a.shape[0] for name, cut in cuts.items()}
    raw = json.loads((adapter / CONFIG).read_text(encoding="utf-8")) | _settings(ranks)
    (target / CONFIG).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    whole = sum(cut.whole for cut in cuts.values())
    return Shrunk(
        rank=max(ranks.values()),
        error=_share(sum(cut.lost for cut in cuts.values()), whole),
        predicted=_share(sum(cut.left_out for cut in cuts.values()), whole),
        bytes=(target / WEIGHTS).stat().st_size,
    )


def _cut(one: Factors, rank: int) -> _Cut:
    """Return the b and a of this rank whose product is nearest to the change."""
    parts = spectrum(one)
    root = parts.s[:rank].sqrt()
    b = (parts.u[:, :rank] * root).to(one.b.dtype).contiguous()
    a = (parts.v[:, :rank] * root).T.to(one.a.dtype).contiguous()
    lost = product_norm(
        torch.cat([one.scale * one.b.double(), -b.double()], dim=1),
        torch.cat([one.a.double(), a.double()]),
    )
    squares = parts.s**2
    return _Cut(b, a, float(squares[rank:].sum()), lost**2, float(squares.sum()))


def _bias(one: Factors, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the bias of a module's B as it is where modules are scaled by 1, if there is one."""
    key = f"{one.keys[1].removesuffix('.weight')}.bias"
    if key not in tensors:
        return {}
    return {key: (one.scale * tensors[key].double()).to(tensors[key].dtype)}


def _share(lost: float, whole: float) -> float:
    return (lost / whole) ** 0.5 if whole else 0.0


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
