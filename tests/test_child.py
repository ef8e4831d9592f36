"""A child process that serves one object: results, streams, errors, deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_studio.child import Child, InProcess
from lora_studio.errors import DatasetError, StudioError

ROOT = Path(__file__).resolve().parent.parent


class Served:
    """What the child holds in these tests."""

    def __init__(self, start: int = 0) -> None:
        self.count = start
        self.is_stopped = threading.Event()
        self.closed_streams = 0

    def add(self, number: int) -> int:
        self.count += number
        return self.count

    def pid(self) -> int:
        return os.getpid()

    def numbers(self, end: int) -> Iterator[int]:
        try:
            yield from range(end)
        finally:
            self.closed_streams += 1

    def until_stopped(self) -> Iterator[str]:
        yield "started"
        self.is_stopped.wait(30)
        yield "stopped" if self.is_stopped.is_set() else "timed out"

    def held(self) -> Iterator[str]:
        yield "first"
        self.is_stopped.wait(30)
        yield "stale"
        yield "stale"

    def slowly(self, seconds: float) -> Iterator[str]:
        yield "first"
        time.sleep(seconds)
        yield "stale"
        yield "stale"

    def start_program(self) -> Iterator[int]:
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as program:
            yield program.pid

    def stop(self) -> None:
        self.is_stopped.set()

    def closed(self) -> int:
        return self.closed_streams

    def refuse(self) -> None:
        raise DatasetError("chat.unknown_adapter", name="a", known="b")

    def break_down(self) -> None:
        message = "a detail"
        raise KeyError(message)

    def break_midway(self) -> Iterator[int]:
        yield 1
        self.break_down()

    def unpicklable(self) -> Callable[[], None]:
        return lambda: None

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep(self, seconds: float, note: Path | None = None) -> None:
        """Sleep; a note says that it has begun."""
        if note is not None:
            note.touch()
        time.sleep(seconds)


@pytest.fixture
def child() -> Iterator[Child]:
    served = Child(Served, 10)
    yield served
    served.close()


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_nothing_starts_before_the_first_call_and_state_stays_between_calls(child):
    assert not child.alive
    assert child.pid is None
    child.interrupt("stop")
    assert not child.alive
    assert child.call("add", number=1) == 11
    assert child.call("add", number=1) == 12
    assert child.alive
    assert child.pid == child.call("pid") != os.getpid()


def test_a_factory_may_be_named_by_text():
    named = Child("lora_studio.wording:table")
    assert "chat.child_died" in list(named.stream("keys"))
    named.close()


def test_a_stream_comes_item_by_item_and_many_items_do_not_block(child):
    assert list(child.stream("numbers", end=20_000)) == list(range(20_000))


def test_a_stream_closed_early_closes_the_childs_generator_and_leaves_the_pipe_clean(child):
    items = child.stream("numbers", end=10**9)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    items.close()
    assert child.call("add", number=5) == 15
    assert child.call("closed") == 1


def test_closing_a_stream_does_not_wait_for_a_busy_child_and_the_next_one_gets_nothing_of_it(child):
    items = child.stream("held")
    assert next(items) == "first"
    items.close()
    assert child._turn.locked()  # the child is as busy as before, and keeps its turn
    found: list[int] = []
    following = threading.Thread(target=lambda: found.extend(child.stream("numbers", end=3)))
    following.start()
    assert child._turn.locked()
    assert found == []
    child.interrupt("stop")
    following.join(60)
    assert found == [0, 1, 2]


def test_a_closed_stream_that_hangs_ends_the_child_and_the_next_call_has_a_fresh_one(
    child, monkeypatch
):
    monkeypatch.setattr("lora_studio.child.DRAIN_GRACE_S", 0.3)
    items = child.stream("slowly", seconds=600)
    next(items)
    hanging = child.pid
    items.close()
    assert child.call("add", number=1) == 11
    assert not is_running(hanging)


def test_retired_a_child_ends_after_what_it_is_busy_with(child):
    items = child.stream("slowly", seconds=0.3)
    next(items)
    items.close()
    pid = child.pid
    child.retire()
    assert not child.alive
    assert not is_running(pid)


def test_what_a_child_has_started_ends_with_it(child):
    program = next(items := child.stream("start_program"))
    child.close()
    assert wait_until(lambda: not is_running(program))
    items.close()


def test_of_a_child_that_is_gone_the_number_is_not_looked_up_again(child, monkeypatch):
    child.call("add", number=1)
    os.kill(child.pid, signal.SIGKILL)
    assert wait_until(lambda: not child.alive)
    looked_up = []
    monkeypatch.setattr("lora_studio.child._end_children", looked_up.append)
    child.close()
    assert looked_up == []


def test_a_stream_never_read_costs_nothing(child):
    child.stream("numbers", end=10**9)
    assert child.call("add", number=5) == 15


def test_an_interrupt_reaches_the_object_while_a_stream_runs(child):
    items = child.stream("until_stopped")
    assert next(items) == "started"
    child.interrupt("stop")
    assert next(items) == "stopped"
    assert list(items) == []


def test_studio_errors_cross_as_themselves(child):
    with pytest.raises(DatasetError) as caught:
        child.call("refuse")
    assert caught.value.key == "chat.unknown_adapter"
    assert caught.value.values == {"name": "a", "known": "b"}
    assert child.call("add", number=1) == 11


@pytest.mark.parametrize("method", ["break_down", "unpicklable", "until_stopped", "no_such_method"])
def test_any_other_exception_becomes_a_sentence_with_its_cause(child, method):
    with pytest.raises(StudioError) as caught:
        child.call(method)
    assert caught.value.key == "chat.child_failed"
    assert child.call("add", number=1) == 11


def test_an_error_midway_comes_after_the_items_before_it(child):
    items = child.stream("break_midway")
    assert next(items) == 1
    with pytest.raises(StudioError, match="KeyError: 'a detail'"):
        next(items)
    assert child.call("add", number=1) == 11


def test_a_factory_that_fails_is_a_sentence_too():
    broken = Child("lora_studio.no_such_module:Nothing")
    with pytest.raises(StudioError, match="ModuleNotFoundError"):
        broken.call("add")
    broken.close()


def test_a_dead_child_is_a_sentence_and_the_next_call_starts_a_fresh_one(child):
    first = child.call("pid")
    with pytest.raises(StudioError) as caught:
        child.call("die")
    assert caught.value.key == "chat.child_died"
    assert not is_running(first)
    assert child.call("add", number=1) == 11
    os.kill(child.pid, signal.SIGKILL)
    assert wait_until(lambda: not child.alive)
    assert child.call("add", number=1) == 11


def test_closing_ends_the_process_and_a_waiting_call_hears_of_it(child, tmp_path):
    pid = child.call("pid")
    note = tmp_path / "sleeps"
    closer = threading.Thread(target=lambda: wait_until(note.exists) and child.close())
    closer.start()
    with pytest.raises(StudioError) as caught:
        child.call("sleep", seconds=600, note=note)
    closer.join()
    assert caught.value.key == "chat.child_closed"
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert not child.alive


def test_who_waits_for_a_turn_hears_that_the_child_was_closed_and_starts_none(child):
    items = child.stream("held")
    next(items)
    items.close()
    heard: list[str] = []

    def ask() -> None:
        with pytest.raises(StudioError) as caught:
            child.call("add", number=1)
        heard.append(caught.value.key)

    waiting = threading.Thread(target=ask)
    waiting.start()
    child.close()
    waiting.join(60)
    assert heard == ["chat.child_closed"]
    assert not child.alive


@pytest.mark.parametrize("kind", [Child, InProcess])
def test_what_was_closed_stays_so_until_it_is_opened(kind):
    served = kind(Served, 10)
    assert served.call("add", number=1) == 11
    served.close()
    for refused in (lambda: served.call("add", number=1), lambda: list(served.stream("numbers"))):
        with pytest.raises(StudioError) as caught:
            refused()
        assert caught.value.key == "chat.child_closed"
    assert not served.alive
    served.open()
    assert not served.alive
    assert served.call("add", number=1) == 11
    served.close()


def test_calls_from_several_threads_take_turns(child):
    threads = [
        threading.Thread(target=lambda: [child.call("add", number=1) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert child.call("add", number=0) == 210


def test_ctrl_c_in_the_terminal_does_not_reach_the_child(child):
    child.call("add", number=1)
    os.kill(child.pid, signal.SIGINT)
    assert child.call("add", number=1) == 12


def test_an_object_in_this_process_answers_the_same_calls():
    here = InProcess(Served, 10)
    here.interrupt("stop")
    assert (here.alive, here.pid) == (False, None)
    assert here.call("add", number=1) == 11
    assert list(here.stream("numbers", end=3)) == [0, 1, 2]
    items = here.stream("until_stopped")
    next(items)
    here.interrupt("stop")
    assert next(items) == "stopped"
    assert (here.alive, here.pid) == (True, os.getpid())
    here.close()
    assert not here.alive


SCRIPT = """
import sys, time
from lora_studio.child import Child
from tests.test_child import Served

print("imported as", __name__, flush=True)
if __name__ == "__main__":
    child = Child(Served)
    print("child", child.call("pid"), flush=True)
    if "hang" in sys.argv:
        child.call("sleep", seconds=600)
"""


def start_script(folder: Path, *args: str) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    return subprocess.Popen(
        [sys.executable, str(script), *args],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )


def test_a_plain_script_needs_no_close_and_leaves_no_process(tmp_path):
    with start_script(tmp_path) as script:
        output, _ = script.communicate(timeout=240)
    assert script.returncode == 0
    pid = int(output.split("child ")[1])
    assert not is_running(pid)


@pytest.mark.parametrize("last_signal", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_when_its_parent_is_killed_even_in_the_middle_of_work(tmp_path, last_signal):
    with start_script(tmp_path, "hang") as script:
        lines = iter(script.stdout)
        pid = next(int(line.split()[1]) for line in lines if line.startswith("child"))
        assert is_running(pid)
        script.send_signal(last_signal)
        script.wait(timeout=60)
        assert wait_until(lambda: not is_running(pid))
