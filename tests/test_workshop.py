"""Exports and uploads: one at a time, each in a process of its own, stopped by its owner."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kept import save, write_answering, write_elsewhere, write_run
from slow_bench import Bench

from lora_studio.cases import workshop as room
from lora_studio.cases.machine import Machine
from lora_studio.cases.workshop import Workshop
from lora_studio.child import Child
from lora_studio.errors import AdapterError, StudioError
from lora_studio.exports import record, whole
from lora_studio.library.uses import Uses
from lora_studio.settings import Settings
from lora_studio.studio import Studio

pytestmark = [
    # See test_chat_engine.py.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]


@pytest.fixture
def children() -> list[Child]:
    return []


@pytest.fixture
def workshop(children: list[Child]) -> Iterator[Workshop]:
    def serve() -> Child:
        children.append(Child(Bench))
        return children[-1]

    made = Workshop(serve)
    yield made
    made.close()


def wait_until(condition, timeout_s: float = 60) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def started(workshop: Workshop, target: Path, silent_s: float, owner: str = "", clean=None):
    """Begin an export and return its events, of which two are read."""
    held = ExitStack()
    if clean is not None:
        held.callback(clean)
    events = workshop.stream("export", owner=owner, held=held, target=target, silent_s=silent_s)
    next(events)
    next(events)
    return events


def test_the_result_comes_when_the_process_is_ended(workshop, children, tmp_path):
    ended: list[bool] = []
    clean = lambda: ended.append(children[0].alive)  # noqa: E731
    events = started(workshop, tmp_path / "a", 0, clean=clean)
    assert [event.get("result") for event in events][-1] == "whole"
    assert ended == [False]
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_who_comes_second_is_told_and_the_first_goes_on(workshop, tmp_path):
    first = started(workshop, tmp_path / "a", 0)
    with pytest.raises(StudioError) as caught:
        started(workshop, tmp_path / "b", 0)
    assert caught.value.key == "shipping.one_at_a_time"
    assert list(first)[-1] == {"result": "whole"}
    assert list(started(workshop, tmp_path / "b", 0))[-1] == {"result": "whole"}


def test_its_owner_stops_it_and_hears_when_nothing_is_left(workshop, tmp_path, monkeypatch):
    monkeypatch.setitem(room.GRACE_S, "export", 60)
    # So long may a stop take on its way to the child.
    events = started(workshop, tmp_path / "a", 2.0, owner="one")
    assert not workshop.stop("other")
    assert workshop.stop("one")
    with pytest.raises(StudioError) as caught:
        list(events)
    assert caught.value.key == "shipping.stopped"
    assert list(tmp_path.iterdir()) == []


def test_stopped_too_late_it_is_done_and_nobody_says_otherwise(workshop, tmp_path):
    events = started(workshop, tmp_path / "a", 0)
    while next(events) != {"stage": "verify", "done": 1, "total": 1}:
        pass
    workshop.stop("")
    assert list(events) == [{"result": "whole"}]
    assert (tmp_path / "a" / "half").is_file()


def test_what_brings_no_news_is_ended_by_force_and_what_it_left_goes(
    workshop, tmp_path, monkeypatch
):
    monkeypatch.setitem(room.GRACE_S, "export", 0.3)
    target = tmp_path / "a"
    events = started(workshop, target, 600, clean=lambda: whole.clear(target))
    threading.Timer(0.1, workshop.stop, [""]).start()
    with pytest.raises(StudioError) as caught:
        list(events)
    assert caught.value.key == "shipping.stopped"
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_goes_away_does_not_wait_and_the_next_export_can_be_made(workshop, tmp_path):
    may_clean, cleaned = threading.Event(), threading.Event()

    def clean() -> None:
        may_clean.wait(60)
        cleaned.set()

    events = started(workshop, tmp_path / "a", 0.5, clean=clean)
    events.close()
    assert not cleaned.is_set()
    may_clean.set()
    assert cleaned.wait(60)
    assert wait_until(lambda: not workshop._turn.locked())
    assert list(tmp_path.iterdir()) == []
    assert list(started(workshop, tmp_path / "a", 0))[-1] == {"result": "whole"}


# Adapters in use


@pytest.fixture
def two(settings: Settings) -> tuple[Studio, Studio]:
    """The page's studio and the command line's, of one home folder."""
    return tuple(Studio(settings, Machine.open(settings, isolated=one)) for one in (True, False))


def test_what_one_process_reads_another_does_not_delete(settings, two):
    page, other = two
    write_run(settings)
    write_elsewhere(settings)
    for name in ("poems-1", "from-afar-a1"):
        with page.adapters.using(name) as named:
            assert named.name == name
            with pytest.raises(AdapterError) as caught:
                other.library.delete([name])
            assert caught.value.key == "library.in_use"
            assert named.folder.is_dir()
        other.library.delete([name])
        assert not named.folder.exists()
        with pytest.raises(AdapterError), page.adapters.using(name):
            pass


USER = """
import sys, time
from pathlib import Path
from lora_studio.library.uses import Uses
with Uses(Path(sys.argv[1])).noted("poems-1"):
    print("noted", flush=True)
    time.sleep(600)
