"""Runs that wait for the device: their order, who starts them and when, what the list shows."""

from __future__ import annotations

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

import gradio as gr
import pytest

from lora_studio.cases import training as cases_training
from lora_studio.cases.machine import Machine
from lora_studio.cli.main import main
from lora_studio.errors import RunError, StudioError
from lora_studio.recipe import Recipe
from lora_studio.runs import process
from lora_studio.runs.accelerator import Accelerator, Job
from lora_studio.runs.checkpoints import seal
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import LAST_WRITTEN, WEIGHTS, RunFolder
from lora_studio.runs.history import STARTING_S, History
from lora_studio.runs.queue import Dispatcher
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.ui import queue_panel
from lora_studio.ui.language import Voice
from lora_studio.ui.live import state
from lora_studio.ui.run_panel import RunPanel
from lora_studio.ui.visitors import Door

SHOWCASE = "someone/lora-studio"


class Workers:
    """Stands in for the workers: processes that do nothing until they are ended."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.resumed: list[str] = []
        self.tokens: list[str] = []
        self.refuses: OSError | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, folder: RunFolder, *, environment: dict[str, str], resume: bool = False, **_: Any
    ) -> int:
        if self.refuses is not None:
            raise self.refuses
        script = "import time; time.sleep(600)"
        worker = subprocess.Popen([sys.executable, "-S", "-c", script], start_new_session=True)
        self._processes[folder.id] = worker
        written = folder.events.stat().st_size if folder.events.exists() else 0
        process.write_identity(folder.process, worker.pid, written=written)
        (self.resumed if resume else self.started).append(folder.id)
        self.tokens.append(environment["HF_TOKEN"])
        return worker.pid

    def finish(self, run: str) -> None:
        """End a run's process."""
        worker = self._processes.pop(run)
        worker.kill()
        worker.wait()

    def end(self) -> None:
        for run in list(self._processes):
            self.finish(run)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    found = Workers()
    monkeypatch.setattr(process, "start", found.start)
    yield found
    found.end()


def open_studio(settings: Settings) -> Studio:
    return Studio(settings, Machine.open(settings, isolated=False))


@pytest.fixture
def studio(settings: Settings, workers: Workers) -> Studio:
    return open_studio(settings)


@pytest.fixture
def recipe(pairs: Path) -> Recipe:
    return Recipe(name="run").with_files([str(pairs)])


@pytest.fixture
def line(studio: Studio, recipe: Recipe) -> list[str]:
    """One run that trains and three that wait."""
    runs = [studio.training.submit(recipe) for _ in range(4)]
    assert studio.line.waiting() == runs[1:]
    return runs


def long_ago(folder: RunFolder) -> None:
    """Let a run be older than any that is only just being started."""
    then = time.time() - STARTING_S - 1
    os.utime(folder.recipe, (then, then))


# Who starts, and when


def test_a_busy_device_lines_a_run_up_and_the_next_starts_when_it_is_free(
    studio: Studio, line: list[str], workers: Workers
) -> None:
    assert workers.started == line[:1]
    assert [studio.runs.history(run).status for run in line] == ["preparing", *["queued"] * 3]
    assert studio.line.start_next() is None
    workers.finish(line[0])
    assert studio.line.start_next() == line[1]
    assert studio.line.waiting() == line[2:]
    assert studio.runs.history(line[1]).status == "preparing"
    active = studio.runs.active()
    assert active is not None
    assert active.folder.id == line[1]


def test_a_free_device_starts_a_run_at_once_but_not_before_those_who_wait(
    studio: Studio, recipe: Recipe, workers: Workers
) -> None:
    assert not studio.line.would_wait()
    first = studio.training.submit(recipe)
    assert workers.started == [first]
    assert studio.line.would_wait()
    second = studio.training.submit(recipe)
    workers.finish(first)
    assert studio.line.would_wait()
    third = studio.training.submit(recipe)
    assert studio.line.waiting() == [second, third]


def test_a_recipe_that_cannot_work_is_refused_and_not_lined_up(
    studio: Studio, line: list[str], recipe: Recipe
) -> None:
    with pytest.raises(StudioError):
        studio.training.submit(recipe.with_files(["/nowhere/a.txt"]))
    assert studio.line.waiting() == line[1:]


