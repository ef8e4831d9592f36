"""A stop is obeyed wherever a question stands, and by nobody else's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from answering import ASK, make_adapter

from lora_studio.cases.machine import Machine
from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Pane, Sampling
from lora_studio.chat.tickets import Tickets
from lora_studio.errors import StudioError
from lora_studio.judging.batch import Asked
from lora_studio.judging.contenders import Contender
from lora_studio.judging.prompts import Prompt
from lora_studio.library.names import PEFT, Origin, write_origin
from lora_studio.settings import Settings
from lora_studio.studio import Studio

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]
NAME = "poems-a1"
PANES = [Pane(messages=ASK), Pane(adapter=NAME, messages=ASK)]
LONG = Sampling(max_new_tokens=300)


@pytest.fixture
def studio(tmp_path: Path, tiny_llama: Path) -> Studio:
    settings = Settings(home=tmp_path / "home")
    folder = settings.adapters / NAME
    make_adapter(tiny_llama, folder / PEFT, seed=1)
    source = {"of": "poems.zip", "source": str(tiny_llama), "created": time.time()}
    write_origin(folder, Origin(kind="zip", **source))
    return Studio(settings, Machine.open(settings, isolated=False))


def ends(events: Iterator[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(event["reason"], event["tokens"]) for event in events if event.get("done") is True]


def meanwhile(monkeypatch: pytest.MonkeyPatch, does: Callable[[], None]) -> None:
    """Let something happen while the model is being loaded."""
    load = Engine.load

    def loading(*args: Any, **kwargs: Any) -> None:
        load(*args, **kwargs)
        does()

    monkeypatch.setattr(Engine, "load", loading)


def test_while_the_model_loads_a_stop_is_kept_for_the_answer(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, lambda: studio.answers.stop("tab"))
    assert ends(studio.answers.ask(NAME, PANES, LONG, asker="tab")) == [("stopped", 0)] * 2
    monkeypatch.undo()
    short = Sampling(max_new_tokens=4)
    assert ends(studio.answers.ask(NAME, PANES, short, asker="tab")) == [("length", 4)] * 2


def test_in_the_line_a_stop_ends_the_wait_and_disturbs_nobody(studio: Studio) -> None:
    first = studio.answers.ask(NAME, PANES, Sampling(max_new_tokens=40), asker="one")
    while "mode" not in next(first):
        pass
    second = studio.answers.ask(NAME, PANES, LONG, asker="two")
    while "place" not in next(second):
        pass
    studio.answers.stop("two")
    assert ends(second) == [("stopped", 0)] * 2
    assert ends(first) == [("length", 40)] * 2


def test_who_waits_to_measure_stops_nobody_elses_measurement(studio: Studio) -> None:
    first = studio.answers.ask(NAME, PANES, Sampling(max_new_tokens=4), asker="one")
    while "mode" not in next(first):
        pass
    second, third = (studio.measurements.evaluate(NAME, asker=who) for who in ("two", "three"))
    for waiting in (second, third):
        while "place" not in next(waiting):
            pass
    assert ends(first) == [("length", 4)] * 2
    while next(second).get("stage") != "measure_probe":
        pass
    studio.measurements.stop("three")
    with pytest.raises(StudioError, match="The measurement was stopped"):
        list(third)
    *_, last = second
    assert last["result"].forgetting


def test_a_stop_between_two_parts_of_a_list_ends_the_list(studio: Studio, tiny_llama: Path) -> None:
    asked = Asked(
        base=str(tiny_llama),
        contenders=(Contender(), Contender(adapter=NAME)),
        prompts=tuple(Prompt.of(f"Question {number}?") for number in range(20)),
        sampling=Sampling(max_new_tokens=2),
    )
    batch = studio.judging.begin(asked)
    for event in studio.judging.fill(batch, NAME, asker="tab"):
        if event["stage"] == "batch" and event["done"] == 8:
            studio.answers.stop("tab")
    assert batch.done == 8


def test_a_stop_that_comes_before_its_answer_ends_that_one_alone(tiny_llama: Path) -> None:
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", {})
    engine.stop("a")
    short, base = Sampling(max_new_tokens=3), [Pane(messages=ASK)]
    assert ends(engine.generate(base, short, ticket="a")) == [("stopped", 0)]
    assert ends(engine.generate(base, short, ticket="b")) == [("length", 3)]
    assert ends(engine.generate(base, short)) == [("length", 3)]


def test_a_ticket_is_stopped_by_its_holder_as_long_as_it_is_held() -> None:
    tickets = Tickets()
    with tickets.held("a") as mine, tickets.held("b") as other:
        assert tickets.stop("a") == [mine]
        assert (mine.is_stopped, other.is_stopped) == (True, False)
        with tickets.held("a") as next_one:
            assert not next_one.is_stopped
    assert tickets.stop("a") == []
