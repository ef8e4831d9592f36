"""One second of training passes: what this device does now. Only a child process may measure."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import psutil

from lora_studio.files import write_whole
from lora_studio.hardware import Hardware, usable_cores

MEASURE_S = 1.0
LEAST_PASSES = 3
VALID_S = 24 * 3600
MOST_OTHERS = 0.75
"""Of the processor; with less than the rest for itself, a measurement says little."""


def measure(device: str, width: int) -> float:
    """Return FLOP a second of a decoder block's passes with LoRA, the median over one second.

    A whole block rather than one matrix product: its norms, its adapters and what two threads
    wait for each other are in it, as they are in a training step. What other processes used of a
    processor meanwhile (the browser that opens the page, say) is taken out.

    Args:
        device: `cuda`, `mps` or `cpu`.
        width: Bytes of a number: 4 is float32, 2 is bfloat16.
    """
    import torch

    from lora_studio.prediction.block import SHAPES, Pass

    shape = SHAPES[device]
    passes = Pass(shape, device, torch.float32 if width == 4 else torch.bfloat16)
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    for _ in range(2):
        passes.run()
    wait()
    seconds: list[float] = []
    others = Others()
    end = time.perf_counter() + MEASURE_S
    while (start := time.perf_counter()) < end or len(seconds) < LEAST_PASSES:
        passes.run()
        wait()
        seconds.append(time.perf_counter() - start)
    left = 1 - min(others.share(), MOST_OTHERS) if device == "cpu" else 1.0
    return shape.flop / (statistics.median(seconds) * left)


class Others:
    """Tells what share of the processors other processes have used since it was made."""

    def __init__(self) -> None:
        self._before = self._used()

    def share(self) -> float:
        """Return it, 0 to 1; 0 where this process may not use all processors that are counted."""
        total, busy, own = (
            now - before for now, before in zip(self._used(), self._before, strict=True)
        )
        if usable_cores() < (psutil.cpu_count() or 1) or total <= 0:
            return 0.0
        return min(max((busy - own) / total, 0.0), 1.0)

    @staticmethod
    def _used() -> tuple[float, float, float]:
        """Return seconds of all processors: passed, used by anybody, used by this process."""
        everybody, this = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = everybody.idle + getattr(everybody, "iowait", 0.0)
        total = sum(everybody[:8])  # what comes after is counted among these already
        return total, total - idle, this.user + this.system


def known(cache: Path, hardware: Hardware, width: int) -> float | None:
    """Return the highest rate that was measured on this device, or None."""
    return _kept(cache, hardware, width)[0]


def is_due(cache: Path, hardware: Hardware, width: int) -> bool:
    """Return whether to measure: never done, or long ago, perhaps while the machine was busy."""
    rate, measured_at = _kept(cache, hardware, width)
    return rate is None or not 0 <= time.time() - measured_at < VALID_S


def keep(cache: Path, hardware: Hardware, width: int, rate: float) -> None:
    """Note a rate under the device's name; a higher one from before stays."""
    best = max(rate, known(cache, hardware, width) or 0.0)
    file = _file(cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    found = _read(cache) | {_name(hardware, width): {"rate": best, "measured_at": time.time()}}
    write_whole(file, json.dumps(found))


def _kept(cache: Path, hardware: Hardware, width: int) -> tuple[float | None, float]:
    """Return the rate and the time of its last measurement."""
    try:
        entry = _read(cache)[_name(hardware, width)]
        return float(entry["rate"]), float(entry["measured_at"])
    except (KeyError, TypeError, ValueError):
        return None, 0.0


def _read(cache: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_file(cache).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _file(cache: Path) -> Path:
    return cache / "calibration.json"


def _name(hardware: Hardware, width: int) -> str:
    return f"{hardware.device_name} × {hardware.cores}, {8 * width} bit, a block"
