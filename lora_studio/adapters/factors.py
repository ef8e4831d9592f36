"""What an adapter adds to each weight, as the two thin matrices that the file holds.

ΔW = scale·B·A is never formed: with QR of B and of Aᵀ, all that can be asked of it is asked of a
matrix of r by r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open

from lora_studio.adapters.reading import WEIGHTS, base_name, read_config
from lora_studio.errors import AdapterError

PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
"""How the names of A end in a file, and those of the B beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """The change of one module, ΔW = scale·b·a (LoRA, arXiv 2106.09685, section 4.1)."""

    name: str
    """The module, as the base names it."""
    a: torch.Tensor
    """Shape (r, d_in), float32."""
    b: torch.Tensor
    """Shape (d_out, r), float32."""
    scale: float
    """lora_alpha / r, or lora_alpha / √r (rsLoRA, arXiv 2312.03732)."""
    keys: tuple[str, str]
    """Names of a and b in the file."""

    @property
    def rank(self) -> int:
        """The r that was asked for."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class Spectrum:
    """ΔW = u·diag(s)·vᵀ, its largest directions first."""

    u: torch.Tensor
    """Shape (d_out, k), orthonormal columns; k is the rank, or less where a side is shorter."""
    s: torch.Tensor
    """Shape (k,), falling."""
    v: torch.Tensor
    """Shape (d_in, k), orthonormal columns."""


def read_factors(folder: Path) -> list[Factors]:
    """Return the factors of every module of an adapter folder, in the order of their names.

    Raises:
        AdapterError: If the folder cannot be read, is not of plain LoRA, lacks one of a pair, or
            holds numbers that are none.
    """
    config, file = read_config(folder), folder / WEIGHTS
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError("chat.adapter_unreadable", file=str(file), cause=str(error)) from error
    found = []
    for key in sorted(tensors):
        end = next((end for end in PAIRS if key.endswith(end)), None)
        if end is not None:
            other = key.removesuffix(end) + PAIRS[end]
            found.append(_factors(folder, config, tensors, (key, other), end))
    return found


def spectrum(factors: Factors) -> Spectrum:
    """Return the singular value decomposition of a module's ΔW."""
    qb, rb = torch.linalg.qr(factors.b.double())
    qa, ra = torch.linalg.qr(factors.a.T.double())
    u, s, vt = torch.linalg.svd(factors.scale * rb @ ra.T, full_matrices=False)
    return Spectrum(qb @ u, s, qa @ vt.T)


def _factors(
    folder: Path, config: LoraConfig, tensors: dict[str, Any], keys: tuple[str, str], end: str
) -> Factors:
    name = base_name(keys[0].removesuffix(end))
    if keys[1] not in tensors:
        raise AdapterError("chat.adapter_incomplete", folder=str(folder), missing=keys[1])
    a, b = (tensors[key].float() for key in keys)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        found = " · ".join("×".join(map(str, one.shape)) for one in (b, a))
        raise AdapterError("adapters.no_product", folder=str(folder), name=name, found=found)
    if not (a.isfinite().all() and b.isfinite().all()):
        raise AdapterError("adapters.not_finite", folder=str(folder), name=name)
    alpha = config.alpha_pattern.get(
        get_pattern_key(list(config.alpha_pattern), name), config.lora_alpha
    )
    scale = alpha / (math.sqrt(a.shape[0]) if config.use_rslora else a.shape[0])
    return Factors(name=name, a=a, b=b, scale=scale, keys=keys)
