"""A stop in every phase of a real worker: how soon it ends, what is left, and what is said."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lora_studio.cases import training
from lora_studio.cases.machine import Machine
from lora_studio.recipe import Recipe
from lora_studio.runs import process
from lora_studio.runs.history import History
from lora_studio.settings import STARTER, Settings
from lora_studio.studio import Studio
from lora_studio.ui.language import Voice
from lora_studio.ui.live import state

pytestmark = [
    pytest.mark.usefixtures("nobody_left"),
    pytest.mark.slow,
    # PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

WAIT_S = 240.0
WITHIN_S = 40.0
"""Five seconds, and more for a machine that stands still at times; a phase takes ten minutes."""
Begin = Callable[..., History]
EARLY = ("training.eval_steps=1", "training.max_steps=50")


@pytest.fixture
def studio(settings: Settings) -> Studio:
    return Studio(settings, Machine.open(settings, isolated=False))


@pytest.fixture
def begin(studio: Studio, tiny_llama: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Start an endless run whose worker is slow in one phase, and wait until it is there."""
    monkeypatch.setattr(process, "WORKER", "slow_worker")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    def begin(
        slow: str, holds: Callable[[History], object], *changes: str, source: str = str(tiny_llama)
    ) -> History:
        monkeypatch.setenv("SLOW", slow)
        tree = {
            "model": {"source": source}, "precision": "fp32", "adapter": {"r": 4},
            "data": {"files": [str(pairs)], "eval_fraction": 0.4}, "prompts": ["Who?"],
            "training": {"max_steps": 100_000, "eval_steps": 1000},
        }  # fmt: skip
        run = studio.training.start(Recipe.from_dict(tree).changed(changes))
        history = studio.runs.history(run)
        until(history, holds)
        return history

    return begin


def until(history: History, holds: Callable[[History], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds(history.update()):
        log = history.folder.stdout
        assert not history.is_over, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, f"{history.status}, {history.stage}"
        time.sleep(0.02)


def at(stage: str) -> Callable[[History], bool]:
    return lambda history: history.stage.get("stage") == stage


def family_of(history: History) -> list[psutil.Process]:
    pid = process.pid_of(history.folder.process)
    assert pid is not None
    worker = psutil.Process(pid)
    return [worker, *worker.children(recursive=True)]


def lives(member: psutil.Process) -> bool:
    try:
        return member.status() != psutil.STATUS_ZOMBIE  # whom nobody waits for, as in a container
    except psutil.NoSuchProcess:
        return False


def all_gone(family: list[psutil.Process]) -> None:
    """Wait until none of them lives: a killed one takes its last breath when it gets a core."""
    deadline = time.monotonic() + WAIT_S
    while any(lives(member) for member in family):
        assert time.monotonic() < deadline, family
        time.sleep(0.02)


def gone_within(history: History, seconds: float, *, since: float) -> None:
    """Wait until a run is over and its process gone; see that it was so in time."""
    leave(history)
    assert time.monotonic() - since < seconds, f"{history.status}, {history.stage}"


def leave(history: History) -> None:
    """Wait until a run is over and its process gone."""
    deadline = time.monotonic() + WAIT_S
    while not history.update().is_over or process.is_running(history.folder.process):
        assert time.monotonic() < deadline, f"{history.status}, {history.stage}"
        time.sleep(0.02)


def said(history: History) -> str:
    return str(state(history, Voice(None))["state"])


# Before the first step


@pytest.mark.parametrize("slow", ["start:sleep", "tokenize:child", "load:stuck"])
def test_a_stop_while_preparing_ends_it_with_all_it_started(
    studio: Studio, begin: Begin, slow: str
) -> None:
    history = begin(slow, at(slow.partition(":")[0]))
    if slow.endswith("child"):
        until(history, lambda found: len(family_of(found)) > 1)
    family, asked = family_of(history), time.monotonic()
    studio.training.stop(history.folder.id, keep=True)
    gone_within(history, WITHIN_S, since=asked)
    assert history.status == "stopped"
    assert "nothing to keep" in str(history.cause)
    assert said(history) == "Stopped."
    all_gone(family)


def test_a_stop_while_the_model_is_downloaded_ends_the_download(
    studio: Studio, begin: Begin
) -> None:
    history = begin("pip", at("download"), source=STARTER)
    until(history, lambda found: len(family_of(found)) > 1)
    family, asked = family_of(history), time.monotonic()
    studio.training.pause(history.folder.id)
    gone_within(history, WITHIN_S, since=asked)
    assert history.status == "stopped"
    assert "nothing to keep" in str(history.cause)
    all_gone(family)


# While it trains


def test_a_polite_signal_from_outside_pauses_a_run_that_has_learned(begin: Begin) -> None:
    history = begin("", lambda found: found.step >= 2)
    pid = process.pid_of(history.folder.process)
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    leave(history)
    assert history.ending["paused"] is True
    assert history.folder.checkpoint_steps()[-1] == history.step


# What does not listen


def test_a_run_that_hangs_is_discarded_by_force(studio: Studio, begin: Begin) -> None:
    history = begin("train:stuck", at("train"))
    asked = time.monotonic()
    studio.training.stop(history.folder.id, keep=False)
    gone_within(history, WITHIN_S, since=asked)
    assert (history.status, history.cause) == ("stopped", None)
    assert said(history) == "Discarded."
    assert history.folder.newest_adapter() is None


def test_who_asks_a_hanging_run_twice_keeps_its_last_checkpoint(
    studio: Studio, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = begin("checkpoint:stuck", lambda found: found.folder.checkpoint_steps(), *EARLY)
    run = history.folder.id
    monkeypatch.setattr(training, "PATIENCE_S", 0.5)
    studio.training.stop(run, keep=True)
    assert not history.update().is_over  # it may only be slow
    time.sleep(0.6)
    asked = time.monotonic()
    studio.training.stop(run, keep=True)
    gone_within(history, WITHIN_S, since=asked)
    assert history.status == "lost"
    assert history.folder.newest_adapter() is not None
    assert "is kept" in str(history.cause)


# The end


def test_a_run_discarded_while_saving_leaves_nothing(studio: Studio, begin: Begin) -> None:
    history = begin("save:sleep", at("save"), "training.max_steps=1")
    asked = time.monotonic()
    studio.training.stop(history.folder.id, keep=False)
    gone_within(history, WITHIN_S, since=asked)
    assert history.status == "stopped"
    left = {path.name for path in history.folder.path.iterdir()}
    assert not left & {"adapter", "adapter.partial", "checkpoints"}
