"""A stop while the model computes: in this process, where it comes at the same place each time."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainings import work
from transformers import LlamaModel

from lora_studio.recipe import Recipe
from lora_studio.runs import process
from lora_studio.runs.events import EventWriter, read_events
from lora_studio.runs.folder import RunFolder, create
from lora_studio.runs.history import History
from lora_studio.settings import Settings
from lora_studio.training import worker
from lora_studio.training.session import Session
from lora_studio.ui.language import Voice
from lora_studio.ui.live import state

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
pytestmark = [
    pytest.mark.usefixtures("one_thread", "signals_put_back"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

Holds = Callable[[History], bool]
Ask = Callable[[RunFolder], object]
PASS, SAVE = (LlamaModel, "forward"), (Session, "save")
WAIT_S = 120.0
ONE_ROW = "training.per_device_train_batch_size=1"


class Asks:
    """Somebody who looks at a run whenever one of its functions is called, and asks it to end once.

    Args:
        folder: The run.
        holds: When to ask.
        ask: How.
    """

    def __init__(self, folder: RunFolder, holds: Holds, ask: Ask) -> None:
        self.history = History(folder)
        self._holds = holds
        self._ask = ask
        self.step: int | None = None
        self.evals = 0
        self.calls = 0
        """Those that came after."""

    def look(self) -> None:
        found = self.history.update()
        if self.step is not None:
            self.calls += 1
        elif self._holds(found):
            self.step, self.evals = found.step, len(found.evals)
            self._ask(found.folder)


Train = Callable[..., Asks]


def keep(folder: RunFolder) -> None:
    process.request_stop(folder, "keep")


def pause(folder: RunFolder) -> None:
    process.request_stop(folder, "pause")


def signal_to_end(_: RunFolder) -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def train(
    settings: Settings, tiny_llama: Path, pairs: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Train:  # fmt: skip
    """Train as a worker does what somebody asks to end within a function, by default a pass."""
    # It would end this process.
    monkeypatch.setattr(worker, "_leave", lambda *_, **__: pytest.fail("the run was broken off"))

    def train(
        holds: Holds,
        *changes: str,
        ask: Ask = keep,
        within: tuple[type, str] = PASS,
    ) -> Asks:
        tree = {
            "model": {"source": str(tiny_llama)}, "precision": "fp32", "adapter": {"r": 4},
            "data": {"files": [str(pairs)], "eval_fraction": 0.4}, "prompts": ["Who?"],
            "training": {"max_steps": 50, "eval_steps": 1000},
        }  # fmt: skip
        folder = create(tmp_path / "runs", Recipe.from_dict(tree).changed(changes))
        asks, called = Asks(folder, holds, ask), getattr(*within)

        @functools.wraps(called)
        def looked_at(*arguments: Any, **named: Any) -> Any:
            asks.look()
            return called(*arguments, **named)

        monkeypatch.setattr(*within, looked_at)
        work(folder, settings)
        asks.history.update()
        return asks

    return train


def at(stage: str, *, step: int = 0) -> Holds:
    return lambda found: found.stage.get("stage") == stage and found.step >= step


def said(history: History) -> str:
    return str(state(history, Voice(None))["state"])


@pytest.mark.parametrize("stage", ["evaluate", "sample"])
def test_a_stop_before_the_first_step_waits_for_no_evaluation_and_no_answer(
    train: Train, stage: str
) -> None:
    # Trained bias vectors are not switched off with the adapter, so this run measures first.
    asks = train(at(stage), ONE_ROW, "adapter.bias=lora_only")
    history = asks.history
    assert (history.status, history.step, asks.calls) == ("stopped", 0, 0)
    assert (len(history.evals), history.samples) == (asks.evals, [])
    assert "nothing to keep" in str(history.cause)


def test_a_stop_in_a_step_ends_after_it_and_keeps_what_was_learned(train: Train) -> None:
    changes = ["training.gradient_accumulation_steps=4", ONE_ROW, "data.eval_fraction=0"]
    asks = train(at("train", step=1), *changes)
    history = asks.history
    assert asks.step == 1
    assert (history.step, asks.calls) == (1, 0)
    assert (history.status, history.cause) == ("stopped", None)
    assert history.ending["kept"] is True
    assert history.folder.newest_adapter() == history.folder.adapter
    assert f"Stopped at step {history.step}" in said(history)


@pytest.mark.parametrize("step", [1, 2])
def test_a_stop_in_an_evaluation_between_steps_keeps_what_was_learned(
    train: Train, step: int
) -> None:
    asks = train(at("evaluate", step=step), "training.eval_steps=1", ONE_ROW)
    history = asks.history
    assert (history.step, len(history.evals), asks.calls) == (step, asks.evals, 0)
    assert history.ending["kept"] is True
    assert history.folder.newest_adapter() == history.folder.adapter


def test_a_paused_run_has_a_checkpoint_of_its_last_step(train: Train) -> None:
    asks = train(at("train", step=2), "data.eval_fraction=0", ask=pause)
    history = asks.history
    assert asks.step == 2
    assert history.step in (2, 3)
    assert (history.status, history.cause) == ("stopped", None)
    assert history.ending["paused"] is True
    assert history.folder.checkpoint_steps()[-1] == history.step
    assert not history.folder.adapter.exists()
    assert said(history) == f"Paused at step {history.step}. It can go on from there."


# While a worker prepares, a thread of its own looks for a stop


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create(tmp_path / "runs", Recipe(name="a run"))


def test_no_step_comes_before_the_end_that_a_thread_has_begun(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, may_leave = threading.Event(), threading.Event()

    def leave(*_: Any, **__: Any) -> None:
        leaves.set()
        assert may_leave.wait(WAIT_S)

    monkeypatch.setattr(worker, "_leave", leave)
    keep(run)
    with EventWriter(run.events) as events:
        preparation = worker.Preparation(run, events)
        assert leaves.wait(WAIT_S)
        trains = threading.Thread(target=preparation.over)
        trains.start()
        trains.join(0.2)
        assert trains.is_alive()
        may_leave.set()
        trains.join(WAIT_S)
    assert not trains.is_alive()


def test_a_process_that_ends_goes_on_with_that_however_often_it_is_asked(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second request comes while the first is telling a webhook."""
    left: list[int] = []
    monkeypatch.setattr(process, "end_children", lambda: None)
    monkeypatch.setattr(worker.ranks, "leave", left.append)
    with EventWriter(run.events) as events:
        preparation = worker.Preparation(run, events)
        preparation.over()
        process.request_stop(run, "discard")

        def ask_again() -> None:
            preparation.asked_to_end()
            assert left == []

        events.at_end = ask_again
        preparation.asked_to_end()
    assert left == [0]
    assert [event["event"] for event in read_events(run.events)[0]] == ["stopped"]


@pytest.mark.parametrize("ask", [keep, signal_to_end])
def test_a_stop_while_saving_lets_it_finish(train: Train, ask: Ask) -> None:
    asks = train(at("save"), "training.max_steps=1", ask=ask, within=SAVE)
    assert asks.step == 1
    assert asks.history.status == "finished"
    assert asks.history.folder.newest_adapter() == asks.history.folder.adapter
