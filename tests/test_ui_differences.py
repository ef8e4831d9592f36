"""What the comparison shows besides answers, without a browser: colours, prompts, tables."""

from __future__ import annotations

import math
import re
import time
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_studio.chat.request import Sampling
from lora_studio.errors import StudioError
from lora_studio.judging.batch import Answer, Asked, Batch, known
from lora_studio.judging.contenders import Contender
from lora_studio.judging.prompts import Prompt
from lora_studio.ui import batch_panel, batch_table, difference_panel, prompt_panel
from lora_studio.ui.conversation import Conversation
from lora_studio.ui.difference_text import changed, coloured, stretches
from lora_studio.ui.language import Voice
from lora_studio.wording import say

SEA, POEMS = Contender.of("sea-1"), Contender.of("poems-1")
SCORE = {
    "text": 0,
    "pieces": ["", "", "가", " a"],
    "logprobs": [[-1.0, -0.5, -0.25, -2.0], [-0.5, -0.25, -0.125, -2.0]],
    "is_first": [True, False, True, True],
    "first": ["가", "", "가", " a"],
    "first_logprobs": [-1.0, -0.1, -0.25, -2.0],
}


def voice(language: str = "en") -> Voice:
    return Voice(SimpleNamespace(cookies={}, headers={"accept-language": language}))  # type: ignore[arg-type]


def conversation_of(*contenders: Contender, is_blind: bool = False) -> Conversation:
    conversation = Conversation()
    conversation.begin(contenders, "starter", is_blind=is_blind)
    conversation.ask("Who?")
    for pane, _ in enumerate(contenders):
        conversation.take(pane, {"pane": pane, "text": "I."})
        conversation.take(pane, {"pane": pane, "done": True, "reason": "end"})
    return conversation


def test_a_character_of_several_tokens_is_coloured_by_all_of_them() -> None:
    first, second = stretches(SCORE, 1)
    assert (first.text, first.base, first.other) == ("가", -1.75, -0.875)
    assert (first.first, first.first_base) == ("", -1.1)  # where the base went another way
    assert (second.text, second.first, second.first_base) == (" a", " a", -2.0)


def test_tokens_that_differ_are_counted_and_parts_of_characters_are_said_to_be_that() -> None:
    html = coloured(SCORE, 1, voice())
    assert say("page.differences_count", n=1, total=4) in html
    hovers = [unescape(found) for found in re.findall('title="(.*?)"', html)]
    assert hovers == [
        say(
            "page.differences_token", base=f"{math.exp(-1.75):.0%}", adapter="42%",
            first=say("page.differences_part"), first_share="33%",
        ),
        say(
            "page.differences_token", base="14%", adapter="14%", first="“ a”", first_share="14%"
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("contenders", "named"),
    [((Contender.of(), SEA), None), ((POEMS, Contender.of(), SEA), "poems-1")],
)
def test_with_several_adapters_the_base_is_coloured_against_one_that_is_named(
    contenders: tuple[Contender, ...], named: str | None
) -> None:
    conversation = conversation_of(*contenders)
    three = SCORE | {"logprobs": [*SCORE["logprobs"], SCORE["logprobs"][0]]}  # type: ignore[misc]
    found = difference_panel._by_place(conversation, dict.fromkeys(range(4), three), voice())
    at = contenders.index(Contender.of())
    told = [re.search(r"Coloured by what (.*?) changed", html) for html in found]
    assert [one and one[1] for one in told] == [
        named if place == at else None for place in range(4)
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("the " * 2048, "a the " * 1024 + "b"),
        (
            " ".join(f"w{at % 7}" for at in range(1024)),
            " ".join(f"w{at % 8}" for at in range(1024)),
        ),
        ("One <b> two three.", "One <b> 2 three."),
        ("same", "same"),
        ("", "new"),
    ],
)
def test_what_changed_is_told_whole_and_soon_where_an_answer_goes_in_circles(
    before: str, after: str
) -> None:
    began = time.process_time()
    html = changed(before, after, voice())
    assert time.process_time() - began < 2
    said = html.split("<p>")[1].split("</p>")[0]
    assert unescape(re.sub("<ins>.*?</ins>|</?del>", "", said)) == before
    assert unescape(re.sub("<del>.*?</del>|</?ins>", "", said)) == after


def test_words_that_stayed_are_not_told_as_changed() -> None:
    html = changed("I like the old red house.", "I like a red house, too.", voice())
    said = html.split("<p>")[1].split("</p>")[0]
    assert said == (
        "I like <del>the old</del><ins>a</ins> red house<ins>, too</ins>."
    )  # fmt: skip


RENDERED: dict[str, Any] = {
    "text": "<s>Who? Me and you", "tokens": 5, "limit": None, "cut": 0, "cut_text": "",
}  # fmt: skip


def test_prompts_that_differ_say_whose_they_are() -> None:
    asked = conversation_of(Contender.of(), SEA, POEMS)
    same = prompt_panel.prompts([RENDERED] * 3, asked, voice())
    assert (same.count("<pre"), same.count("<h4>")) == (1, 0)
    other = prompt_panel.prompts([RENDERED, RENDERED | {"text": "<b>"}, RENDERED], asked, voice())
    assert re.findall("<h4>(.*?)</h4>", other) == ["Base, poems-1", "sea-1"]
    assert "&lt;b&gt;" in other


