"""Several devices and machines: what is started, what the processes agree on, how they end."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_studio.cases.machine import Machine
from lora_studio.errors import RecipeError, RunError, StudioError
from lora_studio.exports import cluster
from lora_studio.hardware import Gpu, Hardware
from lora_studio.outlook import look_ahead
from lora_studio.recipe import LaunchSpec, Recipe
from lora_studio.runs import launching
from lora_studio.runs.folder import RunFolder, create
from lora_studio.runs.history import History
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.training import ranks, worker
from lora_studio.training.plan import measured_rows, total_steps
from lora_studio.ui import launch_choice
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice

CLUSTER = LaunchSpec(
    num_processes=8, num_machines=2, main_process_ip="10.0.0.1", main_process_port=4242,
    strategy="fsdp",
)  # fmt: skip


def machine(device: Any = "cpu", gpus: int = 0, cores: int = 4) -> Hardware:
    gpu = Gpu(name="GPU", total_bytes=1 << 36, free_bytes=1 << 36, compute_capability=9.0)
    return Hardware(
        device=device,
        device_name="Some device",
        cores=cores,
        memory_total_bytes=1 << 36,
        memory_free_bytes=1 << 36,
        gpus=(gpu,) * gpus,
        has_bf16=True,
    )


def asking(**launch: Any) -> Recipe:
    return Recipe.from_dict({"launch": launch})


def keys(problems: list[StudioError]) -> list[str]:
    return [problem.key for problem in problems]


# What is asked for


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        ({"main_process_ip": "a; rm -rf /"}, ["launch.bad_address"]),
        ({"main_process_ip": "--help"}, ["launch.bad_address"]),
        ({"num_machines": 0}, ["recipe.out_of_range"]),
        ({"strategy": "zero"}, ["recipe.wrong_type"]),
    ],
)
def test_a_launch_that_is_none_is_refused_with_the_recipe(
    launch: dict[str, Any], expected: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        asking(**launch)
    assert keys(caught.value.problems) == expected


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        ({"num_processes": 3, "num_machines": 2, "main_process_ip": "a"}, ["launch.uneven"]),
        ({"num_machines": 2, "main_process_ip": "a"}, ["launch.uneven"]),
        ({"machine_rank": 1}, ["launch.no_such_machine"]),
        ({"num_processes": 2, "num_machines": 2}, ["launch.no_address"]),
        ({"num_processes": 2, "num_machines": 2, "main_process_ip": "a", "machine_rank": 1}, []),
    ],
)
def test_parts_that_do_not_make_a_whole_keep_a_run_from_starting(
    launch: dict[str, Any], expected: list[str]
) -> None:
    problems = look_ahead(asking(**launch), None, machine()).problems
    assert keys(list(problems)) == expected
    assert all(problem.say("ko") for problem in problems)


def test_a_launch_comes_back_from_a_recipe_file() -> None:
    recipe = replace(Recipe(), launch=CLUSTER)
    assert Recipe.from_yaml(recipe.to_yaml()).launch == CLUSTER


@pytest.mark.parametrize(
    ("hardware", "launch", "precision", "expected"),
    [
        (machine(), {}, "fp32", []),
        (machine(cores=2), {"num_processes": 2}, "fp32", []),
        (machine(cores=2), {"num_processes": 3}, "fp32", ["launch.too_few_cores"]),
        (machine("mps"), {"num_processes": 2}, "fp32", ["launch.too_few_devices"]),
        (machine("cuda", 2), {"num_processes": 2}, "nf4", []),
        (machine("cuda", 2), {"num_processes": 3}, "nf4", ["launch.too_few_devices"]),
        (machine("cuda", 2), {"num_processes": 2, "strategy": "fsdp"}, "bf16", []),
        (
            machine("cuda", 2),
            {"num_processes": 2, "strategy": "fsdp"},
            "nf4",
            ["launch.fsdp_not_quantised"],
        ),
        (machine(), {"num_processes": 2, "strategy": "fsdp"}, "fp32", ["launch.fsdp_needs_gpus"]),
        (
            machine("cuda", 2),
            {"num_processes": 4, "num_machines": 2, "main_process_ip": "a"},
            "bf16",
            [],
        ),
    ],
)
def test_a_machine_says_whether_it_can_take_its_part(
    hardware: Hardware, launch: dict[str, Any], precision: str, expected: list[str]
) -> None:
    recipe = replace(asking(**launch), precision=precision)
    assert keys(launching.problems(recipe, precision, hardware)) == expected
    assert keys(list(look_ahead(recipe, None, hardware).problems)) == expected


def test_more_processes_take_fewer_steps_over_the_same_rows() -> None:
    training = {"per_device_train_batch_size": 4, "num_train_epochs": 3}
    steps = [
        total_steps(Recipe.from_dict({"training": training, "launch": {"num_processes": n}}), 48)
        for n in (1, 2, 4)
    ]
    assert steps == [36, 18, 9]


def test_processes_measure_whole_batches_each() -> None:
    def measured(processes: int, held_out: int) -> int:
        training = {"per_device_train_batch_size": 4}
        recipe = {"training": training, "launch": {"num_processes": processes}}
        return measured_rows(Recipe.from_dict(recipe), "cpu", held_out)

    assert [measured(1, rows) for rows in (3, 30, 100)] == [3, 30, 32]
    assert [measured(2, rows) for rows in (3, 30, 100)] == [3, 24, 32]
    assert [measured(3, rows) for rows in (3, 30, 100)] == [3, 24, 24]


def test_a_space_trains_on_its_own_machine_only(tmp_path: Path, pairs: Path) -> None:
    settings = Settings(home=tmp_path, offline=True, space_id="a/b", original_space="c/d")
    studio = Studio(settings, Machine.open(settings, isolated=False))
    recipe = replace(Recipe().with_files([str(pairs)]), launch=CLUSTER)
    with pytest.raises(RecipeError, match="stays on its one machine"):
        studio.training.start(recipe)


# What is started


def test_one_process_is_started_as_it_is() -> None:
    words = launching.command(["a.worker", "run"], LaunchSpec(), cores=8)
    assert words == [sys.executable, "-u", "-m", "a.worker", "run"]


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        (
            LaunchSpec(num_processes=2),
            {"multi_gpu": True, "num_processes": 2, "num_machines": 1, "main_process_port": 0,
             "num_cpu_threads_per_process": 4, "use_fsdp": False},
        ),
        (
            replace(CLUSTER, machine_rank=1),
            {"use_fsdp": True, "fsdp_version": "2", "multi_gpu": False, "num_processes": 8,
             "num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1",
             "main_process_port": 4242, "num_cpu_threads_per_process": 2, "same_network": True},
        ),
    ],
)  # fmt: skip
def test_the_launcher_understands_every_flag(launch: LaunchSpec, expected: dict[str, Any]) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = launching.command(["a.worker", "run"], launch, cores=8)
    assert words[:4] == [sys.executable, "-u", "-m", launching.LAUNCHER]
    parsed = launch_command_parser().parse_args(words[4:])
    assert (parsed.training_script, parsed.training_script_args) == ("a.worker", ["run"])
    assert parsed.module
    assert {name: getattr(parsed, name) for name in expected} == expected
    before = vars(parsed).copy()
    checked, defaults, _ = _validate_launch_command(parsed)
    if defaults is None:  # else this machine has a file of its own that says more
        guessed = {"use_cpu", "debug"}
        assert {name: value for name, value in vars(checked).items() if name not in guessed} == {
            name: value for name, value in before.items() if name not in guessed
        }


@pytest.mark.parametrize(
    ("processes", "environ", "visible"),
    [
        (1, {}, "0"),
        (2, {}, "0,1"),
        (1, {"CUDA_VISIBLE_DEVICES": "3,2,1"}, "3"),
        (2, {"CUDA_VISIBLE_DEVICES": "3,2,1"}, "3,2"),
        (1, {"CUDA_VISIBLE_DEVICES": ""}, ""),
    ],
)
def test_a_worker_sees_as_many_gpus_as_it_has_processes(
    processes: int, environ: dict[str, str], visible: str
) -> None:
    found = launching.environment(LaunchSpec(num_processes=processes), environ)
    assert found["CUDA_VISIBLE_DEVICES"] == visible
    assert found["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_worker_does_not_inherit_the_rank_of_this_process() -> None:
    around = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "HOME": "/root"}
    found = launching.environment(LaunchSpec(), around)
    assert "HOME" in found
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(found)


# What is typed on a cluster


def test_each_machine_is_told_its_own_part() -> None:
    lines = cluster.commands(CLUSTER).splitlines()
    assert lines[0::2] == ["# On machine 0:", "# On machine 1:"]
    for rank, line in enumerate(lines[1::2]):
        words = shlex.split(line)
        assert words[:5] == ["python", "-m", "lora_studio", "train", "recipe.yaml"]
        settings = [word for word in words[5:] if word != "--set"]
        assert Recipe().changed(settings).launch == replace(CLUSTER, machine_rank=rank)


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_slurm_script_starts_every_node_with_its_part(tmp_path: Path, language: str) -> None:
    script = tmp_path / "train.slurm"
    script.write_text(cluster.slurm_script(CLUSTER, "poems-1", language), encoding="utf-8")
    text = script.read_text(encoding="utf-8")
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=4\n" in text
    # Slurm reads its options only above the first command.
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert text.index(commands[0]) > text.rindex("#SBATCH")
    told = run_on_two_nodes(script, tmp_path)
    launches = [Recipe().changed(words[4:]).launch for words, _ in told]
    assert launches == [
        replace(CLUSTER, machine_rank=rank, main_process_ip="node-a") for rank in (0, 1)
    ]
    assert [home for _, home in told] == [f"{tmp_path}/home/nodes/{rank}" for rank in (0, 1)]


def run_on_two_nodes(script: Path, folder: Path) -> list[tuple[list[str], str]]:
    """Run a Slurm script with stand-ins; return what each node would start, and its home folder."""
    stand_ins = {
        "scontrol": "printf 'node-a\\nnode-b\\n'",
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "python": 'printf "%s\\0" "$@" "$LORA_STUDIO_HOME" >> "$TOLD"; printf "\\n" >> "$TOLD"',
    }
    for name, text in stand_ins.items():
        file = folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        file.chmod(0o755)
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "LORA_STUDIO_HOME": str(folder / "home"),
        "TOLD": str(folder / "told"),
    }
    subprocess.run(["bash", str(script)], env=environment, check=True, timeout=120)
    told = []
    for line in (folder / "told").read_text(encoding="utf-8").splitlines():
        *words, home = line.removesuffix("\0").split("\0")
        told.append(([word for word in words if word != "--set"], home))
    return told


# What the page shows


def test_commands_appear_for_several_machines_only() -> None:
    voice = Voice(None)
    named = {f"launch.{name}": getattr(CLUSTER, name) for name in LaunchSpec.__slots__}
    said, commands, slurm = launch_choice.shown(named, "My poems", voice)
    assert "machine 0" in said
    assert commands.value == cluster.commands(CLUSTER).strip()
    assert "--job-name=my-poems" in slurm.value
    said, commands, slurm = launch_choice.shown({}, "", voice)
    assert (commands.visible, slurm.visible) == (False, False)
    said, commands, _ = launch_choice.shown({"launch.num_machines": 2}, "", voice)
    assert "cannot be shared evenly" in said
    assert not commands.visible


@pytest.mark.parametrize(("gpus", "inside"), [(0, True), (1, True), (4, False)])
def test_the_number_of_devices_is_in_sight_where_there_are_several(
    gpus: int, *, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    import gradio as gr

    make, made = asyncio.new_event_loop, []
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(make()) or made[-1])
    form = Form()
    with gr.Blocks():
        form.add("name", gr.Textbox())
        choice = launch_choice.build(form, machine("cuda" if gpus else "cpu", gpus))
        launch_choice.wire(choice, form)
    for loop in made:
        loop.close()
    assert {path.removeprefix("launch.") for path in form.controls if "launch" in path} == set(
        LaunchSpec.__slots__
    )
    control, parents = form.controls["launch.num_processes"], []
    while control is not None:
        parents.append(control)
        control = control.parent
    assert any(isinstance(parent, gr.Accordion) for parent in parents) is inside


def test_machines_that_did_not_meet_are_said_to_be(tmp_path: Path) -> None:
    for launch, key in ((CLUSTER, "launch.not_met"), (LaunchSpec(), "run.lost")):
        folder = create(tmp_path / "runs", replace(Recipe(name="cluster"), launch=launch))
        folder.process.write_text('{"pid": 1, "started": 0}', encoding="utf-8")
        history = History(folder).update()
        assert history.status == "lost"
        assert history.cause is not None
        assert history.cause.key == key


# What the processes say to each other


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return create(tmp_path / "runs", Recipe(name="together"))


def test_a_process_alone_agrees_with_itself(folder: RunFolder) -> None:
    assert ranks.is_first()
    assert ranks.leads_machine()
    assert not ranks.is_shared()
    assert (ranks.agreed(wish=True), ranks.agreed(wish=False), ranks.total(3.0)) == (True, False, 3)
    assert ranks.agreed_wish(folder) is None
    folder.stop.write_text("pause", encoding="utf-8")
    assert ranks.agreed_wish(folder) == "pause"


@pytest.mark.parametrize(
    ("rank", "local", "writes"), [("0", "0", True), ("1", "1", False), ("4", "0", True)]
)
def test_the_first_process_of_a_machine_writes_its_events(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, rank: str, local: str, *, writes: bool
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local)
    with ranks.open_events(folder) as events:
        events.write("stage", stage="start")
    assert folder.events.exists() is writes
    assert ranks.is_first() is (rank == "0")


def test_what_failed_in_another_process_is_the_runs_reason(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with ranks.open_events(folder) as silent:
        worker._fail(folder, silent, MemoryError(), Recipe())
    assert not folder.events.exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    gone = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:3141")
    with ranks.open_events(folder) as events:
        worker._fail(folder, events, gone, Recipe())
        worker._end_with_others(folder, events)  # comes too late to say more
    (ending,) = [json.loads(line) for line in folder.events.read_text().splitlines()]
    assert (ending["event"], ending["cause"]["key"]) == ("failed", "training.out_of_memory")


def test_a_process_that_is_gone_without_a_word_is_said_to_be(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert isinstance(ranks.loss_of_another(folder), RunError)
    assert ranks.is_loss_of_another(RuntimeError("Connection reset by peer"))
    assert not ranks.is_loss_of_another(RuntimeError("shapes cannot be multiplied"))
    monkeypatch.delenv("RANK")
    assert not ranks.is_loss_of_another(RuntimeError("Connection reset by peer"))
