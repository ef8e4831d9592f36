"""A worker that waits for its run: who gets it, when it ends, and that it is a worker like any."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from light_worker import ENVIRONMENT
from workers import finish, until

from lora_studio.cases.machine import Machine
from lora_studio.prediction import calibration
from lora_studio.recipe import Recipe
from lora_studio.runs import process, standby
from lora_studio.runs.accelerator import Job
from lora_studio.runs.folder import RunFolder, create
from lora_studio.runs.history import History
from lora_studio.runs.standby import StandBy
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.training.standby import WITHOUT_CUDA

pytestmark = [
    pytest.mark.usefixtures("nobody_left"),
    # PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

ROOT = Path(__file__).resolve().parents[1]
TOOK_IT = "a worker that was ready takes the run"
SECRET = "hf_no_eye_may_see_this"
WAIT_S = 60.0


def eventually(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pid_of(ready: StandBy) -> int | None:
    return ready._waiting.process.pid if ready._waiting is not None else None


def waits(ready: StandBy) -> int:
    """Return the pid of the worker that waits."""
    pid = pid_of(ready)
    assert pid is not None
    assert lives(pid)
    return pid


@pytest.fixture
def ready() -> Iterator[StandBy]:
    found = StandBy()
    yield found
    found.dismiss()


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers take a run as the real one does, and train nothing."""
    monkeypatch.setattr(process, "WORKER", "light_worker")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    found = create(tmp_path / "runs", Recipe(name="run"))
    yield found
    process.request_stop(found, "keep")
    process.end(found, grace_s=10)


def started_as(folder: RunFolder) -> dict[str, str]:
    """Return the environment that a light worker had when it began."""
    file = folder.path / ENVIRONMENT
    eventually(lambda: History(folder).update().stage)
    return dict(json.loads(file.read_text(encoding="utf-8")))


def has_taken(folder: RunFolder) -> bool:
    """Say whether a worker that waited has the run, once one has it."""
    started_as(folder)
    return TOOK_IT in folder.stdout.read_text(encoding="utf-8")


# The hand-over


def test_a_run_goes_to_the_worker_that_waits(
    light: None, ready: StandBy, folder: RunFolder
) -> None:
    process.make_ready(ready, environment={"LORA_STUDIO_HOME": "/elsewhere"})
    waiting = waits(ready)
    late = {"LORA_STUDIO_HOME": "/here", "LORA_STUDIO_MAX_TRAINING_S": "7", "HF_TOKEN": ""}
    assert process.start(folder, environment=late, ready=ready) == waiting
    assert pid_of(ready) is None
    assert process.pid_of(folder.process) == waiting
    assert started_as(folder).items() >= late.items()
    assert os.getsid(waiting) == os.getpgid(waiting) == waiting
    log = folder.stdout.read_text(encoding="utf-8")
    assert TOOK_IT in log
    assert "a line of its own" in log
    assert History(folder).update().status == "training"


def test_its_environment_is_that_of_one_that_is_started_now(
    light: None, ready: StandBy, folder: RunFolder, tmp_path: Path
) -> None:
    cold = create(tmp_path / "runs", Recipe(name="cold"))
    given = {"LORA_STUDIO_HOME": "/here", "HF_TOKEN": SECRET, "HF_HUB_OFFLINE": "1"}
    process.make_ready(ready, environment={"HF_HUB_OFFLINE": "1"})
    process.start(folder, environment=given, ready=ready)
    process.start(cold, environment=given)
    assert started_as(folder) == started_as(cold)
    assert (has_taken(folder), has_taken(cold)) == (True, False)
    process.end(cold)


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("OMP_NUM_THREADS", None, "1"),
        ("MALLOC_MMAP_THRESHOLD_", "65536", None),
        ("CUDA_VISIBLE_DEVICES", "0", "1"),
        ("HF_HUB_OFFLINE", "1", ""),
    ],
)
def test_a_run_of_another_environment_starts_anew_and_nobody_waits_any_more(
    light: None,
    ready: StandBy,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    before: str | None,
    now: str | None,
) -> None:
    monkeypatch.delenv(name, raising=False)
    process.make_ready(ready, environment={} if before is None else {name: before})
    waiting = waits(ready)
    environment = {} if now is None else {name: now}
    assert process.start(folder, environment=environment, ready=ready) != waiting
    assert not has_taken(folder)
    if now is not None:
        assert started_as(folder)[name] == now
    assert not lives(waiting)
    assert pid_of(ready) is None


