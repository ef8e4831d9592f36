"""What happens to machines, done for real to a worker or a run: nothing that was kept is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from local_hub import REPOSITORY, Hub, be_patient
from safetensors.torch import load_file
from workers import WAIT_S, finish, open_studio, until

from lora_studio.cases.machine import Machine
from lora_studio.recipe import Recipe
from lora_studio.runs import checkpoints, process
from lora_studio.runs.folder import WEIGHTS, RunFolder, create
from lora_studio.runs.history import History
from lora_studio.settings import Settings
from lora_studio.studio import Studio

pytestmark = [
    pytest.mark.usefixtures("nobody_left"),
    # PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

DISK_BYTES = 24_000_000


@pytest.fixture
def recipe(tiny_llama: Path, pairs: Path) -> Recipe:
    """A run that writes a checkpoint every other step and ends only when it is told to."""
    tree = {
        "name": "faulty", "model": {"source": str(tiny_llama)}, "precision": "fp32",
        "data": {"files": [str(pairs)], "eval_fraction": 0}, "adapter": {"r": 4},
        "training": {"max_steps": 100_000, "save_steps": 2},
    }  # fmt: skip
    return Recipe.from_dict(tree)


@pytest.fixture(autouse=True)
def no_run_goes_on(tmp_path: Path) -> Iterator[None]:
    """End what a failed test leaves behind: another process started it, so nobody else does."""
    yield
    for file in tmp_path.glob("*/runs/*/process.json"):
        process.end(RunFolder(file.parent), grace_s=0.5)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that is soon full."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def with_checkpoint(history: History) -> bool:
    return bool(history.folder.checkpoint_steps()) and history.step > 3


def shortened(history: History, steps: int) -> None:
    """Have a run that goes on from its checkpoint end soon."""
    recipe = history.folder.read_recipe()
    short = replace(recipe, training=replace(recipe.training, max_steps=steps))
    history.folder.recipe.write_text(short.to_yaml(), encoding="utf-8")


@pytest.mark.slow
def test_a_disk_that_is_full_while_saving_ends_a_run_in_words_and_loses_no_checkpoint(
    small_disk: Path, recipe: Recipe
) -> None:
    studio = open_studio(small_disk)
    history = studio.runs.history(studio.training.start(recipe))
    until(history, holds=with_checkpoint)
    filler = small_disk / "filler"
    # Unbuffered: what a buffer still held would be written, and refused, once more by its close.
    with filler.open("wb", buffering=0) as out, pytest.raises(OSError, match="No space"):
        while True:
            out.write(b"\0" * 65_536)
    until(history, holds=lambda found: found.is_over)
    assert history.status == "failed"
    assert history.cause is not None
    assert history.cause.key == "training.disk_full"
    kept = history.resumable
    assert kept is not None
    assert checkpoints.is_whole(history.folder.checkpoint(kept))
    filler.unlink()
    studio.training.resume(history.folder.id)
    until(history, holds=lambda found: found.resumes == 1 and found.step > kept)
    studio.training.stop(history.folder.id, keep=True)
    until(history, holds=lambda found: found.is_over)
    assert history.ending["kept"]
    assert load_file(history.folder.adapter / WEIGHTS)


@pytest.mark.slow
def test_a_base_model_that_is_deleted_meanwhile_costs_nothing(
    tmp_path: Path, recipe: Recipe, tiny_llama: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    studio = open_studio(tmp_path / "home")
    history = studio.runs.history(
        studio.training.start(replace(recipe, model=replace(recipe.model, source=str(model))))
    )
    until(history, holds=lambda found: found.step > 1)
    shutil.rmtree(model)
    step = history.step
    until(history, holds=lambda found: found.step > step + 4)
    studio.training.stop(history.folder.id, keep=True)
    until(history, holds=lambda found: found.is_over)
    assert history.ending["kept"]
    assert load_file(history.folder.adapter / WEIGHTS)
    assert json.loads((history.folder.adapter / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.slow
def test_a_hub_that_goes_away_in_the_middle_of_the_weights_fails_a_run_and_not_the_next(
    tmp_path: Path, recipe: Recipe, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tiny_llama)
    be_patient(monkeypatch)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    settings = Settings(home=tmp_path / "home")
    studio = Studio(settings, Machine.open(settings, isolated=False))
    recipe = replace(recipe, model=replace(recipe.model, source=REPOSITORY))
    hub.breaks_at = ("model.safetensors", (tiny_llama / "model.safetensors").stat().st_size // 2)
    failed = finish(studio, studio.training.start(recipe))
    assert failed.status == "failed"
    assert failed.cause is not None
    assert failed.cause.key == "model.no_network"
    assert not list((tmp_path / "hub").rglob("snapshots/*/*.safetensors"))
    hub.come_back()
    again = finish(studio, studio.retrying.retry(failed.folder.id, ["training.max_steps=1"]))
    assert again.status == "finished"
    assert load_file(again.folder.adapter / WEIGHTS)
    hub.go_away()


@pytest.mark.slow
def test_app_and_worker_killed_together_leave_a_run_that_goes_on(
    tmp_path: Path, recipe: Recipe
) -> None:
    """The app is a process that started the run, and is killed with it."""
    home, file = tmp_path / "home", tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    app = subprocess.Popen(
        [sys.executable, "-m", "lora_studio", "train", str(file)],
        env=os.environ | {"LORA_STUDIO_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    studio = open_studio(home)
    deadline = time.monotonic() + WAIT_S
    while not studio.runs.all():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (history,) = studio.runs.all()
    until(history, holds=with_checkpoint)
    pid = process.pid_of(history.folder.process)
    assert pid is not None
    worker = psutil.Process(pid)
    app.kill()
    worker.kill()
    app.wait()
    worker.wait(timeout=WAIT_S)  # the system gives it back when its parent is gone
    assert not process.is_running(history.folder.process)
    until(history, holds=lambda found: found.status == "lost")
    kept = history.resumable
    assert kept is not None
    again = open_studio(home)
    shortened(history, kept + 3)
    again.training.resume(history.folder.id)
    until(history, holds=lambda found: found.resumes == 1 and found.is_over)
    assert (history.status, history.step) == ("finished", kept + 3)


def test_two_hundred_runs_are_listed_in_a_moment(
    settings: Settings, recipe: Recipe, thread_s: Callable[[], float]
) -> None:
    settings.runs.mkdir(parents=True)
    for number in range(200):
        folder = create(settings.runs, replace(recipe, name=f"run {number}"))
        told = [{"event": "stage", "stage": "train"}, {"event": "started", "total_steps": 200}]
        told += [{"event": "step", "step": at, "loss": 1.0} for at in range(1, 201)]
        told.append({"event": "finished"})
        lines = [json.dumps({"time": 1000.0} | event) for event in told]
        folder.events.write_text("\n".join([*lines, ""]), encoding="utf-8")
    studio = open_studio(settings.home)
    start = thread_s()
    found = studio.runs.all()
    taken = thread_s() - start
    assert len(found) == 200
    assert {history.status for history in found} == {"finished"}
    assert taken < 1.0
    start = thread_s()
    assert len(studio.runs.all()) == 200
    assert thread_s() - start < 0.2


def said_of(home: Path) -> str:
    """What the command line says where this is the home folder."""
    done = subprocess.run(
        [sys.executable, "-m", "lora_studio", "runs"],
        env=os.environ | {"LORA_STUDIO_HOME": str(home)},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


def test_a_home_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("a file where a folder should be", encoding="utf-8")
    assert said_of(home).startswith(f"Nothing can be kept in {home}: ")


def test_a_home_that_can_only_be_read_is_a_sentence(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert said_of(small_disk).startswith(f"Nothing can be kept in {small_disk}: ")
