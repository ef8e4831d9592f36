"""What ties the tabs together: who waits for the model, and what follows when an entry opens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from kept import write_run
from workers import open_studio

from lora_studio.errors import StudioError
from lora_studio.studio import Studio
from lora_studio.ui import render
from lora_studio.ui.compare import CompareTab
from lora_studio.ui.compare_panes import BASE, MIXTURE
from lora_studio.ui.language import Voice
from lora_studio.ui.library import LibraryTab
from lora_studio.ui.page import build_page
from lora_studio.ui.ship_panel import ShipPanel
from lora_studio.ui.visitors import Door

NOBODY = SimpleNamespace(cookies={}, headers={})


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The event loops that Gradio makes for a page are closed."""
    make, made = asyncio.new_event_loop, []
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(make()) or made[-1])
    yield
    asyncio.set_event_loop(None)
    for loop in made:
        loop.close()


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A studio with two runs of one base."""
    studio = open_studio(tmp_path)
    for name in ("poems", "news"):
        write_run(studio.settings, name)
    yield studio
    studio.close()


def test_nothing_that_asks_the_model_has_a_limit_of_its_own(loops: None, studio: Studio) -> None:
    # Gradio keeps the lowest limit of an id for all its events, as soon as one of them has run.
    limits = [
        event.concurrency_limit
        for event in build_page(studio).fns.values()
        if event.concurrency_id == "gpu"
    ]
    assert len(limits) > 8
    assert set(limits) == {None}


def test_what_follows_a_choice_follows_one_that_is_made_meanwhile_too(
    loops: None, studio: Studio
) -> None:
    # Gradio throws away what comes while an event is pending, unless its mode says otherwise.
    once = [
        event.name
        for event in build_page(studio).fns.values()
        if event.trigger_mode == "once"
        and {name for _, name in event.targets} & {"change", "input", "tick"}
        and (event.inputs or "tick" in {name for _, name in event.targets})
    ]
    assert once == []


def works(tab: LibraryTab | CompareTab) -> list[tuple[Any, Any, list[Any]]]:
    """What begins something that takes long, beside what ends it and what else begins it."""
    if isinstance(tab, LibraryTab):
        begin = [tab.ship.start, tab.ship.look, tab.ship.push]
        return [(one, tab.ship.stop, begin) for one in begin]
    batch, measure = tab.batch, tab.measure
    return [
        (measure.start, measure.stop, [measure.start]),
        *((one, batch.stop, [batch.start, batch.more]) for one in (batch.start, batch.more)),
    ]


def test_what_begins_work_can_be_clicked_again_only_when_its_event_has_ended(
    loops: None, studio: Studio
) -> None:
    with gr.Blocks() as page:
        library, compare = LibraryTab(Door(studio)), CompareTab(Door(studio))
        library.wire(gr.Textbox())
    events = list(page.fns.values())
    for click, stop, begin in [*works(library), *works(compare)]:
        (work,) = [one for one in events if (click._id, "click") in one.targets]
        (ready,) = [one for one in events if one.trigger_after == work._id and stop in one.outputs]
        assert ready.outputs == [*begin, stop]
        given = ready.fn(NOBODY)
        assert [one.interactive for one in given] == [*[True] * len(begin), False]


def test_however_an_entry_is_opened_nothing_of_the_last_one_stays(
    loops: None, studio: Studio
) -> None:
    with gr.Blocks() as page:
        tab = LibraryTab(Door(studio))
        tab.wire(gr.Textbox())
    follows = [one for one in page.fns.values() if (tab.sheet._id, "change") in one.targets]
    assert len(follows) == 1
    assert follows[0].outputs == [tab.xray, *tab.ship.shown]
    for opened in ("news-1", "", None):
        picture, part, *rest = tab.show(opened)
        assert (picture, part.visible) == ("", bool(opened))
        assert not any(rest)
        assert len(rest) == len(tab.ship.shown) - 1
    sets = [one.outputs for one in page.fns.values() if tab.sheet in one.outputs]
    assert sets
    assert not any(tab.xray in outputs for outputs in sets)


def test_an_entry_begins_without_what_was_asked_of_the_last_one(loops: None) -> None:
    settings = SimpleNamespace(signs_in=False)
    with gr.Blocks():
        panel = ShipPanel(SimpleNamespace(main=SimpleNamespace(settings=settings)), gr.HTML())  # type: ignore[arg-type]
    shown = dict(zip(panel.shown, panel.show("news-1"), strict=True))
    assert shown[panel.repository] == ""
    assert [shown[box] for box in (panel.merged, panel.public, panel.updates)] == [False] * 3


class Shipping:
    """Says how far it is, and what came of it or why nothing did."""

    def __init__(self, error: StudioError | None) -> None:
        self.error = error

    def work(self, *_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"stage": "upload", "done": 5_000_000, "total": 10_000_000}
        if self.error:
            raise self.error
        about = {"path": "/there", "bytes": 9, "notes": [], "check": None, "again": None}
        there = {"address": "https://hub/a", "private": True, "deleted": []}
        yield {"result": about | there}

    export = push = work


@pytest.mark.parametrize("error", [None, StudioError("shipping.stopped")])
def test_work_goes_by_its_adapters_name_as_another_entry_may_be_open(
    error: StudioError | None,
) -> None:
    panel = ShipPanel.__new__(ShipPanel)
    studio = SimpleNamespace(shipping=Shipping(error))
    panel.door = SimpleNamespace(enter=lambda _: studio)  # type: ignore[assignment]
    request: Any = NOBODY
    exported = [*panel.export("<i>sea</i>", "zip", None, "q8_0", None, request)][1:]
    pushed = [*panel.bring(request, None, "<i>sea</i>", "o/sea", False, False, False, "")][1:]
    for yielded in (*exported, *pushed):
        assert "&lt;i&gt;sea&lt;/i&gt;" in "".join(one for one in yielded if isinstance(one, str))
    assert "5 MB / 10 MB" in exported[0][1]


@pytest.mark.parametrize("error", [None, StudioError("shipping.stopped")])
def test_the_last_word_of_work_leaves_the_buttons_as_they_are(error: StudioError | None) -> None:
    panel = ShipPanel.__new__(ShipPanel)
    studio = SimpleNamespace(shipping=Shipping(error))
    panel.door = SimpleNamespace(enter=lambda _: studio)  # type: ignore[assignment]
    request: Any = NOBODY
    for shown in (
        panel.export("sea", "zip", None, "q8_0", None, request),
        panel.bring(request, None, "sea", "o/sea", False, False, False, ""),
    ):
        begun, *rest = shown
        assert [button.interactive for button in begun[-4:]] == [False, False, False, True]
        assert all(yielded[-4:] == (gr.skip(),) * 4 for yielded in rest)


@pytest.mark.parametrize("stage", ["download", "tool", "copy", "save", "gguf", "zip", "upload"])
def test_what_is_counted_in_bytes_is_told_in_megabytes(stage: str) -> None:
    event = {"stage": stage, "done": 12_345_678, "total": 269_060_552}
    assert render.stage_sentence(event, Voice(None)).endswith(" 12.3 MB / 269 MB")
    rows = render.stage_sentence(event | {"stage": "evaluate"}, Voice(None))
    assert rows.endswith(" 12,345,678 / 269,060,552")


def come_back(tab: CompareTab, run: str | None, *chosen: Any) -> list[Any]:
    return tab.come_back(NOBODY, run, *chosen)  # type: ignore[arg-type]


def test_who_comes_back_to_compare_finds_what_came_in_since(loops: None, studio: Studio) -> None:
    with gr.Blocks():
        tab = CompareTab(Door(studio))
    chosen = ["poems-1", BASE, "news-1", None, ["news-1", "poems-1"], [], [], []]
    write_run(studio.settings, "tales")
    _, _, *offered = come_back(tab, "poems-1", *chosen)
    for box in offered:
        assert "tales-1" in [value for _, value in box["choices"]]
        assert "value" not in box  # what is chosen stays
    studio.library.delete(["news-1"])
    _, _, *offered = come_back(tab, "poems-1", *chosen)
    values = [box.get("value", "stays") for box in offered]
    assert values == ["stays", "stays", "tales-1", "stays", ["poems-1"], "stays", "stays", "stays"]
    assert MIXTURE in [value for _, value in offered[0]["choices"]]
    skipped = come_back(tab, None, *chosen)[2:]
    assert skipped == [gr.skip()] * len(tab.offered)


def test_an_adapter_that_is_chosen_while_the_list_is_fetched_stays_chosen(
    loops: None, studio: Studio
) -> None:
    with gr.Blocks():
        tab = CompareTab(Door(studio))
    request: Any = NOBODY
    chosen = ["poems-1", BASE, None, None, [], [], [], []]
    for box, _nothing, *_ in (
        tab.refreshed(request, "poems-1"),
        come_back(tab, "poems-1", *chosen),
    ):
        assert [value for _, value in box["choices"]] == ["news-1", "poems-1"]
        assert "value" not in box
    # What is gone gives its place up, who has chosen nothing begins with the newest.
    assert tab.refreshed(request, "gone-1")[0]["value"] == "news-1"
    assert tab.refreshed(request, None)[0].value == "news-1"
    assert tab.choices(request, "poems-1")[0].value == "poems-1"


def test_another_adapter_ends_only_what_was_asked_of_the_last_one(
    loops: None, studio: Studio
) -> None:
    with gr.Blocks() as page:
        tab = CompareTab(Door(studio))
    events = list(page.fns.values())
    (describe,) = [one for one in events if one.fn == tab.describe]
    (follow,) = [one for one in events if one.trigger_after == describe._id]
    assert follow.fn == tab.follow_run
    assert follow.inputs[:3] == [tab.run, tab.floor, tab.blind]


def test_only_what_can_answer_is_offered_to_be_asked(loops: None, studio: Studio) -> None:
    with gr.Blocks():
        tab = CompareTab(Door(studio))
    folder = next(one for one in studio.runs.folders() if one.id == "news-1")
    (folder.path / "recipe.yaml").write_text("model: [", encoding="utf-8")
    box, nothing = tab.choices(NOBODY)  # type: ignore[arg-type]
    assert [value for _, value in box.choices] == ["poems-1"]
    assert nothing == ""


def test_who_has_nothing_to_compare_hears_what_to_do_first(loops: None, studio: Studio) -> None:
    with gr.Blocks():
        tab = CompareTab(Door(studio))
    studio.library.delete([entry.id for entry in studio.library.entries()])
    box, nothing = tab.choices(NOBODY)  # type: ignore[arg-type]
    assert (box.choices, box.value) == ([], None)
    assert Voice(None)("no_runs_yet") in nothing