def test_a_run_of_several_processes_takes_no_waiting_worker(
    light: None, ready: StandBy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that the environments are the same
    process.make_ready(ready, environment={})
    waiting = waits(ready)
    both = Recipe.from_dict({"launch": {"num_processes": 2}}).launch
    command = process._command([standby.FLAG], both)
    assert ready.take(command, process._environment(both, {})) is None
    assert not lives(waiting)


def test_a_token_is_in_no_file_and_on_no_command_line(
    light: None, ready: StandBy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    process.make_ready(ready, environment={"HF_TOKEN": SECRET, "LORA_STUDIO_WEBHOOK": SECRET})
    waiting = psutil.Process(waits(ready))
    assert SECRET not in str(waiting.environ())
    folder = create(tmp_path / "runs", Recipe(name="run"))
    process.start(folder, environment={"HF_TOKEN": SECRET}, ready=ready)
    assert started_as(folder)["HF_TOKEN"] == SECRET
    (folder.path / ENVIRONMENT).unlink()
    assert SECRET not in str([waiting.cmdline(), waiting.environ()])
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert folder.stdout in written
    assert not [file for file in written if SECRET.encode() in file.read_bytes()]
    process.end(folder)


def test_a_run_that_goes_on_goes_to_the_worker_that_waits(
    light: None, ready: StandBy, folder: RunFolder
) -> None:
    before = folder.events.write_text('{"time": 1.0, "event": "stage", "stage": "train"}\n')
    process.make_ready(ready, environment={})
    waiting = waits(ready)
    assert process.start(folder, environment={}, resume=True, ready=ready) == waiting
    assert process.written_before(folder.process) == before
    history = History(folder)
    eventually(lambda: history.update().status == "failed")
    assert history.cause is not None
    assert history.cause.key == "run.no_checkpoint"


# Those that die


def test_a_worker_that_died_while_it_waited_is_no_failure(
    light: None, ready: StandBy, folder: RunFolder
) -> None:
    process.make_ready(ready, environment={})
    waiting = waits(ready)
    os.kill(waiting, signal.SIGKILL)
    eventually(lambda: not lives(waiting))
    assert process.start(folder, environment={}, ready=ready) != waiting
    assert not has_taken(folder)
    assert History(folder).update().status == "training"


def test_a_worker_that_dies_as_it_is_given_its_run_is_no_failure(
    light: None, ready: StandBy, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.make_ready(ready, environment={})
    waiting = waits(ready)
    give = standby.hand_over

    def give_too_late(worker: subprocess.Popen[bytes], *about: Any) -> None:
        worker.kill()
        worker.wait()
        give(worker, *about)

    monkeypatch.setattr(standby, "hand_over", give_too_late)
    assert process.start(folder, environment={}, ready=ready) != waiting
    assert not has_taken(folder)


def test_a_run_whose_worker_dies_before_it_begins_is_lost(
    light: None, ready: StandBy, folder: RunFolder
) -> None:
    process.make_ready(ready, environment={})
    waiting = waits(ready)
    os.kill(waiting, signal.SIGSTOP)
    assert process.start(folder, environment={}, ready=ready) == waiting
    history = History(folder)
    assert history.update().status == "preparing"
    os.kill(waiting, signal.SIGKILL)
    eventually(lambda: history.update().is_over)
    assert history.status == "lost"
    assert history.cause is not None
    assert history.cause.key == "run.lost"


def test_a_full_disk_leaves_no_worker_without_a_run(
    light: None, ready: StandBy, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.make_ready(ready, environment={})
    waiting = waits(ready)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(process, "write_identity", full)
        process.start(folder, environment={}, ready=ready)
    assert not lives(waiting)


APP = """
import sys, time
from pathlib import Path
from lora_studio.runs import process
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.standby import StandBy
process.WORKER = "light_worker"
first, second = StandBy(), StandBy()
process.make_ready(first, environment={})
process.make_ready(second, environment={})
waiting = second._waiting.process.pid
print(process.start(RunFolder(Path(sys.argv[1])), environment={}, ready=first), waiting, flush=True)
time.sleep(60)
"""


def test_an_app_that_is_killed_takes_along_who_waits_and_leaves_who_trains(
    light: None, folder: RunFolder
) -> None:
    app = subprocess.Popen(
        [sys.executable, "-c", APP, str(folder.path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    with app:
        trains, waiting = map(int, cast(Any, app.stdout).readline().split())
        assert lives(waiting)
        app.kill()
    eventually(lambda: not lives(waiting))
    assert has_taken(folder)
    assert process.pid_of(folder.process) == trains


# Who waits for how long


def test_a_worker_that_nobody_needs_ends_after_a_while(
    light: None, ready: StandBy, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[threading.Timer] = []

    def begin(timer: threading.Timer) -> None:
        """Let it never run out by itself: a machine may stand still meanwhile."""
        timers.append(timer)

    monkeypatch.setattr(threading.Timer, "start", begin)
    process.make_ready(ready, environment={})
    waiting = waits(ready)
    process.make_ready(ready, environment={})
    assert waits(ready) == waiting
    first, second = timers
    assert first.finished.is_set()  # it was wanted meanwhile
    assert not second.finished.is_set()
    assert first.interval == second.interval == standby.IDLE_S
    first.function()  # it ran out while it was being cancelled
    assert lives(waiting)
    second.function()
    assert not lives(waiting)
    assert pid_of(ready) is None


def test_who_is_wanted_otherwise_makes_room(light: None, ready: StandBy) -> None:
    process.make_ready(ready, environment={})
    waiting = waits(ready)
    process.make_ready(ready, environment={"MALLOC_MMAP_THRESHOLD_": "65536"})
    assert waits(ready) != waiting
    assert not psutil.pid_exists(waiting)


class Wanted:
    """Stands in for the stand-by; says whether a worker would wait."""

    held_bytes = 0

    def __init__(self) -> None:
        self.environment: dict[str, str] | None = None

    def prepare(self, _command: list[str], environment: dict[str, str]) -> None:
        self.environment = environment

    def dismiss(self) -> None:
        self.environment = None


@pytest.fixture
def wanted() -> Wanted:
    return Wanted()


@pytest.fixture
def recipe(tiny_llama: Path, pairs: Path) -> Recipe:
    tree = {
        "model": {"source": str(tiny_llama)}, "precision": "fp32",
        "data": {"files": [str(pairs)], "eval_fraction": 0.2}, "adapter": {"r": 4},
        "training": {"max_steps": 40, "eval_steps": 20, "learning_rate": 0.02},
    }  # fmt: skip
    return Recipe.from_dict(tree)


def app_of(settings: Settings, ready: Any, recipe: Recipe) -> Studio:
    """Open a studio as an app does, on a machine that was measured and knows the model."""
    machine = replace(Machine.open(settings, isolated=False), ready=ready)
    calibration.keep(settings.cache, machine.hardware, 4, 1e10)
    studio = Studio(settings, machine)
    list(studio.models.inspect(recipe.model.source))
    return studio


def test_a_worker_waits_for_who_is_about_to_train(
    settings: Settings, wanted: Wanted, recipe: Recipe
) -> None:
    studio = app_of(settings, wanted, recipe)
    studio.training.make_ready(recipe)
    assert wanted.environment is not None
    assert wanted.environment["HF_HUB_OFFLINE"] == "1"
    assert "MALLOC_MMAP_THRESHOLD_" not in wanted.environment
    studio.close()
    assert wanted.environment is None


@pytest.mark.parametrize("change", ["precision=fp16", "model.source=/never/looked/at"])
def test_no_worker_waits_for_what_cannot_be_judged(
    settings: Settings, wanted: Wanted, recipe: Recipe, change: str
) -> None:
    studio = app_of(settings, wanted, recipe)
    studio.training.make_ready(recipe.changed([change]))
    assert wanted.environment is None


def test_no_worker_waits_beside_a_job_or_before_another_run(
    settings: Settings, wanted: Wanted, recipe: Recipe
) -> None:
    studio = app_of(settings, wanted, recipe)
    job = Job("training", ("other-1",))
    studio._machine.accelerator.assign(job, os.getpid())
    studio.training.make_ready(recipe)
    assert wanted.environment is None
    studio._machine.accelerator.release(job)
    run = studio.training.line_up(recipe)
    studio.training.make_ready(recipe)
    assert wanted.environment is None
    studio.line.remove(run)
    studio.training.make_ready(recipe)
    assert wanted.environment is not None


def test_a_worker_waits_only_where_memory_is_to_spare(
    settings: Settings, wanted: Wanted, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = app_of(settings, wanted, recipe)
    estimate = studio.planning.outlook(recipe).estimate
    assert estimate is not None
    enough = estimate.memory.needed + 3_000_000_000
    monkeypatch.setattr("lora_studio.cases.machine.free_memory", lambda: enough)
    studio.training.make_ready(recipe)
    assert wanted.environment is not None
    monkeypatch.setattr("lora_studio.cases.machine.free_memory", lambda: enough - 1)
    studio.training.make_ready(recipe)
    assert wanted.environment is None
    # What the worker that waits holds is the run's own.
    wanted.held_bytes = 1
    studio.training.make_ready(recipe)
    assert wanted.environment is not None
    after = studio.planning.outlook(recipe).estimate
    assert after is not None
    assert after.place.free == enough


def test_a_machine_is_measured_before_a_worker_imports(
    settings: Settings, wanted: Wanted, recipe: Recipe
) -> None:
    studio = app_of(settings, wanted, recipe)
    (settings.cache / "calibration.json").unlink()
    studio.training.make_ready(recipe)
    assert wanted.environment is None


def test_only_an_app_has_a_worker_wait_and_a_variable_forbids_it(settings: Settings) -> None:
    assert Machine.open(settings, isolated=False).ready is None
    assert Machine.open(settings, isolated=True).ready is not None
    told = Settings.from_environment(
        {"LORA_STUDIO_HOME": str(settings.home), "LORA_STUDIO_READY_WORKER": "0"}
    )
    assert Machine.open(told, isolated=True).ready is None


# The real worker


@pytest.mark.slow
def test_what_is_imported_beside_a_gpu_leaves_it_alone() -> None:
    script = f"""
import sys
from importlib import import_module
for name in {WITHOUT_CUDA!r}:
    import_module(name)
import torch
print(sorted({{"peft", "bitsandbytes"}} & set(sys.modules)), torch.cuda.is_initialized())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[] False\n"


@pytest.mark.slow
def test_a_ready_worker_trains_bit_for_bit_as_one_that_is_started_and_pauses_as_it_does(
    settings: Settings, recipe: Recipe
) -> None:
    """Weights are unquantised: started, a worker does not import bitsandbytes; ready, it has."""
    dora = recipe.changed(["adapter.use_dora=true", "training.lr_scheduler_type=constant"])
    # The same steps, which are not over before it is asked to pause.
    endless = dora.changed(["training.max_steps=100000"])
    studio = app_of(settings, StandBy(), dora)
    cold = finish(studio, studio.training.start(dora))
    studio.training.make_ready(endless)
    run = studio.training.start(endless)
    history = until(studio.runs.history(run), holds=lambda found: found.step >= 5)
    studio.training.pause(run)
    finish(studio, run)
    studio.close()
    assert (TOOK_IT in log_of(cold), TOOK_IT in log_of(history)) == (False, True)
    assert "Traceback" not in log_of(history)
    assert history.ending["paused"]
    assert history.resumable == history.step
    losses, of_cold = ([event["loss"] for event in found.steps] for found in (history, cold))
    assert losses[: len(of_cold)] == of_cold[: len(losses)]
    assert history.evals[0]["loss"] == cold.evals[0]["loss"]


def log_of(history: History) -> str:
    return history.folder.stdout.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_ready_worker_that_loads_is_ended_like_any(
    settings: Settings, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WORKER", "slow_worker")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("SLOW", "load:stuck")
    studio = app_of(settings, StandBy(), recipe)
    studio.training.make_ready(recipe)
    run = studio.training.start(recipe)
    history = until(
        studio.runs.history(run), holds=lambda found: found.stage.get("stage") == "load"
    )
    pid = process.pid_of(history.folder.process)
    assert pid is not None
    studio.training.stop(run, keep=True)
    assert finish(studio, run).status == "stopped"
    assert "nothing to keep" in str(history.cause)
    assert TOOK_IT in log_of(history)
    eventually(lambda: not lives(pid))
