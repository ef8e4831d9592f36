"""What the chat process loads for a question: the base once, and those who are asked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answering import ASK, make_adapter

from lora_studio.cases.machine import Machine
from lora_studio.chat.request import Pane, Sampling
from lora_studio.child import InProcess
from lora_studio.errors import StudioError
from lora_studio.library.names import PEFT, Origin, write_origin
from lora_studio.runs.accelerator import Job
from lora_studio.settings import Settings
from lora_studio.studio import Studio

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]
NAMES = ("poems-a1", "tales-a1")
FIRST, SECOND = NAMES


@pytest.fixture
def base(tmp_path: Path, tiny_llama: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


@pytest.fixture
def studio(tmp_path: Path, base: Path) -> Studio:
    settings = Settings(home=tmp_path / "home")
    for seed, name in enumerate(NAMES):
        make_adapter(base, settings.adapters / name / PEFT, seed=seed)
        about = {"of": f"{name}.zip", "source": str(base), "created": time.time()}
        write_origin(settings.adapters / name, Origin(kind="zip", **about))
    return Studio(settings, Machine.open(settings, isolated=False))


@pytest.fixture
def fetched(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the sources that are fetched from now on."""
    found: list[str] = []
    fetch = studio.models.fetch

    def noted(source: str) -> Iterator[dict[str, Any]]:
        found.append(source)
        return fetch(source)

    monkeypatch.setattr(studio.models, "fetch", noted)
    return found


def ask(studio: Studio, *panes: str | None, name: str = FIRST) -> list[str]:
    """Ask and return who is attached."""
    asked = [Pane(adapter=pane, messages=ASK) for pane in panes]
    *_, last = studio.answers.ask(name, asked, Sampling(max_new_tokens=1))
    assert last["done"] is True
    return list(studio._machine.chat._target._loaded.adapters)


def test_a_base_is_fetched_once_for_as_long_as_the_chat_process_lives(
    studio: Studio, base: Path, fetched: list[str]
) -> None:
    pane = Pane(adapter=FIRST, messages=ASK)
    ask(studio, None, FIRST)
    assert fetched == [str(base)]
    ask(studio, SECOND, name=SECOND)
    list(studio.answers.render(FIRST, [pane]))
    list(studio.answers.score(FIRST, [Pane(messages=ASK, continues="Paris")], [None, FIRST]))
    assert fetched == [str(base)]
    studio._machine.chat.close()
    ask(studio, FIRST)
    assert fetched == [str(base)] * 2


def test_a_base_that_is_gone_is_fetched_anew(
    studio: Studio, base: Path, tmp_path: Path, fetched: list[str]
) -> None:
    ask(studio, FIRST)
    key = studio._machine.chat.pid, str(base)
    studio._machine.bases[key] = tmp_path / "cleaned up"
    ask(studio, FIRST)
    assert fetched == [str(base)] * 2
    assert studio._machine.bases[key] == base


@pytest.mark.parametrize("before", ["load", "generate"])
def test_a_training_that_comes_in_between_has_the_accelerator_to_itself(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    accelerator, training = studio._machine.accelerator, Job("training", ("a-run-1",))
    call = InProcess.call

    def late(self: InProcess, method: str, **asked: Any) -> Any:
        if method == before:
            with accelerator.guard():
                studio.workers.free_accelerator()
                accelerator.assign(training, os.getppid())
        return call(self, method, **asked)

    with monkeypatch.context() as patch:
        patch.setattr(InProcess, "call", late)
        with pytest.raises(StudioError) as caught:
            ask(studio, FIRST)
    assert caught.value.key == "chat.child_closed"
    assert not studio._machine.chat.alive
    assert accelerator.holder() == training
    accelerator.clear()
    assert ask(studio, FIRST) == [FIRST]


def test_those_who_are_asked_are_attached_and_nobody_else(studio: Studio) -> None:
    assert ask(studio, None, SECOND) == [SECOND]
    assert ask(studio, SECOND, FIRST, None) == [SECOND, FIRST]
    mixed = Pane(mixture={SECOND: 0.0, FIRST: 1.0}, messages=ASK)
    *_, last = studio.answers.ask(FIRST, [mixed], Sampling(max_new_tokens=1))
    assert last["tokens"] == 1


def test_the_base_alone_is_asked_in_the_words_of_the_one_that_names_it(studio: Studio) -> None:
    assert ask(studio, None) == [FIRST]