def test_the_line_outlives_the_app(
    settings: Settings, studio: Studio, line: list[str], workers: Workers
) -> None:
    for run in line:
        long_ago(studio.runs.history(run).folder)
    again = open_studio(settings)
    assert again.line.waiting() == line[1:]
    assert {again.runs.history(run).status for run in line[1:]} == {"queued"}
    workers.finish(line[0])
    assert again.line.start_next() == line[1]


def test_closing_the_app_with_its_runs_leaves_those_who_wait(
    settings: Settings, recipe: Recipe, workers: Workers
) -> None:
    studio = open_studio(replace(settings, stop_runs_on_exit=True))
    trains, waits = studio.training.submit(recipe), studio.training.submit(recipe)
    studio.close()
    assert studio.runs.history(trains).status == "stopped"
    assert studio.line.waiting() == [waits]


def test_a_run_that_cannot_start_fails_in_words_and_the_next_one_starts(
    studio: Studio, line: list[str], recipe: Recipe, pairs: Path, workers: Workers
) -> None:
    gone = pairs.with_name("gone.jsonl")
    gone.write_bytes(pairs.read_bytes())
    last = studio.training.submit(recipe.with_files([str(gone)]))
    gone.unlink()
    studio.line.reorder(last, to=0)
    (studio.runs.history(line[1]).folder.recipe).write_bytes(b"\xff\xfe: {")
    workers.finish(line[0])
    assert studio.line.start_next() == line[2]
    failed = studio.runs.history(last)
    assert failed.status == "failed"
    assert str(gone) in str(failed.cause)
    assert studio.runs.history(line[1]).status == "failed"
    assert studio.line.waiting() == line[3:]


def test_a_process_that_cannot_be_started_is_a_sentence(
    studio: Studio, line: list[str], workers: Workers
) -> None:
    workers.finish(line[0])
    workers.refuses = OSError(12, "Cannot allocate memory")
    assert studio.line.start_next() is None
    assert studio.line.waiting() == []
    for run in line[1:]:
        assert "could not be started (Cannot allocate memory)" in str(
            studio.runs.history(run).cause
        )
    assert workers.started == line[:1]


def test_of_many_who_look_at_once_one_starts_the_next(
    settings: Settings, studio: Studio, line: list[str], workers: Workers
) -> None:
    workers.finish(line[0])
    studios = [open_studio(settings) for _ in range(4)]
    together = threading.Barrier(len(studios))
    found: list[str | None] = []

    def look(one: Studio) -> None:
        together.wait()
        found.append(one.line.start_next())

    threads = [threading.Thread(target=look, args=[one]) for one in studios]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str) == [None, None, None, line[1]]
    assert workers.started == line[:2]


def test_an_answer_is_not_broken_off_by_the_next_run(
    settings: Settings, studio: Studio, line: list[str], workers: Workers
) -> None:
    workers.finish(line[0])
    accelerator, job = Accelerator(settings.home), Job("compare", ("other",))
    accelerator.assign(job, os.getpid())
    assert studio.line.start_next() is None
    accelerator.release(job)
    assert studio.line.start_next() == line[1]


def test_a_token_is_held_in_memory_only_and_given_at_the_start(
    settings: Settings, studio: Studio, recipe: Recipe, workers: Workers
) -> None:
    first = studio.training.submit(recipe)
    studio.training.submit(recipe, token="hf_secret")
    studio.training.submit(recipe, token="hf_other")
    held = [file for file in settings.home.rglob("*") if file.is_file()]
    assert not any(b"hf_" in file.read_bytes() for file in held)
    workers.finish(first)
    second = studio.line.start_next()
    assert second is not None
    workers.finish(second)
    open_studio(settings).line.start_next()
    assert workers.tokens == ["", "hf_secret", ""]


def test_the_dispatcher_goes_on_after_a_disk_that_was_away_and_ends_when_closed() -> None:
    looks: list[int] = []
    seen = threading.Event()

    def look() -> None:
        looks.append(1)
        if len(looks) == 1:
            raise OSError(5, "Input/output error")
        seen.set()

    dispatcher = Dispatcher(look, every_s=0.01)
    assert seen.wait(60)
    dispatcher.close()
    count = len(looks)
    time.sleep(0.05)
    assert len(looks) == count


def test_an_open_app_starts_the_next_by_itself(
    studio: Studio, line: list[str], workers: Workers
) -> None:
    studio.line.keep_dispatching()
    workers.finish(line[0])
    deadline = time.monotonic() + 60
    while len(workers.started) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert workers.started == line[:2]
    studio.close()


