"""Lists of prompts put to several contenders: filling a table, finding it again, its files."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_studio.chat.request import Pane, Sampling
from lora_studio.errors import StudioError
from lora_studio.judging.batch import Answer, Asked, Batch, known, listed
from lora_studio.judging.contenders import Contender, Loaded
from lora_studio.judging.filling import fill
from lora_studio.judging.prompts import Prompt

BASE, CAFE = Contender.of(), Contender.of("cafe-1")
HALF = Contender.of("cafe-1", 0.5)


def asked_of(*contenders: Contender, prompts: int = 3, **settings: Any) -> Asked:
    return Asked(
        **settings,
        base="starter",
        contenders=contenders,
        prompts=tuple(Prompt.of(f"q{at}", reference=f"r{at}") for at in range(prompts)),
        sampling=Sampling(greedy=True, max_new_tokens=8),
    )


def question(pane: Pane) -> str:
    return pane.messages[-1]["content"] if pane.text is None else pane.text


class Answering:
    """Answers every pane with who it is and what was asked; refuses and stops where told."""

    def __init__(
        self,
        *,
        refuses: str = "",
        stops_after: int = 10**6,
        room: int = 10**6,
        reason: str = "end",
        fails_after: int = 10**6,
    ) -> None:
        self.calls: list[list[Pane]] = []
        self._refuses, self._stops_after, self._room = refuses, stops_after, room
        self._reason, self._fails_after = reason, fails_after

    def __call__(self, panes: Sequence[Pane], sampling: Sampling) -> Iterator[dict[str, Any]]:
        self.calls.append(list(panes))
        if self._refuses in map(question, panes):
            raise StudioError("chat.empty_prompt")
        if len(panes) > self._room:
            raise StudioError("chat.out_of_memory")
        stopped = len(self.calls) > self._stops_after
        yield {"stage": "load", "done": 0, "total": 0}
        yield {"mode": "batched"}
        for at, pane in enumerate(panes):
            if at == self._fails_after:
                raise StudioError("chat.out_of_memory")
            yield {"pane": at, "text": f" {pane.adapter}: "}
            yield {"pane": at, "text": question(pane)}
            reason = "stopped" if stopped else self._reason
            done = {"pane": at, "done": True, "tokens": 2, "seconds": 0.5}
            yield {**done, "tokens_per_s": 4.0, "reason": reason}


def numbers(events: Iterator[Mapping[str, Any]]) -> list[int]:
    """How many prompts have been answered, each time that this is told."""
    return [event["done"] for event in events if event["stage"] == "batch"]


def texts(batch: Batch) -> list[list[str | None]]:
    return [[one["text"] if one else None for one in row["answers"]] for row in batch.table()]


def test_tables_are_listed_as_they_were_begun_also_within_a_second(tmp_path: Path) -> None:
    names = [Batch.start(tmp_path, asked_of(BASE)).name for _ in range(8)]
    old = Batch.start(tmp_path, asked_of(BASE))
    (tmp_path / f"{old.name}.jsonl").rename(tmp_path / "20260101-120000-abcdef.jsonl")
    assert listed(tmp_path) == [*names[::-1], "20260101-120000-abcdef"]
    assert known(tmp_path, names[0]).begun > time.time() - 600
    assert known(tmp_path, "20260101-120000-abcdef").begun == 1767268800.0


def test_a_batch_asks_everybody_everything_and_is_found_again(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE))
    progress = list(fill(batch, Answering()))
    assert progress[0] == {"stage": "batch", "done": 0, "total": 3, "seconds_left": None}
    assert progress[1] == {"stage": "load", "done": 0, "total": 0}
    assert [step["done"] for step in progress[2:]] == [1, 2, 3]
    wanted = [[f"None: q{at}", f"cafe-1: q{at}"] for at in range(3)]
    assert texts(batch) == wanted
    assert listed(tmp_path) == [batch.name]
    again = Batch.open(tmp_path, batch.name)
    assert (again.asked, texts(again), again.pending()) == (batch.asked, wanted, [])


def test_several_prompts_are_answered_at_once_but_not_too_many(tmp_path: Path) -> None:
    asks = Answering()
    list(fill(Batch.start(tmp_path, asked_of(BASE, CAFE, HALF, prompts=7)), asks))
    assert [len(panes) for panes in asks.calls] == [15, 6]
    asks = Answering()
    list(fill(Batch.start(tmp_path, asked_of(BASE, CAFE, prompts=20)), asks))
    assert [len(panes) for panes in asks.calls] == [16, 16, 8]


def test_where_memory_does_not_suffice_prompts_are_asked_one_by_one(tmp_path: Path) -> None:
    asks = Answering(room=2)
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE, prompts=3))
    assert numbers(fill(batch, asks)) == [0, 1, 2, 3]
    assert [len(panes) for panes in asks.calls] == [6, 2, 2, 2]
    with pytest.raises(StudioError, match="Memory ran out"):
        list(fill(Batch.start(tmp_path, asked_of(BASE, CAFE, prompts=3)), Answering(room=1)))


def test_only_answers_that_are_not_there_are_asked_for_again(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE, prompts=3))
    asks = Answering(fails_after=3)
    assert numbers(fill(batch, asks)) == [0, 1, 2, 3]
    assert [len(panes) for panes in asks.calls] == [6, 1, 2]
    assert texts(batch) == [[f"None: q{at}", f"cafe-1: q{at}"] for at in range(3)]
    lines = (tmp_path / f"{batch.name}.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 6


def test_an_answer_that_is_there_stays_where_the_rest_of_its_prompt_is_refused(
    tmp_path: Path,
) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE, prompts=1))
    batch.add(0, 0, Answer(text="mine", tokens=1, seconds=1.0, reason="end"))
    list(fill(batch, Answering(refuses="q0")))
    assert [batch.answers[0, who].reason for who in range(2)] == ["end", "refused"]


def test_a_table_keeps_what_stood_behind_its_names(tmp_path: Path) -> None:
    loaded = Loaded(precision="bf16", weights={"cafe-1": "0a1b2c"})
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE, loaded=loaded))
    kept = Batch.open(tmp_path, batch.name).asked.loaded
    assert kept == loaded
    assert kept.changed(loaded) == ""
    assert kept.changed(Loaded(precision="nf4", weights={"cafe-1": "ff"})) == "cafe-1, bf16 → nf4"
    assert Loaded().changed(loaded) == ""


def test_a_disk_that_takes_no_more_is_said_in_words_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE))
    answer = Answer(text="mine", tokens=1, seconds=1.0, reason="end")
    batch.add(0, 0, answer)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lora_studio.judging.batch._append", full)
        with pytest.raises(StudioError, match=r"No space left on device.*Make room"):
            list(fill(batch, Answering()))
        patch.setattr("lora_studio.judging.batch.write_whole", full)
        with pytest.raises(StudioError, match=r"could not be begun in .* \(No space left"):
            Batch.start(tmp_path, asked_of(BASE, CAFE))
    assert Batch.open(tmp_path, batch.name).answers == {(0, 0): answer}


def test_a_list_of_tables_reads_a_file_again_only_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE, prompts=2))
    opened: list[str] = []
    read = Batch.open
    monkeypatch.setattr(Batch, "open", lambda *at: opened.append(at[1]) or read(*at))
    assert [known(tmp_path, batch.name).done for _ in range(2)] == [0, 0]
    list(fill(batch, Answering()))
    assert [(one.done, one.total) for one in [known(tmp_path, batch.name)] * 2] == [(2, 2)] * 2
    assert opened == [batch.name] * 2
    with pytest.raises(StudioError, match="There is no table"):
        known(tmp_path, "gone")


def test_a_batch_that_is_closed_goes_on_where_it_was(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE, prompts=5))
    work = fill(batch, Answering())
    while next(work)["done"] < 2:
        pass
    work.close()
    again = Batch.open(tmp_path, batch.name)
    assert again.pending() == [2, 3, 4]
    asks = Answering()
    assert numbers(fill(again, asks)) == [2, 3, 4, 5]
    assert question(asks.calls[0][0]) == "q2"


def test_a_stop_keeps_what_was_answered_and_nothing_half(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE, prompts=11))
    assert numbers(fill(batch, Answering(stops_after=1))) == list(range(9))
    assert batch.pending() == [8, 9, 10]
    assert texts(batch)[8] == [None, None]


def test_a_prompt_that_is_refused_is_noted_and_the_others_are_answered(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE))
    list(fill(batch, Answering(refuses="q1")))
    assert batch.pending() == []
    table = Batch.open(tmp_path, batch.name).table()
    assert [row["answers"][0]["reason"] for row in table] == ["end", "refused", "end"]
    assert table[1]["answers"][1]["problem"]["key"] == "chat.empty_prompt"


def test_a_line_that_was_torn_is_asked_again(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE))
    list(fill(batch, Answering()))
    file = tmp_path / f"{batch.name}.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    again = Batch.open(tmp_path, batch.name)
    assert again.pending() == [2]
    list(fill(again, Answering()))
    assert Batch.open(tmp_path, batch.name).pending() == []


@pytest.mark.parametrize("name", ["gone", "../votes", "", "x/../../y"])
def test_a_table_is_looked_up_by_name_and_never_by_path(tmp_path: Path, name: str) -> None:
    Batch.start(tmp_path / "batches", asked_of(BASE, CAFE))
    (tmp_path / "votes.jsonl").write_text("{}\n")
    with pytest.raises(StudioError, match="There is no table"):
        Batch.open(tmp_path / "batches", name)


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text("[1, 2]\n")
    with pytest.raises(StudioError, match=r"odd\.jsonl cannot be read"):
        Batch.open(tmp_path, "odd")


def test_a_table_is_written_for_other_programs(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE, prompts=2))
    next(work := fill(batch, Answering()))
    rows = list(csv.reader(io.StringIO(batch.csv())))
    assert rows[1] == ["q0", "r0", *[""] * 8]
    list(work)
    rows = list(csv.DictReader(io.StringIO(batch.csv())))
    assert rows[1]["cafe-1"] == "cafe-1: q1"
    assert (rows[1]["cafe-1 tokens"], rows[1]["cafe-1 reason"]) == ("2", "end")
    lines = [json.loads(line) for line in batch.jsonl()]
    assert lines[0]["messages"] == [{"role": "user", "content": "q0"}]
    assert lines[0]["answers"]["(base)"]["text"] == "None: q0"


def test_a_table_of_texts_continues_them_and_is_found_again_so(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE, as_text=True, apart=True))
    asks = Answering()
    list(fill(Batch.open(tmp_path, batch.name), asks))
    panes = asks.calls[0]
    assert [(pane.text, pane.messages) for pane in panes[:2]] == [("q0", ()), ("q0", ())]
    assert [pane.seed for pane in panes[:4]] == [42, 43, 42, 43]  # as the panes side by side
    (line, *_) = Batch.open(tmp_path, batch.name).jsonl()
    assert json.loads(line)["text"] == "q0"


def test_a_table_of_before_texts_could_be_asked_is_one_of_questions(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE))
    file = tmp_path / f"{batch.name}.jsonl"
    head = json.loads(file.read_text())
    del head["as_text"], head["apart"]
    file.write_text(json.dumps(head) + "\n")
    asked = Batch.open(tmp_path, batch.name).asked
    assert asked == batch.asked
    assert asked.pane(0, 1) == CAFE.pane(asked.prompts[0].messages)


def test_a_refused_answer_and_a_cut_one_are_told_apart_in_the_file(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE, prompts=2))
    list(fill(batch, Answering(refuses="q1", reason="length")))
    rows = list(csv.DictReader(io.StringIO(batch.csv())))
    assert [row["(base) reason"] for row in rows] == ["length", "refused"]


def test_looking_at_a_table_does_not_write_into_it(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE))
    list(fill(batch, Answering()))
    file = tmp_path / f"{batch.name}.jsonl"
    torn = file.read_bytes()[:-20]
    file.write_bytes(torn)
    Batch.open(tmp_path, batch.name)
    assert file.read_bytes() == torn


def test_a_table_says_when_it_was_begun(tmp_path: Path) -> None:
    batch = Batch.start(tmp_path, asked_of(BASE, CAFE))
    assert time.time() - 60 < batch.begun <= time.time()
    (tmp_path / f"{batch.name}.jsonl").rename(tmp_path / "mine.jsonl")
    assert Batch.open(tmp_path, "mine").begun == 0
