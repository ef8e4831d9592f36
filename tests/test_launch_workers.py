"""Two processes on one CPU (gloo), started by the launcher: they learn and end as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from trainings import work
from workers import WAIT_S, finish, open_studio, until

from lora_studio.recipe import LaunchSpec, Recipe
from lora_studio.runs import process
from lora_studio.runs.events import read_events
from lora_studio.runs.folder import create
from lora_studio.runs.history import History

pytestmark = [pytest.mark.usefixtures("nobody_left"), pytest.mark.slow]

GONE_WITHIN_S = 60.0
"""Who waits for a process that is gone would do so for many minutes."""
TOLERANCE = 1e-5
"""Relative, of a loss: sums of float32 in another order (measured: 2e-7)."""


def family(history: History) -> list[psutil.Process]:
    """Return the launcher and its two workers, the first of them first.

    The first may have begun before the launcher starts the second.
    """
    pid = process.pid_of(history.folder.process)
    assert pid is not None
    launcher = psutil.Process(pid)
    deadline = time.monotonic() + WAIT_S
    while len(workers := by_rank(launcher)) < 2:
        assert time.monotonic() < deadline, launcher.children()
        time.sleep(0.05)
    return [launcher, *workers]


def by_rank(launcher: psutil.Process) -> list[psutil.Process]:
    found = {}
    for child in launcher.children():
        with suppress(psutil.NoSuchProcess):  # what it asks of the machine is gone in a moment
            found[child.environ().get("RANK")] = child
    return [found[rank] for rank in ("0", "1") if rank in found]


def all_gone(members: list[psutil.Process]) -> bool:
    gone, alive = psutil.wait_procs(members, timeout=GONE_WITHIN_S)
    return not alive and len(gone) == len(members)


@pytest.fixture(scope="module")
def recipe(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two processes of two rows each; sixteen rows to learn from, four held out."""
    rows = [
        {"prompt": f"name : {place} | area : {area}", "completion": f"{place} is in the {area} ."}
        for place in ["Cotto", "The Mill", "Zizzi", "Aromi", "The Vaults"]
        for area in ["riverside", "city centre", "old town", "harbour"]
    ]
    file = tmp_path_factory.mktemp("data") / "places.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Recipe.from_dict(
        {
            "name": "together",
            "model": {"source": str(tiny_llama)},
            "precision": "fp32",
            "data": {"files": [str(file)], "eval_fraction": 0.2},
            "adapter": {"r": 4},
            "training": {
                "max_steps": 6,
                "eval_steps": 3,
                "learning_rate": 0.01,
                "warmup_ratio": 0,
                "per_device_train_batch_size": 2,
            },
            "launch": {"num_processes": 2},
            "prompts": ["name : Zizzi | area : harbour"],
        }
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def together(home: Path, recipe: Recipe) -> History:
    studio = open_studio(home)
    return finish(studio, studio.training.start(recipe))


@pytest.fixture
def alone(home: Path, recipe: Recipe, signals_put_back: None) -> History:
    """The same run in one process, this one, with twice the rows in a batch."""
    training = replace(recipe.training, per_device_train_batch_size=4)
    settings = open_studio(home).settings
    changed = replace(recipe, training=training, launch=LaunchSpec())
    return work(create(settings.runs, changed), settings)


@pytest.fixture
def endless(home: Path, recipe: Recipe) -> History:
    """A run of two processes that is at its second step, and ends only when it is told to."""
    training = replace(recipe.training, max_steps=100_000, eval_steps=100_000)
    studio = open_studio(home)
    history = studio.runs.history(studio.training.start(replace(recipe, training=training)))
    until(history, holds=lambda found: found.step >= 2)
    return history


def test_two_processes_learn_what_one_learns_from_batches_of_twice_the_rows(
    together: History, alone: History
) -> None:
    log = together.folder.stdout.read_text(encoding="utf-8")
    assert (together.status, alone.status) == ("finished", "finished"), log
    for kind in ("steps", "evals"):
        found = [[event["loss"] for event in getattr(run, kind)] for run in (together, alone)]
        assert found[0] == pytest.approx(found[1], rel=TOLERANCE), kind
    assert together.steps[-1]["loss"] < together.steps[0]["loss"] - 0.1
    norms = [[event["grad_norm"] for event in run.steps] for run in (together, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=10 * TOLERANCE)
    seen = [run.steps[-1]["tokens_seen"] for run in (together, alone)]
    assert seen[0] == seen[1]
    left, right = (load_file(run.folder.newest_adapter() / "adapter_model.safetensors")
                   for run in (together, alone))  # fmt: skip
    assert all((left[name] - right[name]).abs().max() < TOLERANCE for name in left)


def test_only_the_first_process_writes_events(together: History) -> None:
    events = read_events(together.folder.events)[0]
    kinds = [event["event"] for event in events]
    stages = list(dict.fromkeys(event["stage"] for event in events if event["event"] == "stage"))
    assert stages == [
        "start", "tokenize", "load", "train", "evaluate", "sample", "snapshot", "save",
    ]  # fmt: skip
    assert [kinds.count(kind) for kind in ("started", "saved", "finished")] == [1, 1, 1]
    assert kinds[-2:] == ["saved", "finished"]
    assert [event["step"] for event in together.steps] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in together.evals] == [0, 3, 6]
    assert "Traceback" not in together.folder.stdout.read_text(encoding="utf-8")
    assert together.folder.failures() == []


