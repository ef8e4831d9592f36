"""How a run's worker is started: as one process, or as several that `accelerate launch` watches.

Words and environment only: nothing here is started, and no torch is imported. The launcher gives
each process its RANK, LOCAL_RANK and WORLD_SIZE, and ends all of them when one has failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.hardware import QUANTISED, Hardware
from lora_studio.methods import chosen
from lora_studio.recipe import LaunchSpec, Recipe

LAUNCHER = "accelerate.commands.launch"
PROGRAM = Path(__file__).resolve().parents[2]
"""Where a worker finds this package, whatever folder it is started in."""
WHOLE = frozenset({"dora", "pissa"})
"""Methods that compute with a whole weight, which no process has under FSDP."""
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells each process, and what one around this program may have told it."""
SHUTDOWN_S = 2
"""So long the launcher waits for the others when one has failed, before it ends them by force."""
# FSDP2 of accelerate 1.15: parameters are cut one by one, so that frozen and trained ones go
# together; a whole state dict, as the adapter is written from it.
FSDP = (
    "--use_fsdp",
    "--fsdp_version=2",
    "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
    "--fsdp_reshard_after_forward=true",
    "--fsdp_state_dict_type=FULL_STATE_DICT",
    "--fsdp_cpu_ram_efficient_loading=false",
)


def command(worker: Sequence[str], launch: LaunchSpec, cores: int) -> list[str]:
    """Return the command that starts a worker on this machine.

    Args:
        worker: Its module and arguments.
        launch: On how many devices and machines.
        cores: CPU cores that the processes of this machine share.
    """
    python = [sys.executable, "-u", "-m"]
    if not launch.is_shared:
        return [*python, *worker]
    return [*python, LAUNCHER, *_flags(launch, cores), "--module", *worker]


def _flags(launch: LaunchSpec, cores: int) -> list[str]:
    # Every flag is given: what is not, the launcher takes from a file in the person's home.
    # `--multi_gpu` is its word for "several processes"; on a CPU they talk over gloo.
    kind = FSDP if launch.strategy == "fsdp" else ("--multi_gpu",)
    flags = [
        *kind,
        "--gpu_ids=all",
        "--mixed_precision=no",  # the trainer's own settings say which
        "--dynamo_backend=no",
        f"--num_processes={launch.num_processes}",
        f"--num_machines={launch.num_machines}",
        f"--machine_rank={launch.machine_rank}",
        f"--num_cpu_threads_per_process={max(cores // launch.processes_here, 1)}",
        "--max_restarts=0",
    ]
    if launch.num_machines == 1:
        return [*flags, "--main_process_port=0"]
    return [
        *flags,
        f"--main_process_ip={launch.main_process_ip}",
        f"--main_process_port={launch.main_process_port}",
        "--rdzv_backend=static",
        "--same_network",
    ]


def environment(launch: LaunchSpec, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker, which sees as many GPUs as it has processes here.

    A trainer of one process that sees several would spread its batches over them (DataParallel),
    and one that is told a rank would wait for others.

    Args:
        launch: On how many devices and machines.
        environ: The environment of this process.
    """
    named = environ.get("CUDA_VISIBLE_DEVICES")
    here = launch.processes_here
    devices = [str(place) for place in range(here)] if named is None else named.split(",")[:here]
    paths = [str(PROGRAM), environ.get("PYTHONPATH", "")]
    return {
        **{name: value for name, value in environ.items() if name not in RANKS},
        # `hardware` counts as nvidia-smi does, by place; CUDA would begin with the fastest.
        "CUDA_DEVICE_ORDER": environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_S),
    }


def misfits(launch: LaunchSpec) -> list[StudioError]:
    """Return why processes cannot be shared out like this, whatever the machines have."""
    processes, machines = launch.num_processes, launch.num_machines
    found = []
    if processes % machines:
        found.append(StudioError("launch.uneven", processes=processes, machines=machines))
    if launch.machine_rank >= machines:
        rank = launch.machine_rank
        found.append(StudioError("launch.no_such_machine", rank=rank, machines=machines))
    if machines > 1 and not launch.main_process_ip:
        found.append(StudioError("launch.no_address", machines=machines))
    return found


def problems(recipe: Recipe, precision: str, hardware: Hardware) -> list[StudioError]:
    """Return why this machine cannot take its part of a recipe.

    Args:
        recipe: What is asked for.
        precision: The concrete number format, never `auto`.
        hardware: The machine.
    """
    launch, found = recipe.launch, misfits(recipe.launch)
    if not launch.is_shared:
        return found
    most = hardware.cores if hardware.device == "cpu" else hardware.device_count
    if launch.processes_here > most:
        key = "launch.too_few_cores" if hardware.device == "cpu" else "launch.too_few_devices"
        found.append(StudioError(key, processes=launch.processes_here, most=most))
    return found + _cannot_be_cut(recipe, precision, hardware)


def _cannot_be_cut(recipe: Recipe, precision: str, hardware: Hardware) -> list[StudioError]:
    """Return why no process can hold a part of the model only, if that is asked for."""
    if recipe.launch.strategy != "fsdp":
        return []
    found = []
    if hardware.device != "cuda":
        found.append(StudioError("launch.fsdp_needs_gpus", device=hardware.device_name))
    if precision in QUANTISED:
        found.append(StudioError("launch.fsdp_not_quantised", precision=precision))
    if WHOLE & set(chosen(recipe)):
        found.append(StudioError("launch.fsdp_needs_whole"))
    return found