# Who goes on


def break_off(studio: Studio, run: str, workers: Workers, *, told: bool = True) -> RunFolder:
    """Let a run that trains be broken off with a checkpoint of its third step.

    With `told`, it was paused and said so; otherwise it is lost.
    """
    folder = studio.runs.history(run).folder
    checkpoint = folder.checkpoint(3)
    checkpoint.mkdir(parents=True)
    for name in (WEIGHTS, LAST_WRITTEN):
        (checkpoint / name).write_bytes(b"{}")
    seal(checkpoint)
    with EventWriter(folder.events) as events:
        events.write("stage", stage="train")
        about = {"tokens_per_s": 1.0, "memory_bytes": 1, "seconds_left": 1.0}
        events.write("step", step=3, loss=1.0, **about)
        if told:
            process.request_stop(folder, "pause")
            events.write("stopped", kept=False, paused=True)
    workers.finish(run)
    return folder


def test_a_run_that_goes_on_does_so_when_its_turn_has_come(
    studio: Studio, line: list[str], workers: Workers
) -> None:
    folder = break_off(studio, line[0], workers)
    studio.training.resume(line[0], token="hf_secret")
    assert studio.line.waiting() == [*line[1:], line[0]]
    history = studio.runs.history(line[0])
    assert (history.status, history.cause, history.resumable) == ("queued", None, None)
    shown = state(history, Voice(None))
    assert shown["state"] == "waiting in the queue; it goes on by itself when the device is free"
    for waits in line[1:]:
        assert studio.line.start_next() == waits
        workers.finish(waits)
    assert folder.stop_wish() == "pause"
    assert studio.line.start_next() == line[0]
    assert (workers.resumed, workers.tokens[-1]) == ([line[0]], "hf_secret")
    assert folder.stop_wish() is None
    assert studio.runs.history(line[0]).status == "preparing"
    assert studio.line.waiting() == []


def test_a_run_goes_on_at_once_where_nobody_trains_and_nobody_waits(
    studio: Studio, recipe: Recipe, workers: Workers
) -> None:
    run = studio.training.submit(recipe)
    break_off(studio, run, workers)
    studio.training.resume(run)
    assert (workers.resumed, studio.line.waiting()) == ([run], [])
    with pytest.raises(RunError) as refused:
        studio.training.resume(run)
    assert refused.value.key == "run.still_runs"


@pytest.mark.parametrize("told", [True, False])
def test_a_run_that_was_to_go_on_and_leaves_the_line_is_as_it_was(
    studio: Studio, line: list[str], workers: Workers, *, told: bool
) -> None:
    folder = break_off(studio, line[0], workers, told=told)
    before = studio.runs.history(line[0])
    was = (before.status, str(before.cause), before.resumable)
    studio.training.resume(line[0])
    with pytest.raises(RunError) as refused:
        studio.training.resume(line[0])
    assert refused.value.key == "queue.waits_already"
    studio.line.remove(line[0])
    after = History(folder).update()
    assert (after.status, str(after.cause), after.resumable) == was
    assert was[::2] == ("stopped" if told else "lost", 3)
    studio.training.resume(line[0])
    assert studio.line.waiting() == [*line[1:], line[0]]


def test_a_run_that_can_no_longer_go_on_says_so_and_the_next_one_starts(
    studio: Studio, recipe: Recipe, pairs: Path, workers: Workers
) -> None:
    gone = pairs.with_name("gone.jsonl")
    gone.write_bytes(pairs.read_bytes())
    run = studio.training.submit(recipe.with_files([str(gone)]))
    break_off(studio, run, workers)
    trains = studio.training.submit(recipe)
    studio.training.resume(run)
    last = studio.training.submit(recipe)
    gone.unlink()
    workers.finish(trains)
    assert studio.line.start_next() == last
    history = studio.runs.history(run)
    assert (history.status, history.resumable) == ("failed", 3)
    assert str(gone) in str(history.cause)


def test_of_many_who_let_a_run_go_on_at_once_one_does(
    settings: Settings, studio: Studio, recipe: Recipe, workers: Workers
) -> None:
    run = studio.training.submit(recipe)
    break_off(studio, run, workers)
    studios = [open_studio(settings) for _ in range(4)]
    together = threading.Barrier(len(studios))
    refused: list[str] = []

    def go_on(one: Studio) -> None:
        together.wait()
        try:
            one.training.resume(run)
        except RunError as error:
            refused.append(error.key)

    threads = [threading.Thread(target=go_on, args=[one]) for one in studios]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert workers.resumed == [run]
    assert refused == ["run.still_runs"] * 3
    assert studio.line.waiting() == []