def test_two_processes_go_on_from_a_checkpoint_to_the_end_they_would_have_come_to(
    home: Path, together: History
) -> None:
    """A copy of the run, as it lay there after a crash behind its first checkpoint."""
    whole, copy = together.folder, together.folder.path.with_name("crashed-1")
    shutil.copytree(whole.path, copy)
    shutil.rmtree(copy / "adapter")
    shutil.rmtree(copy / "checkpoints" / "checkpoint-6")
    lines = whole.events.read_text(encoding="utf-8").splitlines(keepends=True)
    kinds = [event["event"] for event in read_events(whole.events)[0]]
    (copy / "events.jsonl").write_text("".join(lines[: kinds.index("checkpoint") + 1]))
    studio = open_studio(home)
    studio.training.resume("crashed-1")
    again = finish(studio, "crashed-1")
    assert again.status == "finished", again.folder.stdout.read_text(encoding="utf-8")
    for kind in ("steps", "evals"):
        found = [[event["loss"] for event in getattr(run, kind)] for run in (again, together)]
        assert found[0] == found[1], kind
    left, right = (
        (run.folder.adapter / "adapter_model.safetensors").read_bytes() for run in (again, together)
    )
    assert left == right


def test_a_stop_reaches_both_at_the_same_step_and_keeps_what_was_learned(
    home: Path, endless: History
) -> None:
    members, asked = family(endless), time.monotonic()
    studio = open_studio(home)
    studio.training.stop(endless.folder.id, keep=True)
    finish(studio, endless.folder.id)
    assert all_gone(members)
    assert time.monotonic() - asked < GONE_WITHIN_S
    assert endless.update().status == "stopped"
    assert endless.ending["kept"] is True
    assert endless.folder.newest_adapter() == endless.folder.adapter
    assert "Traceback" not in endless.folder.stdout.read_text(encoding="utf-8")


@pytest.mark.parametrize("killed", [0, 1])
def test_the_others_end_soon_when_one_process_is_killed(
    home: Path, endless: History, killed: int
) -> None:
    members, when = family(endless), time.monotonic()
    os.kill(members[1 + killed].pid, signal.SIGKILL)
    assert all_gone(members)
    assert time.monotonic() - when < GONE_WITHIN_S
    # The first process is the one that writes: killed, it cannot say so.
    assert endless.update().status == ("lost", "failed")[killed]
    assert endless.cause is not None
    if killed:
        assert endless.cause.key == "launch.process_lost"
    assert open_studio(home).runs.active() is None


def test_workers_end_by_themselves_when_their_launcher_is_killed(endless: History) -> None:
    members = family(endless)
    os.kill(members[0].pid, signal.SIGKILL)
    assert all_gone(members)
    assert endless.update().status in ("lost", "failed")


def test_a_run_that_is_dropped_while_it_prepares_ends_with_all_its_processes(
    home: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It prepares for so long that a machine may stand still before it is dropped.
    monkeypatch.setattr(process, "WORKER", "slow_worker")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("SLOW", "start:sleep")
    studio = open_studio(home)
    run = studio.training.start(recipe)
    history = studio.runs.history(run)
    until(history, holds=lambda found: found.stage)
    members = family(history)
    studio.training.stop(run, keep=False)
    assert all_gone(members)
    assert (history.update().status, history.step) == ("stopped", 0)
    assert history.cause is None
    assert history.folder.newest_adapter() is None


def test_every_process_needs_a_whole_batch(recipe: Recipe) -> None:
    from lora_studio.training.session import _misfits

    report = SimpleNamespace(tokens_longest=9)
    prepared: Any = SimpleNamespace(train=range(16), report=report)
    info: Any = SimpleNamespace(context_length=None)
    for rows, expected in ((8, []), (9, ["launch.rows_under_batch"])):
        training = replace(recipe.training, per_device_train_batch_size=rows)
        problems = _misfits(replace(recipe, training=training), prepared, info)
        assert [problem.key for problem in problems] == expected


def free_port() -> int:
    """Return a port below those that the system lends to whoever asks for any."""
    for port in range(20_000 + os.getpid() % 10_000, 32_768):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def test_two_machines_train_as_two_processes_of_one_do(
    recipe: Recipe, together: History, tmp_path: Path
) -> None:
    """Two machines that are one: a home folder each, as the commands of a cluster start them."""
    port = free_port()
    studios, runs = [], []
    for rank in (0, 1):
        launch = LaunchSpec(
            num_processes=2, num_machines=2, machine_rank=rank, main_process_ip="127.0.0.1",
            main_process_port=port,
        )  # fmt: skip
        studios.append(open_studio(tmp_path / f"machine-{rank}"))
        runs.append(studios[rank].training.start(replace(recipe, launch=launch)))
    first, second = (finish(studio, run) for studio, run in zip(studios, runs, strict=True))
    for history in (first, second):
        log = history.folder.stdout.read_text(encoding="utf-8")
        assert history.status == "finished", log
        found = [event["loss"] for event in history.steps]
        assert found == pytest.approx([event["loss"] for event in together.steps], rel=TOLERANCE)
    assert first.folder.newest_adapter() == first.folder.adapter
    assert second.folder.newest_adapter() is None
    assert [len(history.samples) for history in (first, second)] == [3, 0]
