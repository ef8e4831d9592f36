"""What this machine has to train with, and which number formats that allows, each with its reason.

Asks the operating system and `nvidia-smi`; torch is never imported, so the page's process can call
it. What it says about speed was measured with the starter model (two AVX-512 cores).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from lora_studio.errors import ModelError

DeviceName = Literal["cuda", "mps", "cpu"]

CPU_INFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")
# x86's and Arm's names for bfloat16 matrix arithmetic.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
MIB = 1 << 20

QUANTISED = ("nf4", "int8")
"""Number formats of weights that are unpacked to be computed with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    """As in `NVIDIA H200`."""
    total_bytes: int
    """Its memory; 0 where the driver does not say (memory shared with the CPU)."""
    free_bytes: int
    """What no process uses now."""
    compute_capability: float
    """8.0 and more computes in bfloat16; 7.5 and more in 8-bit integers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a training on this machine can use."""

    device: DeviceName
    """Where models run."""
    device_name: str
    """Name of the GPU or processor."""
    cores: int
    """Logical CPU cores this process may use."""
    memory_total_bytes: int
    """RAM, or the container's limit."""
    memory_free_bytes: int
    """RAM that can be taken without swapping."""
    gpus: tuple[Gpu, ...] = ()
    """Every visible NVIDIA GPU, used or not."""
    has_bf16: bool = False
    """Whether the device computes in bfloat16 at full speed."""

    @property
    def device_count(self) -> int:
        """How many devices a training can use at once, each with a process of its own."""
        return len(self.gpus) if self.device == "cuda" else 1

    @property
    def device_total_bytes(self) -> int:
        """Memory of the device that models run on."""
        return (self.device == "cuda" and self.gpus[0].total_bytes) or self.memory_total_bytes

    @property
    def device_free_bytes(self) -> int:
        """Free memory of the device that models run on."""
        is_separate = self.device == "cuda" and self.gpus[0].total_bytes
        return self.gpus[0].free_bytes if is_separate else self.memory_free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A number format for the frozen weights, and what speaks for or against it here."""

    name: str
    """`nf4`, `int8`, `bf16`, `fp16` or `fp32`."""
    available: bool
    """Whether a run may use it on this machine."""
    reason_key: str
    """Key of the sentence that says why or why not."""
    values: dict[str, Any] = field(default_factory=dict)
    """What fills the sentence's braces."""


def probe() -> Hardware:
    """Look at the machine now; takes a moment where `nvidia-smi` has to be asked."""
    total, free = _memory()
    machine = Hardware(
        device="cpu",
        device_name=_processor(),
        cores=usable_cores(),
        memory_total_bytes=total,
        memory_free_bytes=free,
        gpus=_nvidia_gpus(),
        has_bf16=bool(BF16_FLAGS & set(_cpu_info("flags", "Features").split())),
    )
    if machine.gpus and _torch_has_cuda():
        gpu = machine.gpus[0]
        has_bf16 = gpu.compute_capability >= 8
        return replace(machine, device="cuda", device_name=gpu.name, has_bf16=has_bf16)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        # MPS computes in bfloat16 from macOS 14 on.
        has_bf16 = int(platform.mac_ver()[0].partition(".")[0] or 0) >= 14
        return replace(machine, device="mps", has_bf16=has_bf16)
    return machine


def free_memory() -> int:
    """Return the RAM in bytes that can be taken now without swapping; asks no GPU."""
    return _memory()[1]


def device_reason(hardware: Hardware) -> dict[str, Any]:
    """Return the sentence for why models run where they do, as `{"key", "values"}`."""
    values = {"name": hardware.device_name, "cores": hardware.cores}
    if hardware.device == "cpu" and hardware.gpus:
        return {
            "key": "hardware.device_cpu_torch",
            "values": values | {"gpu": hardware.gpus[0].name},
        }
    return {"key": f"hardware.device_{hardware.device}", "values": values}


def precisions(hardware: Hardware) -> list[Precision]:
    """Return every number format from the smallest to the largest, usable here or not."""
    device = hardware.device
    capability = hardware.gpus[0].compute_capability if device == "cuda" else 0.0
    # Least capabilities: bitsandbytes' installation page. On MPS it was not tried.
    is_available = {
        "nf4": device == "cpu" or capability >= 6.0,
        "int8": device == "cpu" or capability >= 7.5,
        "bf16": hardware.has_bf16,
        "fp16": device != "cpu",
        "fp32": True,
    }
    return [
        Precision(
            name=name,
            available=available,
            reason_key=_reason_key(name, hardware, available=available),
            values={"name": hardware.device_name},
        )
        for name, available in is_available.items()
    ]


