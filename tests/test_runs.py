"""Run folders, events, the status computed from them, the worker's process, the accelerator."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_studio.cases.runs import Runs
from lora_studio.errors import RunError, StudioError
from lora_studio.recipe import Recipe
from lora_studio.runs import events as events_module
from lora_studio.runs import process
from lora_studio.runs.accelerator import Accelerator, Job
from lora_studio.runs.events import EventWriter, read_events
from lora_studio.runs.folder import RunFolder, create, find, listed, slug
from lora_studio.runs.history import STARTING_S, History
from lora_studio.settings import Settings

ROOT = Path(__file__).parents[1]
WAIT_S = 120.0


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return create(tmp_path / "runs", Recipe(name="A run"))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own that does nothing for a minute."""
    script = "import time; time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-S", "-c", script], start_new_session=True)
    yield child
    child.kill()
    child.wait()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def eventually(holds: Callable[[], bool], log: Path | None = None) -> None:
    """Wait until something holds; where it never does, show what a worker printed."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8") if log else ""
        time.sleep(0.02)


def has_words(note: Path) -> bool:
    return note.exists() and bool(note.read_text(encoding="utf-8"))


def write(folder: RunFolder, *events: tuple[str, dict[str, Any]]) -> None:
    with EventWriter(folder.events) as out:
        for name, fields in events:
            out.write(name, **fields)


# Events


def test_events_are_read_from_where_the_last_read_ended(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with EventWriter(file) as out:
        out.write("stage", stage="start")
        first, offset = read_events(file)
        out.write("step", step=1, loss=2.5)
        out.write("sample", answer="어댑터\n둘째 줄")
        second, end = read_events(file, offset)
    assert [event["event"] for event in first] == ["stage"]
    assert [event["event"] for event in second] == ["step", "sample"]
    assert second[1]["answer"] == "어댑터\n둘째 줄"
    assert end == file.stat().st_size
    assert read_events(file, end) == ([], end)


def test_a_torn_last_line_is_left_for_the_next_read(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    whole = b'{"event": "step", "time": 1.0, "step": 1}\n'
    file.write_bytes(whole + b'{"event": "st')
    found, offset = read_events(file)
    assert (len(found), offset) == (1, len(whole))
    with file.open("ab") as out:
        out.write(b'ep", "time": 2.0, "step": 2}\n')
    found, _ = read_events(file, offset)
    assert [event["step"] for event in found] == [2]


def test_a_line_torn_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"event": "st{"event": "step"}\n[1]\n\xff\n{"event": "stage"}\n')
    assert [event["event"] for event in read_events(file)[0]] == ["stage"]


def test_no_events_file_is_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none.jsonl", 7) == ([], 7)


def test_a_number_that_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with EventWriter(file) as out:
        out.write("step", step=3, loss=float("nan"), grad_norm=float("-inf"), learning_rate=0.1)
    line = file.read_text(encoding="utf-8")
    event = json.loads(line, parse_constant=pytest.fail)
    assert (event["loss"], event["grad_norm"], event["learning_rate"]) == (None, None, 0.1)
    assert event["not_finite"] == ["loss", "grad_norm"]


def test_a_full_disk_still_takes_the_event_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, reserve = tmp_path / "events.jsonl", tmp_path / "events.reserve"
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        """Take a few bytes, then none until the reserve is given up."""
        if not reserve.exists():
            return real(descriptor, data)
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:-19])

    with EventWriter(file) as out:
        out.write("step", step=1)
        assert reserve.stat().st_size == events_module.RESERVE_BYTES
        monkeypatch.setattr(events_module.os, "write", full)
        out.write("failed", cause="disk")
        assert not reserve.exists()
        out.write("step", step=2)
    found, _ = read_events(file)
    assert [event["event"] for event in found] == ["step", "failed", "step"]


def test_a_disk_that_stays_full_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with EventWriter(tmp_path / "events.jsonl") as out:
        monkeypatch.setattr(events_module.os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            out.write("step", step=1)


def test_a_run_ends_once_whoever_else_would_end_it(tmp_path: Path) -> None:
    """As when a stop wakes the worker out of a download, which then takes itself for failed."""
    file = tmp_path / "events.jsonl"
    told: list[bool] = []
    with EventWriter(file) as out:
        out.at_end = lambda: told.append(out.write("failed", cause={}))
        assert not out.is_over
        assert out.write("stopped", kept=False)
        assert out.is_over
        assert out.write("warning", step=1)
        assert not out.write("finished")
    assert told == [False]
    assert [event["event"] for event in read_events(file)[0]] == ["stopped", "warning"]


def test_an_end_that_could_not_be_written_leaves_room_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "events.jsonl"
    with EventWriter(file) as out:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(events_module.os, "write", full)
            out.write("finished")
        assert out.write("failed", cause={})
    assert [event["event"] for event in read_events(file)[0]] == ["failed"]


def test_the_reserve_goes_with_the_writer(tmp_path: Path) -> None:
    write(RunFolder(tmp_path), ("finished", {}))
    assert [file.name for file in tmp_path.iterdir()] == ["events.jsonl"]


def test_events_of_several_threads_do_not_tear_each_other(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with EventWriter(file) as out:

        def write_many(who: int) -> None:
            for at in range(200):
                out.write("step", step=at, who=who, text="x" * 200)

        threads = [threading.Thread(target=write_many, args=[who]) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found, _ = read_events(file)
    assert len(found) == 800
    assert [e["step"] for e in found if e["who"] == 2] == list(range(200))


# Folders


def test_runs_are_named_after_the_recipe_and_never_twice(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    ids = [create(runs, Recipe(name="My Run!")).id for _ in range(3)]
    ids.append(create(runs, Recipe().with_files(["/x/우리 집.csv"])).id)
    ids.append(create(runs, Recipe()).id)
    assert ids == ["my-run-1", "my-run-2", "my-run-3", "우리-집-1", "run-1"]
    assert {folder.id for folder in listed(runs)} == set(ids)
    assert find(runs, "우리-집-1").read_recipe() == Recipe().with_files(["/x/우리 집.csv"])


def test_a_run_is_listed_with_its_whole_recipe_or_not_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("lora_studio.files.os.fsync", lambda _: seen.append(listed(tmp_path)))
    folder = create(tmp_path, Recipe())
    assert seen == [[]]
    assert listed(tmp_path) == [folder]


def test_runs_of_the_same_moment_have_an_order(tmp_path: Path) -> None:
    for _ in range(9):
        os.utime(create(tmp_path, Recipe()).recipe, (1e9, 1e9))
    assert [folder.id for folder in listed(tmp_path)] == [f"run-{at}" for at in range(9, 0, -1)]


def test_a_run_of_the_name_and_the_time_of_another_is_not_taken_for_it(
    settings: Settings, tmp_path: Path
) -> None:
    runs = Runs(settings, Accelerator(settings.home))
    first, second = create(settings.runs, Recipe()), create(tmp_path / "aside", Recipe())
    for folder in (first, second):
        os.utime(folder.recipe, (1e9, 1e9))
    write(first, ("finished", {"steps": 1}))
    assert runs.history("run-1").status == "finished"
    shutil.rmtree(first.path)
    second.path.rename(first.path)
    assert runs.history("run-1").status != "finished"


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/passwd", "..", "a/../b", "C:\\x", "\0", "x" * 999]
)
def test_a_name_cannot_leave_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    runs = tmp_path / "runs"
    folder = create(runs, Recipe(name=name))
    assert folder.path.parent == runs
    assert folder.path.resolve().parent == runs.resolve()
    assert len(slug(name)) <= 40


@pytest.mark.parametrize(
    "run", ["../runs/a-run-1", "a-run-1/", "./a-run-1", "", ".", "A-RUN-1", "*"]
)
def test_an_id_is_compared_and_never_a_path(folder: RunFolder, run: str) -> None:
    runs = folder.path.parent
    assert find(runs, "a-run-1") == folder
    with pytest.raises(RunError):
        find(runs, run)


def test_a_disk_that_takes_no_recipe_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lora_studio.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        create(tmp_path / "runs", Recipe(name="x"))
    assert list((tmp_path / "runs").iterdir()) == []


def checkpoint(folder: RunFolder, step: int, *, complete: bool = True) -> Path:
    place = folder.checkpoints / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "adapter_model.safetensors").write_bytes(b"")
    if complete:
        (place / "trainer_state.json").write_text("{}", encoding="utf-8")
    return place


def test_the_newest_adapter_is_the_finished_one_else_the_last_whole_checkpoint(
    folder: RunFolder,
) -> None:
    assert folder.newest_adapter() is None
    checkpoint(folder, 9)
    tenth = checkpoint(folder, 10)
    checkpoint(folder, 11, complete=False)
    assert folder.checkpoint_steps() == [9, 10]
    assert folder.newest_adapter() == tenth
    folder.adapter.mkdir()
    (folder.adapter / "adapter_model.safetensors").write_bytes(b"")
    assert folder.newest_adapter() == folder.adapter


# Status


def test_a_run_is_queued_until_its_worker_is_started_or_never_was(folder: RunFolder) -> None:
    history = History(folder).update()
    assert (history.status, history.is_over) == ("queued", False)
    long_ago = time.time() - STARTING_S - 1
    os.utime(folder.recipe, (long_ago, long_ago))
    assert history.status == "lost"


def test_a_run_in_the_line_is_queued_however_old_it_is(folder: RunFolder) -> None:
    long_ago = time.time() - STARTING_S - 1
    os.utime(folder.recipe, (long_ago, long_ago))
    folder.queued.write_text("1", encoding="utf-8")
    assert History(folder).update().status == "queued"


def test_the_status_follows_the_stages(folder: RunFolder, sleeper: subprocess.Popen[bytes]) -> None:
    process.write_identity(folder.process, sleeper.pid)
    history = History(folder)
    assert history.update().status == "preparing"
    seen = []
    for stage in ("start", "download", "tokenize", "load", "train", "evaluate", "sample", "save"):
        write(folder, ("stage", {"stage": stage}))
        seen.append(history.update().status)
    assert seen == ["preparing"] * 4 + ["training", "evaluating", "evaluating", "saving"]
    write(folder, ("finished", {}))
    assert history.update().status == "finished"
    assert history.is_over
    assert history.cause is None


def test_a_run_whose_process_is_gone_is_lost(
    folder: RunFolder, sleeper: subprocess.Popen[bytes]
) -> None:
    process.write_identity(folder.process, sleeper.pid)
    write(folder, ("stage", {"stage": "train"}))
    history = History(folder).update()
    sleeper.kill()
    sleeper.wait()
    assert history.status == "lost"
    assert "before its first checkpoint" in str(history.cause)
    checkpoint(folder, 20)
    assert "step 20" in str(history.cause)


def test_a_worker_killed_before_its_first_event_is_lost(
    folder: RunFolder, sleeper: subprocess.Popen[bytes]
) -> None:
    process.write_identity(folder.process, sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    history = History(folder).update()
    assert history.status == "lost"
    summary = history.summary()
    assert (summary["steps"], summary["adapter"], summary["eval_losses"]) == (0, None, [])


def test_a_run_that_was_to_be_discarded_and_is_gone_was_stopped(
    folder: RunFolder, sleeper: subprocess.Popen[bytes]
) -> None:
    process.write_identity(folder.process, sleeper.pid)
    process.request_stop(folder, "discard")
    sleeper.kill()
    sleeper.wait()
    history = History(folder).update()
    assert history.status == "stopped"
    assert history.cause is None


@pytest.mark.parametrize("wish", ["keep", "pause"])
def test_a_run_that_was_to_be_kept_and_is_gone_without_a_word_is_lost(
    folder: RunFolder, sleeper: subprocess.Popen[bytes], wish: process.Wish
) -> None:
    process.write_identity(folder.process, sleeper.pid)
    process.request_stop(folder, wish)
    sleeper.kill()
    sleeper.wait()
    history = History(folder).update()
    assert history.status == "stopped"  # it had learned nothing yet
    assert "nothing to keep" in str(history.cause)
    write(folder, ("step", {"step": 1, "loss": 1.0}))
    assert history.update().status == "lost"


def test_a_run_stopped_before_its_first_step_says_that_nothing_was_kept(folder: RunFolder) -> None:
    process.request_stop(folder, "keep")
    write(folder, ("stopped", {"kept": False}))
    history = History(folder).update()
    assert history.status == "stopped"
    assert "nothing to keep" in str(history.cause)


def test_last_words_written_between_two_looks_count(
    folder: RunFolder, sleeper: subprocess.Popen[bytes]
) -> None:
    process.write_identity(folder.process, sleeper.pid)
    history = History(folder).update()
    write(folder, ("finished", {}))
    sleeper.kill()
    sleeper.wait()
    assert history.status == "finished"


def test_a_failed_run_says_why_in_both_languages(folder: RunFolder) -> None:
    cause = RunError("training.disk_full")
    write(folder, ("failed", {"cause": cause.to_dict()}))
    found = History(folder).update().cause
    assert isinstance(found, StudioError)
    assert (str(found), found.say("ko")) == (str(cause), cause.say("ko"))


def test_the_summary_has_the_shape_that_show_prints(folder: RunFolder) -> None:
    step = {"learning_rate": 0.1, "grad_norm": 1.0, "tokens_seen": 9, "seconds_left": 1.0}
    write(
        folder,
        ("started", {"total_steps": 3}),
        ("eval", {"step": 0, "loss": 3.0, "perplexity": 20.1}),
        *(("step", step | {"step": at, "loss": 3.0 - at, "tokens_per_s": 70.0 + at})
          for at in (1, 2)),
        ("step", step | {"step": 3, "loss": float("nan"), "tokens_per_s": 73.0}),
        ("eval", {"step": 3, "loss": 1.5, "perplexity": 4.5}),
        ("stopped", {"kept": True}),
    )  # fmt: skip
    assert History(folder).update().summary() == {
        "id": "a-run-1",
        "status": "stopped",
        "first_train_loss": 2.0,
        "last_train_loss": 1.0,
        "eval_losses": [3.0, 1.5],
        "eval_accuracies": [],
        "eval_f1s": [],
        "steps": 3,
        "best_step": 3,
        "adapter_step": None,
        "early_stopped": None,
        "tokens_per_s": 73.0,
        "seconds": {},
        "adapter": None,
        "warnings": [],
    }


def long_run(folder: RunFolder, steps: int, start: int = 1, at_s: float = 1000.0) -> None:
    """Write the steps from `start` on, one a second."""
    line = (
        '{"time": %d.0, "event": "step", "step": %d, "epoch": 1.2, "loss": %r, "grad_norm": 1.1, '
        '"learning_rate": 0.0001, "tokens_per_s": 9.0, "tokens_seen": 10, '
        '"memory_bytes": 12345678, "seconds_left": 1.0}\n'
    )
    with folder.events.open("a", encoding="utf-8") as out:
        out.writelines(line % (at_s + at, at, 1 / at) for at in range(start, start + steps))


def tell(folder: RunFolder, *told: dict[str, Any]) -> None:
    """Write events with times of their own."""
    with folder.events.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(event) + "\n" for event in told)


def even_gaps(history: History) -> set[int]:
    return {after["step"] - before["step"] for before, after in pairwise(history.steps)}


def test_of_a_million_steps_some_thousand_are_kept_and_the_newest(
    folder: RunFolder, thread_s: Callable[[], float]
) -> None:
    write(folder, ("stage", {"stage": "train"}), ("started", {"total_steps": 10**6}))
    long_run(folder, 200_000)
    start = thread_s()
    history = History(folder).update()
    assert thread_s() - start < 0.5, "the file has 40 MB, of which little is parsed"
    assert 2000 <= len(history.steps) <= 4001
    assert history.steps[0]["step"] == 1
    assert len(even_gaps(history)) == 1, "what is kept lies evenly"
    assert history.step == history.newest["step"] == 200_000
    before = history.rewritten
    long_run(folder, 3, start=200_001)
    history.update()
    assert (history.step, history.rewritten) == (200_003, before)
    long_run(folder, 60_000, start=200_004)
    tracemalloc.start()
    assert history.update().rewritten > before
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6, "12 MB more, of which little is held at once"
    summary = history.summary()
    assert summary["first_train_loss"] == 1.0
    assert summary["last_train_loss"] == pytest.approx(1 / 260_003)


def test_the_times_of_a_long_run_are_those_of_all_its_steps(folder: RunFolder) -> None:
    tell(folder, {"time": 1000.0, "event": "stage", "stage": "train"})
    long_run(folder, 5_000)
    tell(folder, {"time": 6000.5, "event": "stage", "stage": "evaluate"})
    tell(folder, {"time": 6003.0, "event": "eval", "step": 5_000, "loss": 1.0})
    tell(folder, {"time": 6004.0, "event": "stage", "stage": "train"})
    long_run(folder, 5_001, start=5_001, at_s=1004.0)
    history = History(folder).update()
    assert history.thinnings
    assert history.last_time == 11_005.0
    assert history.seconds == {"train": 10_001.5, "evaluate": 3.5}


def test_a_long_run_goes_on_from_the_very_step_of_its_checkpoint(folder: RunFolder) -> None:
    tell(folder, {"time": 1000.0, "event": "stage", "stage": "train"})
    long_run(folder, 9_003)
    tell(folder, {"time": 20_003.0, "event": "resumed", "step": 8_002})
    history = History(folder).update()
    assert history.thinnings
    assert history.away_s == 10_000.0, "it was over since step 9,003, not since one that is kept"
    assert (history.step, history.steps[-1]["step"]) == (8_002, 8_001)
    long_run(folder, 4_000, start=8_003, at_s=20_000.0)
    assert history.update().step == 12_002
    assert len(even_gaps(history)) == 1


@pytest.mark.parametrize("block", [97, events_module.BLOCK_BYTES])
def test_a_run_looked_at_while_it_grows_is_the_same_as_one_seen_at_its_end(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """However its lines are torn between two looks, or between two blocks of one."""
    tell(folder, {"time": 1000.0, "event": "stage", "stage": "train"})
    for start in range(1, 5_000, 500):
        long_run(folder, 500, start=start)
        tell(folder, {"time": 1000.0 + start + 499, "event": "eval", "step": start, "loss": 1.0})
    tell(folder, {"time": 9_000.0, "event": "resumed", "step": 3_333})
    long_run(folder, 2_000, start=3_334, at_s=9_000.0)
    whole = folder.events.read_bytes()
    at_end = History(folder).update()
    monkeypatch.setattr(events_module, "BLOCK_BYTES", block)
    folder.events.write_bytes(b"")
    grown = History(folder)
    with folder.events.open("ab", buffering=0) as out:
        for at in range(0, len(whole), 9_973):
            out.write(whole[at : at + 9_973])
            grown.update()
    assert at_end.thinnings
    for name in ("steps", "newest", "evals", "thinnings", "seconds", "away_s", "last_time"):
        assert getattr(grown, name) == getattr(at_end, name), name


def test_the_time_of_each_stage_is_added_up(folder: RunFolder) -> None:
    told = [
        (10.0, {"event": "stage", "stage": "load"}),
        (14.0, {"event": "stage", "stage": "train"}),
        (16.0, {"event": "step", "step": 1, "loss": 1.0}),
        (20.0, {"event": "stage", "stage": "evaluate"}),
        (19.0, {"event": "eval", "step": 1, "loss": 1.0}),  # the clock was set back
        (21.0, {"event": "stage", "stage": "train"}),
        (22.5, {"event": "stopped", "kept": False}),
        (99.0, {"event": "resumed", "step": 1}),
        (100.0, {"event": "stage", "stage": "load"}),
        (103.0, {"event": "stage", "stage": "train"}),
        (105.0, {"event": "finished"}),
    ]
    lines = [json.dumps({"time": at} | event) for at, event in told]
    folder.events.write_text("\n".join([*lines, ""]), encoding="utf-8")
    seconds = History(folder).update().summary()["seconds"]
    assert seconds == {"load": 7.0, "train": 9.5, "evaluate": 2.0}


def test_the_summary_of_a_classification_has_what_its_evaluations_counted(
    folder: RunFolder,
) -> None:
    counted = {"f1": 0.4, "confusion": [[1, 0], [1, 0]]}
    write(
        folder,
        ("started", {"total_steps": 1, "task_type": "SEQ_CLS", "labels": ["no", "yes"]}),
        ("eval", {"step": 0, "loss": 3.0, "accuracy": 0.5} | counted),
        ("eval", {"step": 1, "loss": 1.0, "accuracy": 1.0} | counted),
    )
    summary = History(folder).update().summary()
    assert summary["eval_accuracies"] == [0.5, 1.0]
    assert summary["eval_f1s"] == [0.4, 0.4]


# Processes


def test_a_process_is_known_by_pid_and_start_time(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    file = tmp_path / "process.json"
    assert not process.is_running(file)
    process.write_identity(file, sleeper.pid)
    assert process.pid_of(file) == sleeper.pid
    noted = json.loads(file.read_text(encoding="utf-8"))
    earlier = {name: noted[name] - 100 for name in ("started", "since_boot")}
    file.write_text(json.dumps(noted | earlier), encoding="utf-8")
    assert not process.is_running(file)
    file.write_text("{torn", encoding="utf-8")
    assert not process.is_running(file)


def test_a_process_is_known_after_its_systems_clock_was_set(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux tells a start in ticks since boot; its time moves when a virtual machine wakes up."""
    file, booted = tmp_path / "process.json", psutil.boot_time()
    process.write_identity(file, sleeper.pid)
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: booted + 3600)
    assert process.is_running(file)
    noted = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(noted | {"since_boot": noted["since_boot"] - 100}))
    assert not process.is_running(file)


