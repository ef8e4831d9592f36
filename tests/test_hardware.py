"""Probing and number formats, on this machine and on imagined ones."""

from __future__ import annotations

import pytest

from lora_studio import hardware
from lora_studio.errors import ModelError
from lora_studio.hardware import (
    Gpu,
    Hardware,
    default_precision,
    device_reason,
    precision_reason,
    precisions,
    probe,
    resolve_precision,
)
from lora_studio.wording import LANGUAGES, say

GIB = 1 << 30
H200 = "0, GPU-aa11, NVIDIA H200, 143771, 143000, 9.0\n"
T4 = "1, GPU-bb22, Tesla T4, 15360, 15000, 7.5\n"


def machine(device: str = "cpu", capability: float = 0.0, *, has_bf16: bool = False) -> Hardware:
    gpu = Gpu(name="GPU", total_bytes=80 * GIB, free_bytes=70 * GIB, compute_capability=capability)
    return Hardware(
        device=device,
        device_name="Some device",
        cores=2,
        memory_total_bytes=16 * GIB,
        memory_free_bytes=8 * GIB,
        gpus=(gpu,) if device == "cuda" else (),
        has_bf16=has_bf16,
    )


MACHINES = {
    "old_cpu": machine(),
    "new_cpu": machine(has_bf16=True),
    "ampere": machine("cuda", 8.0, has_bf16=True),
    "turing": machine("cuda", 7.5),
    "maxwell": machine("cuda", 5.2),
    "mac": machine("mps", has_bf16=True),
}


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """A processor and a control group made of files, and no GPU."""
    monkeypatch.setattr(hardware, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setattr(hardware, "_run", lambda *command: "")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("old_cpu", ("fp32", {"nf4", "int8", "fp32"})),
        ("new_cpu", ("bf16", {"nf4", "int8", "bf16", "fp32"})),
        ("ampere", ("nf4", {"nf4", "int8", "bf16", "fp16", "fp32"})),
        ("turing", ("nf4", {"nf4", "int8", "fp16", "fp32"})),
        ("maxwell", ("fp16", {"fp16", "fp32"})),
        ("mac", ("bf16", {"bf16", "fp16", "fp32"})),
    ],
)
def test_each_machine_offers_what_works_on_it(name, expected):
    default, offered = expected
    assert default_precision(MACHINES[name]) == default
    assert {p.name for p in precisions(MACHINES[name]) if p.available} == offered
    assert resolve_precision("auto", MACHINES[name]) == default


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_answer_comes_with_its_reason_in_both_languages(name, language):
    for precision in precisions(MACHINES[name]):
        assert say(precision.reason_key, language, **precision.values)
        reason = precision_reason(precision.name, MACHINES[name])
        assert reason["key"] == precision.reason_key
    reason = device_reason(MACHINES[name])
    assert say(reason["key"], language, **reason["values"])


def test_a_precision_that_does_not_work_here_is_refused_with_the_reason():
    with pytest.raises(ModelError, match=r"needs a GPU.*auto"):
        resolve_precision("fp16", MACHINES["old_cpu"])


def test_free_memory_is_that_of_the_device():
    assert machine("cuda", 8.0).device_free_bytes == 70 * GIB
    assert machine("cuda", 8.0).device_total_bytes == 80 * GIB
    assert machine("cpu").device_free_bytes == 8 * GIB


def test_this_machine_can_be_probed():
    found = probe()
    assert found.cores >= 1
    assert 0 < found.memory_free_bytes <= found.memory_total_bytes
    assert resolve_precision("auto", found)


@pytest.mark.parametrize(
    ("flags", "has_bf16"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
    ],
)
def test_bfloat16_units_are_read_from_the_processor_flags(linux, flags, has_bf16):
    (linux / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: Some CPU\n{flags}\n")
    found = probe()
    assert (found.device, found.device_name, found.has_bf16) == ("cpu", "Some CPU", has_bf16)


def test_a_container_limit_counts_instead_of_the_host(linux):
    (linux / "cpu.max").write_text("100000 100000\n")
    (linux / "memory.max").write_text(f"{2 * GIB}\n")
    (linux / "memory.current").write_text(f"{GIB}\n")
    (linux / "memory.stat").write_text("anon 5\ninactive_file 1000\n")
    found = probe()
    assert found.cores == 1
    assert found.memory_total_bytes == 2 * GIB
    assert found.memory_free_bytes <= GIB + 1000


def test_no_limit_leaves_the_host(linux):
    (linux / "cpu.max").write_text("max 100000\n")
    (linux / "memory.max").write_text("max\n")
    assert probe().memory_total_bytes > 2 * GIB


def test_a_gpu_is_used_where_torch_can(linux, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "_run", lambda *command: H200 + T4)
    monkeypatch.setattr(hardware, "_torch_has_cuda", lambda: True)
    found = probe()
    assert (found.device, found.device_name, found.has_bf16) == ("cuda", "NVIDIA H200", True)
    assert [gpu.name for gpu in found.gpus] == ["NVIDIA H200", "Tesla T4"]
    assert found.device_total_bytes == 143771 << 20


def test_a_gpu_beside_a_torch_without_cuda_is_explained(linux, monkeypatch):
    monkeypatch.setattr(hardware, "_run", lambda *command: H200)
    monkeypatch.setattr(hardware, "_torch_has_cuda", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = probe()
    reason = device_reason(found)
    assert found.device == "cpu"
    assert "H200 is there" in say(reason["key"], **reason["values"])


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["Tesla T4"]),
        ("1,0", ["Tesla T4", "NVIDIA H200"]),
        ("GPU-aa", ["NVIDIA H200"]),
        ("", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices_is_obeyed(monkeypatch, visible, names):
    monkeypatch.setattr(hardware, "_run", lambda *command: H200 + T4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in hardware._nvidia_gpus()] == names


def test_a_gpu_that_shares_the_memory_of_the_processor_reports_that(linux, monkeypatch):
    line = "0, GPU-cc, NVIDIA GB10, [N/A], [N/A], 12.1\n"
    monkeypatch.setattr(hardware, "_run", lambda *command: line)
    monkeypatch.setattr(hardware, "_torch_has_cuda", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = probe()
    assert found.device_free_bytes == found.memory_free_bytes
    assert found.device_total_bytes == found.memory_total_bytes


def test_a_missing_or_hanging_command_is_no_gpu():
    assert hardware._run("no-such-command-here") == ""
    assert hardware._run("false") == ""
