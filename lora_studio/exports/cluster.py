"""What starts a training on several machines: a command for each of them, and a Slurm script."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from lora_studio.recipe import LaunchSpec
from lora_studio.recipes.command import PROGRAM, in_one_line
from lora_studio.wording import say

RECIPE = "recipe.yaml"
SCRIPT = "train.slurm"
HOURS = 24


def commands(launch: LaunchSpec, language: str = "en") -> str:
    """Return the line to type on each machine, under a comment that says on which.

    Args:
        launch: On how many devices and machines; its rank is that of one of them.
        language: Of the comments.
    """
    lines = []
    for rank in range(launch.num_machines):
        words = [*PROGRAM, RECIPE]
        for name, value in _settings(launch):
            number = rank if name == "machine_rank" else value
            words += ["--set", f"launch.{name}={in_one_line(number)}"]
        lines += [f"# {say('launch.on_machine', language, rank=rank)}", shlex.join(words)]
    return "\n".join(lines) + "\n"


def slurm_script(launch: LaunchSpec, name: str, language: str = "en") -> str:
    """Return a script for `sbatch` that trains on as many nodes as there are machines.

    The first node's name and each node's rank are Slurm's to say.

    Args:
        launch: On how many devices and machines.
        name: Of the job: letters, digits and dashes.
        language: Of the comments.
    """
    return "\n".join([*_head(launch, name, language), "", *_body(launch, language), ""])


def _head(launch: LaunchSpec, name: str, language: str) -> list[str]:
    options = {
        "job-name": name,
        "nodes": launch.num_machines,
        "ntasks-per-node": 1,
        "gpus-per-node": launch.processes_here,
        "time": f"{HOURS}:00:00",
        "output": "%x-%j.log",
    }
    return [
        "#!/bin/bash",
        *(f"#SBATCH --{option}={value}" for option, value in options.items()),
        f"# {say('launch.slurm_cpu', language)}",
        f"# {say('launch.slurm_paths', language, file=SCRIPT)}",
    ]


def _body(launch: LaunchSpec, language: str) -> list[str]:
    told = {"machine_rank": '"$SLURM_NODEID"', "main_process_ip": '"$FIRST_NODE"'}
    settings = [
        f"    --set launch.{name}={told.get(name, in_one_line(value))}"
        for name, value in _settings(launch)
    ]
    return [
        "set -euo pipefail",
        'FIRST_NODE="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"',
        f"# {say('launch.slurm_home', language)}",
        'HOMES="${LORA_STUDIO_HOME:-$HOME/lora-studio}/nodes"',
        "export FIRST_NODE HOMES",
        "",
        "srun --kill-on-bad-exit=1 bash -c '",
        '  export LORA_STUDIO_HOME="$HOMES/$SLURM_NODEID"',
        " \\\n".join([f"  exec {shlex.join([*PROGRAM, RECIPE])}", *settings]),
        "'",
    ]


def _settings(launch: LaunchSpec) -> Iterator[tuple[str, object]]:
    names = (
        "num_processes",
        "num_machines",
        "machine_rank",
        "main_process_ip",
        "main_process_port",
        "strategy",
    )
    for name in names:
        yield name, getattr(launch, name)
