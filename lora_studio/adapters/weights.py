"""The weights' file of an adapter folder, read without running anything that it holds."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lora_studio.adapters.configuration import WEIGHTS
from lora_studio.errors import AdapterError

LORA_MARKS = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude")
FORMATS = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2,
}  # fmt: skip
"""Of numbers that can be computed with."""
PICKLE = b"\x80"
"""First byte of a pickle; torch puts newer ones into a zip."""


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return what the weights' file of an adapter folder holds, by its names, on the CPU.

    Raises:
        AdapterError: If there is none, it is damaged, a number in it is none, or its numbers are
            of a format that LoRA's are not.
    """
    with opened(folder) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    for key, tensor in tensors.items():
        if tensor.dtype not in FORMATS:
            raise AdapterError(
                "adapters.odd_format",
                folder=str(folder),
                name=base_name(key),
                dtype=str(tensor.dtype).removeprefix("torch."),
            )
        # Of 8 bit torch does not know what is finite.
        numbers = tensor if tensor.dtype.itemsize > 1 else tensor.float()
        # What is no number is both the least and the most, and looking for these copies nothing.
        if numbers.numel() and not all(extreme.isfinite() for extreme in numbers.aminmax()):
            raise AdapterError("adapters.not_finite", folder=str(folder), name=base_name(key))
    return tensors


def tensor_names(folder: Path) -> list[str]:
    """Return the names in the weights' file of an adapter folder; no tensor is read.

    Raises:
        AdapterError: If there is none or it is damaged.
    """
    with opened(folder) as file:
        return list(file.keys())


@contextmanager
def opened(folder: Path) -> Iterator[Any]:
    """Open the weights' file of an adapter folder; what is wrong with it becomes AdapterError."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise AdapterError("adapters.incomplete", folder=str(folder), missing=WEIGHTS)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        if _is_pickle(path):
            raise AdapterError("adapters.pickled", file=str(path)) from error
        raise AdapterError("adapters.unreadable", file=str(path), cause=str(error)) from error


def _is_pickle(file: Path) -> bool:
    """Return whether it is known to be one; of a file that may not be read nothing is."""
    try:
        if zipfile.is_zipfile(file):
            return True
        with file.open("rb") as content:
            return content.read(1) == PICKLE
    except OSError:
        return False


def base_name(key: str) -> str:
    """Return the name, in the base model, of what a tensor of an adapter file belongs to.

    >>> base_name("base_model.model.lm_head.base_layer.bias")
    'lm_head.bias'
    """
    return key.removeprefix("base_model.model.").replace(".base_layer.", ".")


def module_of(key: str) -> str:
    """Return the module, as the base names it, that a tensor of LoRA's own is for.

    >>> module_of("base_model.model.lm_head.lora_A.weight")
    'lm_head'
    """
    name = base_name(key)
    return name[: min(name.index(mark) for mark in LORA_MARKS if mark in name)]


def is_lora(key: str) -> bool:
    """Return whether a tensor of an adapter file is one of LoRA's own."""
    return any(mark in key for mark in LORA_MARKS)
