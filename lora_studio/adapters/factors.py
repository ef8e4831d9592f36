"""What an adapter adds to each weight, as the two thin matrices that the file holds.

ΔW = scale·B·A is never formed: with QR of B and of Aᵀ, all that can be asked of it is asked of a
matrix of r by r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key

from lora_studio.adapters.weights import base_name
from lora_studio.errors import AdapterError

Number = TypeVar("Number", int, float)

PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
"""How the names of A end in a file, and those of the B beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """The change of one module, ΔW = scale·b·a (LoRA, arXiv 2106.09685, section 4.1)."""

    name: str
    """The module, as the base names it."""
    a: torch.Tensor
    """Shape (r, d_in), in the number format of the file."""
    b: torch.Tensor
    """Shape (d_out, r), likewise."""
    scale: float
    """lora_alpha / r, or lora_alpha / √r (rsLoRA, arXiv 2312.03732)."""
    keys: tuple[str, str]
    """Names of a and b in the file."""

    @property
    def rank(self) -> int:
        """The r that was asked for."""
        return self.a.shape[0]

    @property
    def bytes_per_rank(self) -> int:
        """What a row of a and a column of b take in the file."""
        return (self.a.nbytes + self.b.nbytes) // self.rank


@dataclass(frozen=True, slots=True)
class Spectrum:
    """ΔW = u·diag(s)·vᵀ, its largest directions first."""

    u: torch.Tensor
    """Shape (d_out, k), orthonormal columns; k is the rank, or less where a side is shorter."""
    s: torch.Tensor
    """Shape (k,), falling."""
    v: torch.Tensor
    """Shape (d_in, k), orthonormal columns."""


def factors_of(
    folder: Path, config: LoraConfig, tensors: Mapping[str, torch.Tensor]
) -> list[Factors]:
    """Return the factors of every module of an adapter folder, in the order of their names.

    Args:
        folder: The adapter's, for the errors.
        config: As `read_config` returns it.
        tensors: As `read_tensors` returns them.

    Raises:
        AdapterError: If one of a pair is missing, or the change is no product of two matrices:
            DoRA's has lengths of its own, and in the matrices of a parameter of many experts those
            of all experts alternate.
    """
    if config.use_dora:
        raise AdapterError("adapters.dora_no_factors", folder=str(folder))
    if config.target_parameters:
        raise AdapterError("adapters.parameters_no_factors", folder=str(folder))
    found = []
    for key in sorted(tensors):
        end = next((end for end in PAIRS if key.endswith(end)), None)
        if end is not None:
            other = key.removesuffix(end) + PAIRS[end]
            found.append(_factors(folder, config, tensors, (key, other), end))
    return found


def spectrum(factors: Factors) -> Spectrum:
    """Return the singular value decomposition of a module's ΔW, in double precision."""
    qb, rb = torch.linalg.qr(factors.b.double())
    qa, ra = torch.linalg.qr(factors.a.T.double())
    u, s, vt = torch.linalg.svd(factors.scale * rb @ ra.T, full_matrices=False)
    return Spectrum(qb @ u, s, qa @ vt.T)


def scale_of(config: LoraConfig, module: str, rank: int) -> float:
    """Return what a module's B·A is multiplied by: `Factors.scale`."""
    alpha = said_of(config.alpha_pattern, module, config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def said_of(pattern: Mapping[str, Number] | None, module: str, usual: Number) -> Number:
    """Return what a pattern of a configuration says of a module, as PEFT reads it."""
    said = pattern or {}
    return said.get(get_pattern_key(list(said), module), usual)


def product_norm(b: torch.Tensor, a: torch.Tensor) -> float:
    """Return the Frobenius norm of b·a, which is not formed."""
    rb, ra = (torch.linalg.qr(one.double(), mode="r").R for one in (b, a.T))
    return float(torch.linalg.matrix_norm(rb @ ra.T))


def _factors(
    folder: Path,
    config: LoraConfig,
    tensors: Mapping[str, torch.Tensor],
    keys: tuple[str, str],
    end: str,
) -> Factors:
    name = base_name(keys[0].removesuffix(end))
    if keys[1] not in tensors:
        raise AdapterError("adapters.incomplete", folder=str(folder), missing=keys[1])
    a, b = (tensors[key] for key in keys)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        found = " · ".join("×".join(map(str, one.shape)) for one in (b, a))
        raise AdapterError("adapters.no_product", folder=str(folder), name=name, found=found)
    return Factors(name=name, a=a, b=b, scale=scale_of(config, name, a.shape[0]), keys=keys)