def test_a_note_of_an_earlier_version_knows_its_process(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    file = tmp_path / "process.json"
    started = psutil.Process(sleeper.pid).create_time()
    file.write_text(json.dumps({"pid": sleeper.pid, "started": started}), encoding="utf-8")
    assert process.is_running(file)


def test_the_number_of_a_worker_that_has_ended_may_be_anothers(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as ended:
        ended.wait()
    monkeypatch.setitem(process._CHILDREN, sleeper.pid, ended)
    file = tmp_path / "process.json"
    process.write_identity(file, sleeper.pid)
    assert process.is_running(file)


def test_a_worker_is_started_apart_and_ended_with_all_its_group(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker that starts a child, notes both and takes no notice of a polite request.
    module = folder.path / "stubborn.py"
    module.write_text(
        "import os, signal, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        "print('token' in os.environ.get('HF_TOKEN', ''), flush=True)\n"
        "Path(sys.argv[1], 'pids.txt').write_text(f'{child.pid} {os.getsid(0)}')\n"
        "time.sleep(600)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(process, "WORKER", "stubborn")
    monkeypatch.setenv("PYTHONPATH", str(folder.path))
    pid = process.start(folder, environment={"HF_TOKEN": "a token"})
    note = folder.path / "pids.txt"
    eventually(lambda: has_words(note), folder.stdout)
    child, session = map(int, note.read_text(encoding="utf-8").split())
    assert session == pid != os.getsid(0)
    assert process.is_running(folder.process)
    assert folder.stdout.read_text(encoding="utf-8") == "True\n"
    assert "token" not in folder.process.read_text(encoding="utf-8")
    process.end(folder, grace_s=0.1, unless=lambda: True)
    assert process.is_running(folder.process)
    process.end(folder, grace_s=0.5)
    eventually(lambda: not process.is_running(folder.process) and not is_alive(child))
    process.end(folder)  # a second time does nothing


def test_a_process_in_a_session_of_its_own_ends_with_its_worker(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = folder.path / "launcher.py"
    module.write_text(
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "rank = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'],\n"
        "                        start_new_session=True)\n"
        "Path(sys.argv[1], 'rank.txt').write_text(f'{rank.pid} ')\n"
        "time.sleep(600)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(process, "WORKER", "launcher")
    monkeypatch.setenv("PYTHONPATH", str(folder.path))
    process.start(folder, environment={})
    note = folder.path / "rank.txt"
    eventually(lambda: has_words(note), folder.stdout)
    rank = int(note.read_text(encoding="utf-8"))
    process.end(folder, grace_s=0.5)
    eventually(lambda: not process.is_running(folder.process) and not is_alive(rank))


def test_a_wish_to_discard_is_not_weakened(folder: RunFolder) -> None:
    assert folder.stop_wish() is None
    assert process.stop_asked_s(folder) == 0
    process.request_stop(folder, "keep")
    assert folder.stop_wish() == "keep"
    process.request_stop(folder, "pause")
    assert folder.stop_wish() == "pause"
    process.request_stop(folder, "discard")
    process.request_stop(folder, "keep")
    assert folder.stop_wish() == "discard"


def test_a_wish_is_as_old_as_when_it_was_first_uttered(folder: RunFolder) -> None:
    process.request_stop(folder, "keep")
    then = time.time() - 60
    os.utime(folder.stop, (then, then))
    process.request_stop(folder, "keep")
    assert 59 < process.stop_asked_s(folder) < 600


# The accelerator


def test_the_holder_is_whoever_runs(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    accelerator, again = Accelerator(tmp_path), Accelerator(tmp_path)
    job = Job("training", ("a-run-1",))
    assert accelerator.holder() is None
    accelerator.assign(job, sleeper.pid)
    assert again.holder() == job
    assert not again.is_mine()
    with pytest.raises(RunError, match="a-run-1 is training"):
        again.check(None)
    with pytest.raises(RunError, match="Somebody else") as caught:
        again.check("a visitor")
    assert "a-run-1" not in str(caught.value.to_dict())


def test_a_note_whose_process_is_gone_counts_for_nothing(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    accelerator = Accelerator(tmp_path)
    accelerator.assign(Job("training", ("a-run-1",)), sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert accelerator.holder() is None
    accelerator.check(None)
    accelerator.assign(Job("compare", ("b",)), os.getpid())
    assert accelerator.is_mine()


def test_the_same_job_of_another_process_is_not_given_back(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    accelerator, job = Accelerator(tmp_path), Job("compare", ("a",))
    accelerator.assign(job, os.getpid())
    accelerator.assign(job, sleeper.pid)
    accelerator.release(job)
    assert accelerator.holder() == job


@pytest.mark.parametrize("note", ["", "{", "[]", "null", '{"kind": "training"}', '{"other": 1}'])
def test_a_note_that_cannot_be_read_counts_for_nothing(tmp_path: Path, note: str) -> None:
    accelerator = Accelerator(tmp_path)
    accelerator.assign(Job("training", ("x",)), os.getpid())
    (tmp_path / "accelerator.json").write_text(note, encoding="utf-8")
    assert accelerator.holder() is None


def test_only_the_holder_gives_it_back(tmp_path: Path) -> None:
    accelerator = Accelerator(tmp_path)
    accelerator.assign(Job("compare", ("a",)), os.getpid())
    accelerator.release(Job("compare", ("b",)))
    assert accelerator.holder() == Job("compare", ("a",))
    accelerator.release(Job("compare", ("a",)))
    assert accelerator.holder() is None


RACER = """
import os, sys, time
from pathlib import Path
from lora_studio.errors import RunError
from lora_studio.runs.accelerator import Accelerator, Job
home, name = Path(sys.argv[1]), sys.argv[2]
accelerator = Accelerator(home)
(home / f"ready-{name}").touch()
while not (home / "go").exists():
    pass
try:
    with accelerator.guard():
        accelerator.check(None)
        time.sleep(0.05)
        accelerator.assign(Job("training", (name,)), os.getpid())
    print("won", flush=True)
except RunError as error:
    print(error, flush=True)
time.sleep(60)
"""


def test_of_two_processes_that_race_one_starts_and_the_other_is_told(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), name],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    try:
        eventually(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        (tmp_path / "go").touch()
        said = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    winner = ("first", "second")[said.index("won")]
    assert sorted(said, key=len) == [
        "won",
        f"The run {winner} is training. Wait until it has finished, or stop it first.",
    ]