def test_names_stay_hidden_above_prompts_until_the_vote() -> None:
    asked = conversation_of(Contender.of(), SEA, is_blind=True)
    html = prompt_panel.prompts([RENDERED, RENDERED | {"text": "x"}], asked, voice())
    assert re.findall("<h4>(.*?)</h4>", html) == ["A", "B"]


def test_what_would_be_cut_off_a_prompt_is_marked() -> None:
    cut = RENDERED | {"limit": 3, "cut": 2, "cut_text": " and you"}
    html = prompt_panel.prompts([cut], conversation_of(SEA), voice())
    assert "Who? Me<del> and you</del></pre>" in html
    assert say("page.prompt_cut", n="2") in html


def test_the_prompt_of_a_question_that_was_refused_is_the_one_that_is_seen() -> None:
    conversation = conversation_of(SEA)
    conversation.refused = conversation.copy()
    conversation.refused.ask("Why not?")
    seen: list[Any] = []

    class Answers:
        def render(self, _name: str, panes: Any) -> Any:
            seen.append(panes[0].messages[-1]["content"])
            raise StudioError("chat.empty_prompt")

    door = SimpleNamespace(enter=lambda _request: SimpleNamespace(answers=Answers()))
    panel = SimpleNamespace(door=door)
    request = SimpleNamespace(cookies={}, headers={})
    show = prompt_panel.PromptPanel.show
    list(show(panel, True, "sea-1", conversation, request))  # type: ignore[arg-type]
    conversation.ask("And then?")
    list(show(panel, True, "sea-1", conversation, request))  # type: ignore[arg-type]
    assert seen == ["Why not?", "And then?"]
    (same,) = show(panel, False, "sea-1", conversation, request)  # type: ignore[arg-type]
    assert same == {"__type__": "update"}


def test_a_table_marks_what_was_cut_and_says_why_something_was_refused(tmp_path: Path) -> None:
    prompts = tuple(map(Prompt.of, ["q0", "q1", "q2"]))
    asked = Asked(base="b", contenders=(SEA,), prompts=prompts, sampling=Sampling())
    batch = Batch.start(tmp_path, asked)
    ends = {"seconds": 0.1, "tokens": 1}
    problem = StudioError("chat.empty_prompt").to_dict()
    batch.add(0, 0, Answer(text="half", reason="length", **ends))  # type: ignore[arg-type]
    batch.add(1, 0, Answer(text="", reason="refused", problem=problem, **ends))  # type: ignore[arg-type]
    other = {"kind": "StudioError", "key": "chat.of_another_version", "values": {}}
    batch.add(2, 0, Answer(text="", reason="refused", problem=other, **ends))  # type: ignore[arg-type]
    cells = re.findall("<td>(.*?)</td>", batch_table.shown(batch, voice("ko")))[1::2]
    assert cells[0].startswith("half<small")
    assert say("page.batch_cut", "ko") in cells[0]
    assert say("chat.empty_prompt", "ko") in cells[1]
    assert all(say("page.batch_refused", "ko") in cell for cell in cells[1:])


def test_a_long_table_shows_its_end_and_says_so(tmp_path: Path) -> None:
    prompts = tuple(Prompt.of(f"q{at}") for at in range(batch_table.MOST_SHOWN + 3))
    asked = Asked(base="b", contenders=(SEA,), prompts=prompts, sampling=Sampling())
    batch = Batch(tmp_path / "x.jsonl", asked)
    answer = Answer(text="said", tokens=1, seconds=0.1, reason="end")
    batch.answers = {(at, 0): answer for at in range(batch_table.MOST_SHOWN)}
    assert "The last" not in batch_table.shown(batch, voice())
    batch.answers[batch_table.MOST_SHOWN, 0] = answer
    html = batch_table.shown(batch, voice())
    assert "The last 200 of 201; the files have all." in html
    assert re.findall("<td>(q.*?)</td>", html) == [f"q{at}" for at in range(1, 201)]


def test_a_table_that_grows_quickly_is_drawn_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(batch_panel, "shown", lambda *_: drawn.append(1) or "")
    events = [{"stage": "batch", "done": at, "total": 99, "seconds_left": 1} for at in range(99)]
    judging = SimpleNamespace(fill=lambda *_, **__: iter(events))
    door = SimpleNamespace(enter=lambda _request: SimpleNamespace(judging=judging))
    panel = SimpleNamespace(door=door, outputs=range(8), _idle=lambda *_, **__: ["whole"])
    request = SimpleNamespace(cookies={}, headers={}, session_hash="tab")
    batch = SimpleNamespace(pending=list)
    began = time.monotonic()
    _, *told, last = batch_panel.BatchPanel._fill(panel, request, batch, "sea-1")  # type: ignore[arg-type]
    most = 2 + (time.monotonic() - began) / batch_panel.TABLE_EVERY_S
    assert (len(told), last) == (99, ["whole"])
    assert 2 <= len(drawn) <= most


def test_tables_to_choose_from_say_when_they_were_begun_and_how_far_they_are(
    tmp_path: Path,
) -> None:
    asked = Asked(
        base="b", contenders=(SEA,), prompts=(Prompt.of("q0"),), sampling=Sampling()
    )  # fmt: skip
    batch = Batch.start(tmp_path, asked)
    ((label, name),) = batch_table.choices([known(tmp_path, batch.name)], voice())
    assert name == batch.name
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d · 0 of 1 answered", label)
