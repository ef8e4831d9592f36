"""One second of matrix products: what this device does now. Only a child process may measure."""

from __future__ import annotations

import json
import time
from pathlib import Path

from lora_studio.hardware import Hardware

MEASURE_S = 1.0
SHAPE = {"cpu": (512, 1024, 1024), "mps": (2048, 2048, 2048), "cuda": (4096, 4096, 4096)}
"""Rows and widths of the products, about those of a training step on such a device."""


def measure(device: str, width: int) -> float:
    """Return FLOP a second of matrix products over about one second.

    Args:
        device: `cuda`, `mps` or `cpu`.
        width: Bytes of a number: 4 is float32, 2 is bfloat16.
    """
    import torch

    rows, d_in, d_out = SHAPE[device]
    kind = torch.float32 if width == 4 else torch.bfloat16
    left = torch.randn(rows, d_in, device=device, dtype=kind)
    right = torch.randn(d_in, d_out, device=device, dtype=kind)
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    for _ in range(3):
        left @ right
    wait()
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < MEASURE_S:
        for _ in range(8):
            left @ right
        wait()
        done += 8
    return 2 * rows * d_in * d_out * done / passed


def known(cache: Path, hardware: Hardware, width: int) -> float | None:
    """Return the rate measured before on this device, or None."""
    try:
        found = json.loads(_file(cache).read_text(encoding="utf-8"))
        return float(found[_name(hardware, width)])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(cache: Path, hardware: Hardware, width: int, rate: float) -> None:
    """Note a rate under the device's name."""
    file = _file(cache)
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        found = {}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found | {_name(hardware, width): rate}), encoding="utf-8")
    partial.replace(file)


def _file(cache: Path) -> Path:
    return cache / "calibration.json"


def _name(hardware: Hardware, width: int) -> str:
    return f"{hardware.device_name} × {hardware.cores}, {8 * width} bit"