"""


def test_a_note_of_a_process_that_is_gone_counts_for_nothing(settings, tmp_path):
    uses = Uses(tmp_path / "uses")
    command = [sys.executable, "-c", USER, str(tmp_path / "uses")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert uses.names() == {"poems-1"}
        other.kill()
        other.wait()
    assert uses.names() == set()
    assert list((tmp_path / "uses").iterdir()) == []


def test_the_adapter_is_in_use_while_it_is_exported_pushed_archived_or_looked_into(
    settings, two, tiny_llama, monkeypatch, tmp_path
):
    page, other = two
    write_answering(settings, "poems", str(tiny_llama))
    seen: list[set[str]] = []

    def look(*_: object, **__: object) -> Iterator[dict[str, object]]:
        seen.append(page.adapters.used())
        yield {"result": {"notes": [], "id": "x"}}

    class Bare:
        stream = staticmethod(look)
        call = staticmethod(look)

        def retire(self) -> None:
            seen.append(page.adapters.used())

    monkeypatch.setattr(other._machine.workshop, "_serve", Bare)
    monkeypatch.setattr(other.adapters, "_bench", Bare())
    list(other.shipping.export("poems-1", "zip"))
    list(other.shipping.push("poems-1", "a/b", is_dry=True))
    assert seen == [{"poems-1"}] * 4  # while it works and until its process is ended
    list(other.adapters.xray("poems-1"))
    list(other.adapters.shrink("poems-1", 2))
    monkeypatch.setattr("lora_studio.cases.adapters.zip_adapter", lambda *_, **__: next(look()))
    other.adapters.archive("poems-1", tmp_path)
    assert seen == [{"poems-1"}] * 7
    assert page.adapters.used() == set()


# Which adapter an export is of


def test_an_export_of_other_weights_is_not_offered_and_not_overwritten(settings, two, tiny_llama):
    _, studio = two
    run = write_answering(settings, "mine", str(tiny_llama))
    names = lambda: {one.name for one in studio.shipping.snippets("mine-1")}  # noqa: E731
    first = list(studio.shipping.export("mine-1", "merged"))[-1]["result"]
    assert "vllm_merged" in names()
    assert list(studio.shipping.export("mine-1", "merged"))[-1]["result"]["path"] == first["path"]
    weights = (Path(first["path"]) / "model.safetensors").read_bytes()

    shutil.rmtree(run.adapter)
    save(str(tiny_llama), run.adapter, r=2)
    assert "vllm_merged" not in names()
    second = list(studio.shipping.export("mine-1", "merged"))[-1]["result"]
    assert Path(second["path"]).name == "mine-1-merged-2"
    assert [note["key"] for note in second["notes"]] == ["shipping.earlier_stays"]
    assert (Path(first["path"]) / "model.safetensors").read_bytes() == weights
    assert "vllm_merged" in names()


def test_a_zip_is_known_by_the_weights_in_it(settings, two):
    _, studio = two
    run = write_run(settings, "mine")
    first = list(studio.shipping.export("mine-1", "zip"))[-1]["result"]["path"]
    assert list(studio.shipping.export("mine-1", "zip"))[-1]["result"]["path"] == first
    (run.adapter / "adapter_model.safetensors").write_bytes(b"other weights")
    second = list(studio.shipping.export("mine-1", "zip"))[-1]["result"]["path"]
    assert Path(second).name == "mine-1-adapter-2.zip"
    assert not record.is_of(Path(second), "0" * 64)