def test_a_run_whose_starter_died_before_it_took_it_out_of_the_line_is_not_started_twice(
    settings: Settings, studio: Studio, line: list[str], workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def die(*_: Any) -> None:
        raise SystemExit

    workers.finish(line[0])
    with monkeypatch.context() as dying:
        dying.setattr("lora_studio.runs.queue.Queue.remove", die)
        with pytest.raises(SystemExit):
            studio.line.start_next()
    assert studio.runs.history(line[1]).folder.queued.exists()
    again = open_studio(settings)
    assert again.runs.history(line[1]).status == "preparing"
    assert again.line.waiting() == line[2:]
    workers.finish(line[1])
    assert again.line.start_next() == line[2]
    assert workers.started == line[:3]


def test_the_command_line_and_the_page_say_that_a_run_waits_to_go_on(
    settings: Settings,
    studio: Studio,
    line: list[str],
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(settings.home))
    break_off(studio, line[0], workers)
    assert main(["resume", line[0]]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [line[0]]
    assert f"{line[0]} is number 4 in the queue" in said.err
    assert main(["resume", line[0]]) == 1
    assert "waits in the queue already, as number 4" in capsys.readouterr().err

    studio.line.remove(line[0])
    told: list[str] = []
    monkeypatch.setattr(gr, "Info", told.append)
    panel, request = RunPanel.__new__(RunPanel), cast("gr.Request", None)
    panel.door = Door(studio)  # without its components
    panel.go_on(line[0], "", request)
    assert told == [f"{line[0]} is number 4 in the queue. It starts by itself when its turn comes."]


# Order


@pytest.mark.parametrize(
    ("moved", "to", "order"),
    [(3, 0, [3, 1, 2]), (1, 1, [2, 1, 3]), (1, 99, [2, 3, 1]), (3, -7, [3, 1, 2]),
     (2, 1, [1, 2, 3])],
)  # fmt: skip
def test_a_run_moves_to_the_place_it_is_given(
    studio: Studio, line: list[str], moved: int, to: int, order: list[int]
) -> None:
    studio.line.reorder(line[moved], to=to)
    assert studio.line.waiting() == [line[at] for at in order]


def test_a_run_taken_out_was_stopped_and_keeps_its_settings(
    studio: Studio, line: list[str], recipe: Recipe, workers: Workers
) -> None:
    studio.line.remove(line[2])
    assert studio.line.waiting() == [line[1], line[3]]
    history = studio.runs.history(line[2])
    assert (history.status, history.cause) == ("stopped", None)
    assert history.folder.read_recipe() == recipe
    workers.finish(line[0])
    studio.line.start_next()
    assert workers.started == line[:2]


@pytest.mark.parametrize(
    "stop",
    [
        lambda studio, run: studio.training.stop(run, keep=True),
        lambda studio, run: studio.training.stop(run, keep=False),
        lambda studio, run: studio.training.pause(run),
    ],
)
def test_stopping_a_run_that_waits_takes_it_out(
    studio: Studio, line: list[str], stop: Callable[[Studio, str], None]
) -> None:
    stop(studio, line[1])
    assert studio.line.waiting() == line[2:]
    assert studio.runs.history(line[1]).status == "stopped"
    with pytest.raises(RunError, match="already over"):
        stop(studio, line[1])


def test_a_stop_that_comes_at_a_runs_very_turn_reaches_its_worker(
    studio: Studio, line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio.line, "waiting", lambda: [line[0]])
    monkeypatch.setattr(studio.line, "remove", has_just_left)
    monkeypatch.setattr(cases_training, "LEAVES_WITHIN_S", 0.0)
    studio.training.stop(line[0], keep=True)
    history = studio.runs.history(line[0])
    assert history.folder.stop_wish() == "keep"
    assert history.status in ("stopped", "lost")


def has_just_left(run: str) -> None:
    raise RunError("queue.not_waiting", run=run)


def test_who_does_not_wait_can_neither_move_nor_leave(studio: Studio, line: list[str]) -> None:
    for run, key in ((line[0], "queue.not_waiting"), ("../x", "run.unknown")):
        for act in (lambda run: studio.line.reorder(run, to=0), studio.line.remove):
            with pytest.raises(RunError) as refused:
                act(run)
            assert refused.value.key == key
    assert studio.line.waiting() == line[1:]
    assert studio.runs.history(line[0]).status == "preparing"


def test_a_note_that_cannot_be_read_stands_last_and_a_removed_run_is_out_of_line(
    studio: Studio, line: list[str]
) -> None:
    studio.runs.history(line[1]).folder.queued.write_bytes(b"\xff torn")
    assert studio.line.waiting() == [line[2], line[3], line[1]]
    removed = studio.runs.history(line[2]).folder.path
    for file in removed.iterdir():
        file.unlink()
    removed.rmdir()
    assert studio.line.waiting() == [line[3], line[1]]
    studio.line.reorder(line[1], to=0)
    assert studio.line.waiting() == [line[1], line[3]]


# A Space


@pytest.fixture
def space(settings: Settings, workers: Workers) -> Studio:
    return open_studio(replace(settings, space_id=SHOWCASE, original_space=SHOWCASE, most_runs=5))


def test_visitors_wait_in_one_line_and_see_their_own_part_of_it(
    space: Studio, recipe: Recipe, workers: Workers
) -> None:
    one, other, third = (space.for_visitor(name) for name in ("one", "other", "third"))
    trains = one.training.submit(recipe)
    assert other.line.would_wait()
    later, latest = other.training.submit(recipe), third.training.submit(recipe)
    assert (one.line.waiting(), other.line.waiting(), third.line.waiting()) == (
        [],
        [later],
        [latest],
    )
    third.line.reorder(latest, to=0)  # nobody else's place is taken
    workers.finish(trains)
    assert space.line.start_next() == later
    active = other.runs.active()
    assert active is not None
    assert active.folder.id == later
    assert third.runs.active() is None
    with pytest.raises(RunError, match="no run called"):
        one.line.remove("nobody-1")


def test_a_visitor_of_a_showcase_lines_up_one_run(space: Studio, recipe: Recipe) -> None:
    visitor = space.for_visitor("one")
    visitor.training.submit(recipe)
    waits = visitor.training.submit(recipe)
    with pytest.raises(RunError) as refused:
        visitor.training.submit(recipe)
    assert refused.value.key == "queue.one_each"
    assert visitor.line.waiting() == [waits]
    assert len(visitor.runs.all()) == 3  # two of their own and the recorded one


def test_a_visitor_of_a_showcase_has_no_second_run_go_on_later(
    space: Studio, recipe: Recipe, workers: Workers
) -> None:
    visitor = space.for_visitor("one")
    paused = visitor.training.submit(recipe)
    break_off(visitor, paused, workers)
    visitor.training.submit(recipe)
    waits = visitor.training.submit(recipe)
    with pytest.raises(RunError) as refused:
        visitor.training.resume(paused)
    assert refused.value.key == "queue.one_each"
    visitor.line.remove(waits)
    visitor.training.resume(paused)
    assert visitor.line.waiting() == [paused]


# The page


def test_the_list_says_who_waits_and_what_they_would_train(studio: Studio, line: list[str]) -> None:
    shown = queue_panel.standing(studio, Voice(None))
    assert [row["run"] for row in shown["rows"]] == line[1:]
    assert shown["rows"][0]["about"] == "SmolLM2-135M-Instruct · pairs.jsonl · r 16"
    assert shown["title"] == "Queue: 3 waiting"
    assert shown["busy"] is True


def test_the_list_moves_and_takes_out_and_says_so(studio: Studio, line: list[str]) -> None:
    _line, move, leave = (make(Door(studio)) for make in (
        queue_panel._line, queue_panel._move, queue_panel._leave
    ))  # fmt: skip
    moved = move({"run": line[3], "to": 0}, None)
    assert [row["run"] for row in moved["rows"]] == [line[3], line[1], line[2]]
    assert moved["told"] == f"{line[3]} is number 1 now."
    left = leave({"run": line[1]}, None)
    assert [row["run"] for row in left["rows"]] == [line[3], line[2]]
    assert f"{line[1]} is out of the queue" in left["told"]
    again = leave({"run": line[1]}, None)
    assert "does not wait in the queue" in again["told"]


def test_an_open_page_shows_what_another_app_has_begun(
    settings: Settings, studio: Studio, recipe: Recipe, workers: Workers
) -> None:
    panel, request = RunPanel.__new__(RunPanel), cast("gr.Request", None)
    panel.door = Door(studio)
    nothing = (gr.skip(), gr.skip())
    assert panel.follow("", request) == nothing
    other = open_studio(settings)
    run = other.training.submit(recipe)
    for shown in ("", "gone-1"):
        bar, choice = panel.follow(shown, request)
        assert bar.visible
        assert (choice.value, choice.choices) == (run, [(run, run)])
    assert panel.follow(run, request) == nothing
    workers.finish(run)
    later = other.training.submit(recipe)
    assert panel.follow(run, request)[1].value == later


@pytest.mark.parametrize(
    "query",
    [None, [], "x", {}, {"run": 3}, {"run": "../x", "to": "first"}, {"run": None, "to": {}}],
)
def test_what_the_page_would_never_send_changes_nothing(
    studio: Studio, line: list[str], query: Any
) -> None:
    for make in (queue_panel._line, queue_panel._move, queue_panel._leave):
        shown = make(Door(studio))(query, None)
        assert [row["run"] for row in shown["rows"]] == line[1:]


# The command line


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Workers that finish before anybody looks; one whose name is “broken” fails."""
    ended: list[str] = []

    def start(folder: RunFolder, **_: Any) -> int:
        ended.append(folder.id)
        with EventWriter(folder.events) as events:
            if folder.id.startswith("broken"):
                events.write("failed", cause=RunError("training.disk_full").to_dict())
            else:
                events.write("finished")
        process.write_identity(folder.process, 2**22 + 1)  # no process has this id
        return 2**22 + 1

    monkeypatch.setattr(process, "start", start)
    return ended


def test_the_command_line_lines_up_moves_removes_and_works_through(
    settings: Settings,
    pairs: Path,
    at_once: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(settings.home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*arguments: str) -> tuple[int, list[str], str]:
        code = main(list(arguments))
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    for name in ("a", "broken", "c", "d"):
        recipe = ["--set", f"data.files=[{pairs}]", "--set", f"name={name}"]
        code, out, err = call("train", "--queue", *recipe)
        assert (code, out) == (0, [f"{name}-1"])
        assert "in the queue" in err
    assert call("queue")[1] == ["1\ta-1", "2\tbroken-1", "3\tc-1", "4\td-1"]
    assert call("queue", "--move", "d-1")[1][0] == "1\td-1"
    assert call("queue", "--move", "a-1", "--to", "4")[1][3] == "4\ta-1"
    assert call("queue", "--remove", "c-1")[1] == ["1\td-1", "2\tbroken-1", "3\ta-1"]
    assert call("queue", "--remove", "c-1")[0] == 1
    code, out, err = call("queue", "--run")
    assert (code, out) == (1, ["d-1", "broken-1", "a-1"])
    assert at_once == out
    assert "disk is full" in err
    code, out, err = call("queue")
    assert (code, out) == (0, [])
    assert "Nobody is waiting" in err


# With real workers


@pytest.mark.slow
@pytest.mark.usefixtures("nobody_left")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_runs_follow_one_another_past_one_that_is_killed(
    settings: Settings, tiny_llama: Path, pairs: Path
) -> None:
    tree = {
        "model": {"source": str(tiny_llama)}, "precision": "fp32", "adapter": {"r": 4},
        "data": {"files": [str(pairs)]}, "training": {"max_steps": 2},
    }  # fmt: skip
    recipe = Recipe.from_dict(tree)
    studio = open_studio(settings)
    killed = studio.training.submit(recipe.changed(["training.max_steps=100000"]))
    last = studio.training.submit(recipe)
    studio.line.keep_dispatching()
    until(studio.runs.history(killed), lambda found: found.step >= 1)
    pid = process.pid_of(studio.runs.history(killed).folder.process)
    assert pid is not None
    os.killpg(pid, signal.SIGKILL)
    until(studio.runs.history(last), lambda found: found.is_over)
    assert [studio.runs.history(run).status for run in (killed, last)] == ["lost", "finished"]
    assert studio.runs.history(last).folder.newest_adapter() is not None
    studio.close()


def until(history: History, holds: Callable[[History], bool]) -> None:
    deadline = time.monotonic() + 240
    while not holds(history.update()):
        log = history.folder.stdout
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8") if log.exists() else ""
        time.sleep(0.05)
