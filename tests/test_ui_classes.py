"""What the page shows of runs that sort texts into classes, without a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sorting import LABELS, evaluation, write_run

from lora_studio.errors import StudioError
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History
from lora_studio.ui import classify, confusion
from lora_studio.ui.language import Voice
from lora_studio.ui.live import news, state

EVIL = "<img src=x>"
REQUEST = SimpleNamespace(cookies={}, headers={})


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(write_run(tmp_path / "sort-1", "starter", prompts=["Nice.", EVIL])).update()


def test_a_live_view_gets_accuracy_and_the_newest_confusion(history: History) -> None:
    fresh = news(history, [0, 0, 0], Voice(None))
    assert fresh["sorts"] is True
    assert [entry["accuracy"] for entry in fresh["evals"]] == [0.2, 0.6, 0.9]
    assert fresh["confusion"]["labels"] == list(LABELS)
    assert fresh["confusion"]["rows"] == evaluation(8, LABELS)["confusion"]
    assert "step 8" in fresh["confusion"]["title"]
    assert dict(fresh["tiles"])["accuracy"] == "90.0 %"
    assert dict(fresh["tiles"])["F1 (macro)"] == "0.900"
    assert fresh["state"] == "Finished. Held-out accuracy 20.0 % → 90.0 %."
    later = news(history, fresh["cursor"], Voice(None))
    assert later["evals"] == []
    assert "confusion" not in later


def test_a_run_that_writes_has_no_classes_to_show(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "write-1", "starter", labels=["only"])
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    for event in events:
        for name in ("labels", "accuracy", "f1", "confusion"):
            event.pop(name, None)
        if event["event"] == "eval":
            event["perplexity"] = 4.0
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    fresh = news(History(RunFolder(folder.path)).update(), [0, 0, 0], Voice(None))
    assert (fresh["sorts"], fresh["confusion"]) == (False, None)
    assert "accuracy" not in dict(fresh["tiles"])
    assert "perplexity" in fresh["state"]


def test_an_evaluation_without_a_number_is_shown_without_it(history: History) -> None:
    history.evals[-1] |= {"loss": None, "accuracy": None, "f1": None}
    names = [name for name, _ in state(history, Voice(None))["tiles"]]
    assert not {"held-out loss", "accuracy", "F1 (macro)"} & set(names)


def test_of_many_classes_the_most_confused_pairs_are_told(tmp_path: Path) -> None:
    labels = [f"c{at}" for at in range(confusion.MOST_CLASSES + 1)]
    history = History(write_run(tmp_path / "many-1", "starter", labels)).update()
    rows = [[10 if at == said else 0 for said in range(len(labels))] for at in range(len(labels))]
    rows[3][7], rows[5][1] = 4, 6
    history.evals[-1]["confusion"] = rows
    found = confusion.confusion(history, Voice(None))
    assert found is not None
    assert found["pairs"] == [
        "“c5” taken for “c1”: 6 of 16",
        "“c3” taken for “c7”: 4 of 14",
    ]
    rows[3][7] = rows[5][1] = 0
    found = confusion.confusion(history, Voice(None))
    assert found is not None
    assert found["pairs"] == ["Nothing was confused."]


def test_both_sides_stand_in_one_order_and_each_marks_its_own_likeliest() -> None:
    found = {"labels": LABELS, "base": [0.5, 0.3, 0.2], "adapter": [0.1, 0.2, 0.7]}
    base, adapter = classify.result("Nice.", found, "mine", Voice(None)).split('side adapter"')
    for side in (base, adapter):
        assert side.index("good") < side.index("fair") < side.index("bad")
    assert "<li class=top><span>bad</span>" in base
    assert "<li class=top><span>good</span>" in adapter
    assert "70.0 %" in adapter
    assert "untrained" in base


def test_of_many_classes_the_likeliest_are_listed_and_the_rest_summed() -> None:
    count = classify.MOST_CLASSES + 8
    labels = [f"c{at}" for at in range(count)]
    adapter = [0.02] * count
    adapter[4] = 1 - 0.02 * (count - 1)
    base = [0.0] * count
    base[-1] = 1.0
    html = classify.result("x", {"labels": labels, "base": base, "adapter": adapter}, "m",
                           Voice(None))  # fmt: skip
    assert html.count("<li") == 2 * classify.MOST_CLASSES
    assert "8 more classes, together 16.0 %" in html
    assert f"<li class=top><span>c{count - 1}</span>" in html


def test_nothing_of_a_run_is_read_as_markup() -> None:
    found = {"labels": [EVIL, "b"], "base": [0.5, 0.5], "adapter": [0.1, 0.9]}
    shown = [
        classify.result(EVIL, found, EVIL, Voice(None)),
        classify.examples([EVIL, '"><script>'], Voice(None)),
        classify.empty([EVIL], Voice(None)),
    ]
    assert "<img" not in "".join(shown)
    assert "<script" not in "".join(shown)


def test_only_a_text_is_taken_from_a_click() -> None:
    assert classify.take(SimpleNamespace(text="Nice.")) == "Nice."
    assert len(classify.take(SimpleNamespace(text="x" * 10**6))) == classify.MOST_CHARS
    assert not isinstance(classify.take(SimpleNamespace(text=["x"])), str)


class FakeStudio:
    """Answers as told."""

    def __init__(self, answers: list[dict[str, object]] | StudioError) -> None:
        self._answers = answers

    @property
    def answers(self) -> FakeStudio:
        return self

    def classify(self, run: str, text: str) -> Iterator[dict[str, object]]:
        if isinstance(self._answers, StudioError):
            raise self._answers
        yield from self._answers


def answered(studio: FakeStudio | None, text: object) -> list[tuple[object, ...]]:
    box = classify.ClassifyBox.__new__(classify.ClassifyBox)
    box.door = SimpleNamespace(enter=lambda request: studio)
    return list(box.answer(REQUEST, "sort-1", text))


def test_the_button_waits_while_both_sides_are_asked() -> None:
    found = {"labels": LABELS, "base": [0.5, 0.3, 0.2], "adapter": [0.1, 0.2, 0.7]}
    stage = {"stage": "load", "done": 0, "total": 0}
    first, second, last = answered(FakeStudio([stage, found]), " Nice. ")
    assert first[2].interactive is False
    assert "Loading the model" in second[1]
    assert "sort-1" in last[0]
    assert (last[1], last[2].interactive) == ("", True)


def test_what_goes_wrong_is_said_and_takes_an_old_answer_away() -> None:
    *_, last = answered(FakeStudio(StudioError("chat.out_of_memory")), "Nice.")
    assert last[0] == ""
    assert "Memory ran out" in last[1]
    assert last[2].interactive is True


@pytest.mark.parametrize(
    ("text", "said"), [("  ", "Type a text first"), (None, "Type a text"), ("x" * 20_001, "over")]
)
def test_a_text_that_cannot_be_asked_is_said_before_a_model_is_loaded(
    text: object, said: str
) -> None:
    ((_, note, _),) = answered(None, text)
    assert said in note


def test_a_run_shows_its_classes_and_the_texts_it_was_tried_on(history: History) -> None:
    box = classify.ClassifyBox.__new__(classify.ClassifyBox)
    prompts = [sample["prompt"] for sample in history.samples]
    whole, text, listed, note, empty = box.show(prompts, LABELS, Voice(None))
    assert (whole.visible, text, note) == (True, "", "")
    assert listed.count("<button") == 2
    assert "3 classes: bad, fair, good." in empty
    assert box.show(prompts, [], Voice(None))[0].visible is False
