"""Where an adapter changed the model, how much, and in how many directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_studio.adapters.factors import factors_of, spectrum
from lora_studio.adapters.reading import read_config
from lora_studio.adapters.weights import base_name, read_tensors
from lora_studio.models.weight_norms import unchanged, weight_norms

ENERGY = 0.95
"""Share of a change, squared, that its effective rank holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleXray:
    """The change of one module, ΔW = scale·B·A."""

    name: str
    """The module, as the base names it."""
    rank: int
    """The r that was asked for."""
    norm: float
    """Frobenius norm of ΔW."""
    relative_norm: float | None
    """The same over that of the base's weight W; None where the files do not hold W as numbers."""
    singular_values: list[float]
    """Those of ΔW that can differ from 0, falling."""
    bytes_per_rank: int
    """What each of its ranks takes in the weights' file."""
    effective_rank: int
    """So many directions hold 95 % of the change's square; 0 where nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Xray:
    """The changes of all modules that an adapter has."""

    modules: list[ModuleXray]
    rank: int
    """The largest r of them."""
    effective_rank: int
    """If every module were cut to this rank, 95 % of the whole change's square would be left."""
    beside: int = 0
    """So many tensors it has beside LoRA: biases, whole layers. Nothing of them is here."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def xray(adapter: Path, model: Path) -> Xray:
    """Look into an adapter.

    Args:
        adapter: A PEFT folder in the safetensors format.
        model: The folder of its base model; of its weights only the norms are taken.

    Raises:
        AdapterError: As `read_config`, `read_tensors` and `factors_of`.
        ModelError: If the base's files cannot be read.
    """
    tensors = read_tensors(adapter)
    factors = factors_of(adapter, read_config(adapter), tensors)
    others = {
        base_name(key): tensors[key]
        for key in tensors.keys() - {key for one in factors for key in one.keys}
    }
    norms = weight_norms(model, {one.name for one in factors})
    modules = []
    for one in factors:
        values = spectrum(one).s.tolist()
        norm = sum(value**2 for value in values) ** 0.5
        own = norms.get(one.name)
        modules.append(
            ModuleXray(
                name=one.name,
                rank=one.rank,
                norm=norm,
                relative_norm=norm / own if own else None,
                singular_values=values,
                bytes_per_rank=one.bytes_per_rank,
                effective_rank=enough([values]),
            )
        )
    return Xray(
        modules=modules,
        rank=max((one.rank for one in modules), default=0),
        effective_rank=enough([one.singular_values for one in modules]),
        beside=len(others) - unchanged(model, others),
    )


def enough(spectra: Sequence[Sequence[float]], share: float = ENERGY) -> int:
    """Return the smallest rank that, given to each, keeps this share of all squares together."""
    whole = _squares(value for values in spectra for value in values)
    longest = max(map(len, spectra), default=0)
    for rank in range(longest):
        if _squares(value for values in spectra for value in values[:rank]) >= share * whole:
            return rank
    return longest


def _squares(values: Iterable[float]) -> float:
    return sum(value**2 for value in values)