def _reason_key(name: str, hardware: Hardware, *, available: bool) -> str:
    kind = "cpu" if hardware.device == "cpu" else "gpu"
    if not available:
        return f"hardware.{name}_not_on_{kind}"
    if name == "fp32" and kind == "cpu" and not hardware.has_bf16:
        return "hardware.fp32_on_cpu_without_bf16"
    return f"hardware.{name}_on_{kind}"


def default_precision(hardware: Hardware) -> str:
    """Return what `auto` means here.

    NF4 on an NVIDIA GPU (QLoRA, arXiv 2305.14314); elsewhere bfloat16 where the processor has
    units for it and float32 where not: without them a step took up to 20 times as long.
    """
    available = {precision.name for precision in precisions(hardware) if precision.available}
    preferred = ("nf4", "fp16", "fp32") if hardware.device == "cuda" else ("bf16", "fp32")
    return next(name for name in preferred if name in available)


def resolve_precision(name: str, hardware: Hardware) -> str:
    """Return the concrete number format behind a recipe's `precision`.

    Raises:
        ModelError: If this machine cannot use it; the sentence says why.
    """
    if name == "auto":
        return default_precision(hardware)
    chosen = _find(name, hardware)
    if not chosen.available:
        raise ModelError(chosen.reason_key, **chosen.values)
    return name


def precision_reason(name: str, hardware: Hardware) -> dict[str, Any]:
    """Return the sentence for a number format on this machine, as `{"key", "values"}`."""
    chosen = _find(name, hardware)
    return {"key": chosen.reason_key, "values": chosen.values}


def _find(name: str, hardware: Hardware) -> Precision:
    return next(precision for precision in precisions(hardware) if precision.name == name)


def _run(*command: str) -> str:
    """Return a command's output, or nothing where it is missing, fails or hangs."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _nvidia_gpus(environ: Mapping[str, str] | None = None) -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves visible, in its order."""
    query = "--query-gpu=index,uuid,name,memory.total,memory.free,compute_cap"
    rows = [
        [cell.strip() for cell in line.split(",")]
        for line in _run("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines()
    ]
    rows = [row for row in rows if len(row) == 6]
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [name.strip() for name in visible.split(",") if name.strip()]
        rows = [
            row
            for name in wanted
            for row in rows
            if row[0] == name or (name.startswith("GPU-") and row[1].startswith(name))
        ]
    return tuple(
        Gpu(
            name=name,
            total_bytes=int(_number(total) * MIB),
            free_bytes=int(_number(free) * MIB),
            compute_capability=_number(capability),
        )
        for _, _, name, total, free, capability in rows
    )


def _number(text: str) -> float:
    """Read a number; `[N/A]`, as GPUs without memory of their own say, is 0."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _torch_has_cuda() -> bool:
    """Say whether the installed torch was built for GPUs, without importing it."""
    try:
        return not importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def _processor() -> str:
    if platform.system() == "Darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return _cpu_info("model name") or platform.processor() or platform.machine() or "CPU"


def _cpu_info(*labels: str) -> str:
    """Return the first core's entry under one of the labels, empty where there is none."""
    for line in _read(CPU_INFO).splitlines():
        label, _, value = line.partition(":")
        if label.strip() in labels:
            return value.strip()
    return ""


def usable_cores() -> int:
    """Return the cores that affinity and the container's quota (cgroup v2) leave."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota, _, period = _read(CGROUP / "cpu.max").partition(" ")
    if quota.isdigit():
        cores = min(cores, max(int(quota) // int(period), 1))
    return cores


def _memory() -> tuple[int, int]:
    """Return total and free RAM in bytes, within the container's limit (cgroup v2)."""
    memory = psutil.virtual_memory()
    limit, used = _read(CGROUP / "memory.max").strip(), _read(CGROUP / "memory.current").strip()
    if not (limit.isdigit() and used.isdigit()):
        return memory.total, memory.available
    stat = dict(line.split() for line in _read(CGROUP / "memory.stat").splitlines())
    # File pages that nobody touched lately count as used, but are given up when needed.
    free = int(limit) - int(used) + int(stat.get("inactive_file", 0))
    return min(memory.total, int(limit)), min(memory.available, max(free, 0))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
