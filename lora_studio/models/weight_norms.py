"""How large the weights of a model are, read from its files one at a time."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open

from lora_studio.models.loading import reading

END = ".weight"


def weight_norms(folder: Path, modules: Collection[str]) -> dict[str, float]:
    """Return the Frobenius norms of the weights of these modules.

    Those of quantised weights, and of modules whose weight is another one's, are left out. Files
    may name modules without the model's own name in front, as GPT-2's do.

    Args:
        folder: A model folder in the safetensors format.
        modules: Dotted names in the model.

    Raises:
        ModelError: If a file cannot be read.
    """
    found: dict[str, float] = {}
    with reading(folder):
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt", device="cpu") as weights:
                for key in weights.keys():  # noqa: SIM118 - not a dict
                    name = _module(key, modules)
                    if name is None:
                        continue
                    weight = weights.get_tensor(key)
                    if weight.is_floating_point() and weight.dtype.itemsize > 1:
                        found[name] = float(torch.linalg.vector_norm(weight.float()))
    return found


def _module(key: str, modules: Collection[str]) -> str | None:
    """Return whose weight a file's tensor is, if it is one that is asked for."""
    if not key.endswith(END):
        return None
    name = key.removesuffix(END)
    if name in modules:
        return name
    return next((module for module in modules if module.endswith(f".{name}")), None)
