"""How large the weights of a model are, and which are the same, from its files one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from lora_studio.models.fingerprint import weight_files
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
    weights = _weights(folder, {f"{module}{END}" for module in modules})
    return {
        name.removesuffix(END): float(torch.linalg.vector_norm(weight.float()))
        for name, weight in weights
        if weight.is_floating_point() and weight.dtype.itemsize > 1
    }


def unchanged(folder: Path, tensors: Mapping[str, torch.Tensor]) -> int:
    """Return how many of these tensors are those of a model, but for rounding to its format.

    Raises:
        ModelError: If a file cannot be read.
    """
    weights = _weights(folder, tensors)
    return sum(torch.equal(tensors[name].to(weight.dtype), weight) for name, weight in weights)


def _weights(folder: Path, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a model that are asked for, one at a time."""
    if not names:
        return
    with reading(folder):
        for file in weight_files(folder):
            with safe_open(file, framework="pt", device="cpu") as weights:
                for key in weights.keys():  # noqa: SIM118 - not a dict
                    name = key if key in names else None
                    name = name or next((one for one in names if one.endswith(f".{key}")), None)
                    if name is not None:
                        yield name, weights.get_tensor(key)
