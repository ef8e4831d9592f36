"""What 4-bit NF4 does to real weights: one tensor of a model, rounded and read back.

NF4 (arXiv 2305.14314, section 3) takes blocks of 64 weights, divides each by its largest
magnitude, and keeps the nearest of 16 levels. Only a slice of one tensor is read.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors import safe_open

from lora_studio.errors import ModelError
from lora_studio.models.fingerprint import weight_files
from lora_studio.models.loading import reading

BLOCK = 64
"""Weights that share one scale, a float32; QLoRA's double quantisation is not part of it."""
BITS_AFTER = 4 + 32 / BLOCK
MOST_WEIGHTS = 4_000_000
"""Rows are read until there are so many weights: enough for a smooth histogram, quick on a CPU."""
BINS = 81
SHOWN_SIGMAS = 4.0
"""The histogram of the weights ends at so many times their usual size."""
NAMES = ("q_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "o_proj")
"""Last names of attention's linear layers, most wanted first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsHistogram:
    """One tensor before and after NF4."""

    tensor: str
    """Its name in the model's files."""
    rows: int
    """Rows that were read."""
    columns: int
    """Weights in a row."""
    dtype: str
    """The number format it is stored in."""
    bits_before: int
    """Bits per weight as stored."""
    bits_after: float
    """Bits per weight in NF4, the blocks' scales included."""
    edges: list[float]
    """Middles of the bins of `before` and `after`."""
    before: list[float]
    """Share of the weights in each bin."""
    after: list[float]
    """The same after NF4."""
    scaled_edges: list[float]
    """Middles of the bins of `scaled`, -1 to 1."""
    scaled: list[float]
    """Share of the weights in each bin after division by the largest of their block."""
    levels: list[float]
    """The levels of NF4, -1 to 1."""
    shares: list[float]
    """Share of the weights that is rounded to each level."""
    mean_error: float
    """Mean absolute difference of a weight."""
    relative_error: float
    """Root mean square of the differences over that of the weights."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def nf4_histogram(folder: Path) -> WeightsHistogram:
    """Round a weight of the model's middle block to NF4 and compare.

    Args:
        folder: A folder from `sources.resolve`, with its weights.

    Raises:
        ModelError: If the files cannot be read, or hold no such weight in a floating format.
    """
    with reading(folder):
        file, name = _middle_weight(folder)
        with safe_open(file, framework="pt", device="cpu") as weights:
            part = weights.get_slice(name)
            columns = part.get_shape()[1]
            stored = part[: max(MOST_WEIGHTS // columns, 1)]
    if not stored.is_floating_point() or stored.dtype.itemsize < 2:
        raise ModelError("model.already_quantized", source=folder.name, dtype=_name_of(stored))
    return _compare(stored, name)


def _middle_weight(folder: Path) -> tuple[Path, str]:
    """Return the file and name of an attention weight of the middle block."""
    found: dict[str, Path] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt", device="cpu") as weights:
            found |= {
                name: file
                for name in weights.keys()  # noqa: SIM118 - not a dict
                if name.endswith(".weight") and len(weights.get_slice(name).get_shape()) == 2
            }
    for wanted in NAMES:
        named = sorted((name for name in found if name.endswith(f".{wanted}.weight")), key=_block)
        if named:
            return found[named[len(named) // 2]], named[len(named) // 2]
    inner = sorted((name for name in found if _block(name) >= 0), key=_block)
    if not inner:
        raise ModelError("model.no_weight_to_show", source=folder.name)
    return found[inner[len(inner) // 2]], inner[len(inner) // 2]


def _block(name: str) -> int:
    """Return the number of the block a weight belongs to, or -1."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else -1


def _compare(stored: torch.Tensor, name: str) -> WeightsHistogram:
    rows, columns = stored.shape
    # In one row: bitsandbytes 0.50 reads back rows that are no multiple of the block wrongly on a
    # CPU (its kernel counts the blocks of each row anew); goes when it counts them through.
    before = stored.float().reshape(1, -1)
    packed, state = quantize_4bit(before, blocksize=BLOCK, quant_type="nf4")
    after = dequantize_4bit(packed, state)
    levels = state.code.float()
    scaled, chosen = _scaled(before.flatten(), after.flatten(), levels)
    usual = before.square().mean().sqrt()
    end = float(SHOWN_SIGMAS * usual) or 1.0
    difference = after - before
    return WeightsHistogram(
        tensor=name,
        rows=rows,
        columns=columns,
        dtype=_name_of(stored),
        bits_before=8 * stored.dtype.itemsize,
        bits_after=BITS_AFTER,
        edges=_middles(end),
        before=_shares(before, end),
        after=_shares(after, end),
        scaled_edges=_middles(1.0),
        scaled=_shares(scaled, 1.0),
        levels=levels.tolist(),
        shares=(torch.bincount(chosen, minlength=len(levels)) / chosen.numel()).tolist(),
        mean_error=float(difference.abs().mean()),
        relative_error=float(difference.square().mean().sqrt() / usual) if usual else 0.0,
    )


def _scaled(
    before: torch.Tensor, after: torch.Tensor, levels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights divided by the largest of their block, and each one's level.

    Args:
        before: The weights, float32, shape (N,).
        after: The same after NF4.
        levels: The levels in ascending order, shape (16,).
    """
    rest = -before.numel() % BLOCK
    blocks = torch.nn.functional.pad(before, (0, rest)).view(-1, BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    kept = torch.nn.functional.pad(after, (0, rest)).view(-1, BLOCK) / largest
    middles = (levels[1:] + levels[:-1]) / 2
    chosen = torch.bucketize(kept.flatten()[: before.numel()].contiguous(), middles)
    return (blocks / largest).flatten()[: before.numel()], chosen


def _shares(values: torch.Tensor, end: float) -> list[float]:
    """Return the share of the values in each of `BINS` bins from -end to end."""
    counts = torch.histc(values, bins=BINS, min=-end, max=end)
    return (counts / values.numel()).tolist()


def _middles(end: float) -> list[float]:
    width = 2 * end / BINS
    return [-end + width * (at + 0.5) for at in range(BINS)]


def _name_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
