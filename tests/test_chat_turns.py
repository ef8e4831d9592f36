"""A line of people who want the same thing: in order, told their place, free to leave."""

from __future__ import annotations

import threading
import time

import pytest

from lora_studio.chat.turns import Turns

PATIENCE_S = 60


def stand(turns: Turns, told: list[int], served: list[str], name: str) -> threading.Thread:
    """Let somebody join in a thread of their own, and wait until they stand in the line."""
    standing = threading.Event()

    def wait() -> None:
        with turns.join() as turn:
            standing.set()
            told.extend(turn.places())
            served.append(name)

    thread = threading.Thread(target=wait)
    thread.start()
    assert standing.wait(PATIENCE_S)
    return thread


def settled(told: list[int], wanted: list[int]) -> None:
    """Wait until somebody was told these places, whatever they were told twice."""
    deadline = time.monotonic() + PATIENCE_S
    while list(dict.fromkeys(told)) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(dict.fromkeys(told)) == wanted


def test_who_is_alone_does_not_wait_and_is_told_nothing() -> None:
    turns = Turns()
    for _ in range(2):
        with turns.join() as turn:
            assert list(turn.places()) == []


def test_all_are_served_in_the_order_they_came_and_told_each_place_on_the_way() -> None:
    turns = Turns()
    served: list[str] = []
    told: list[list[int]] = [[], [], []]
    with turns.join() as first:
        assert list(first.places()) == []
        threads = [stand(turns, told[i], served, "bcd"[i]) for i in range(3)]
        for places, wanted in zip(told, ([1], [2], [3]), strict=True):
            settled(places, wanted)
        served.append("a")
    for thread in threads:
        thread.join(PATIENCE_S)
    assert served == ["a", "b", "c", "d"]


def test_one_who_leaves_the_middle_of_the_line_lets_the_others_move_up() -> None:
    turns = Turns()
    served: list[str] = []
    told: list[int] = []
    with turns.join() as first:
        list(first.places())
        leaving = turns.join()
        with leaving:
            places = leaving.places()
            assert next(places) == 1
            thread = stand(turns, told, served, "last")
            settled(told, [2])
            places.close()
        settled(told, [2, 1])
    thread.join(PATIENCE_S)
    assert served == ["last"]


def test_a_generator_that_waits_in_line_can_be_closed_and_leaves_it() -> None:
    turns = Turns()

    def asking():
        with turns.join() as turn:
            for place in turn.places(every_s=0.01):
                yield {"place": place}
            yield {"mode": "batched"}

    with turns.join() as first:
        list(first.places())
        waiting = asking()
        # Told again and again, because only between two events can it be closed.
        assert [next(waiting) for _ in range(3)] == [{"place": 1}] * 3
        waiting.close()
    with turns.join() as after:
        assert list(after.places()) == []


def test_a_failure_at_work_gives_the_turn_on() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.join() as turn:
        list(turn.places())
        raise ZeroDivisionError
    with turns.join() as turn:
        assert list(turn.places()) == []


def test_many_at_once_never_work_at_the_same_time() -> None:
    turns = Turns()
    at_work = threading.Lock()
    overlaps: list[int] = []

    def work(number: int) -> None:
        with turns.join() as turn:
            list(turn.places(every_s=0.001))
            if not at_work.acquire(blocking=False):
                overlaps.append(number)
                return
            time.sleep(0.002)
            at_work.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not overlaps
    assert not any(thread.is_alive() for thread in threads)
