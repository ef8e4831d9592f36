"""Votes, blind panes, win rates, exports, and pasted prompts."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_studio.chat.request import Pane
from lora_studio.errors import StudioError
from lora_studio.judging.blind import Shuffled, letter
from lora_studio.judging.contenders import Contender
from lora_studio.judging.exporting import preferences_jsonl, votes_csv, votes_jsonl
from lora_studio.judging.prompts import Prompt, as_lines, parse_prompts
from lora_studio.judging.store import VoteStore
from lora_studio.judging.tables import STEPS, VERSION
from lora_studio.judging.votes import Question, Said, Verdict, Vote
from lora_studio.judging.winning import WinRate, wilson, win_rates
from lora_studio.ui.language import Voice
from lora_studio.ui.standings import row, standings

BASE, CAFE = Contender.of(), Contender.of("cafe-1")
HALF = Contender.of("cafe-1", 0.5)


def vote(
    verdict: Verdict,
    *,
    asked: str = "Hello?",
    answers: Sequence[tuple[Contender, str]] = ((BASE, "Hi."), (CAFE, "Welcome!")),
    base: str = "starter",
    is_shared: bool = True,
    is_blind: bool = False,
    precision: str = "",
    weights: str = "",
    reason: str = "end",
) -> Vote:
    return Vote(
        question=Question(
            base=base,
            is_shared=is_shared,
            precision=precision,
            messages=({"role": "user", "content": asked},),
            sampling={"greedy": True, "seed": 1},
        ),
        answers=tuple(
            Said(
                contender=who,
                answer=text,
                weights={name: weights for name in who.names if weights},
                reason=reason,
            )
            for who, text in answers
        ),
        verdict=verdict,
        is_blind=is_blind,
    )


@pytest.fixture
def store(tmp_path: Path) -> VoteStore:
    return VoteStore(tmp_path / "mine" / "votes.sqlite")


def rate_of(store: VoteStore) -> WinRate:
    (rate,) = win_rates(store)
    return rate


def test_a_contender_goes_by_one_name_and_comes_back_from_json() -> None:
    mixture = Contender.of(mixture={"b": 0.3, "a": 0.7})
    for who, key in (
        (BASE, "(base)"),
        (Contender.of(None, 0.5), "(base)"),
        (CAFE, "cafe-1"),
        (HALF, "cafe-1×0.5"),
        (Contender.of("cafe-1@20"), "cafe-1@20"),
        (mixture, "a×0.7+b×0.3"),
        (Contender.of("ignored", 2.0, {"a": 1.0}), "(a×1)×2"),
    ):
        assert who.key == key
        assert Contender.from_dict(json.loads(json.dumps(who.to_dict()))) == who


def test_a_contender_becomes_the_pane_that_it_was_made_of() -> None:
    asked = [{"role": "user", "content": "Hello?"}]
    assert BASE.pane(asked) == Pane(messages=asked)  # type: ignore[arg-type]
    assert HALF.pane(text="Once") == Pane(adapter="cafe-1", strength=0.5, text="Once")
    mixed = Contender.of(mixture={"a": 0.7, "b": 0.3}).pane(text="Once")
    assert mixed == Pane(mixture={"a": 0.7, "b": 0.3}, text="Once")


def test_a_vote_comes_back_as_it_was_cast(store: VoteStore) -> None:
    three = vote(
        2,
        answers=((HALF, "=1+1"), (BASE, ""), (CAFE, "안녕하세요 👋")),
        is_blind=True,
        precision="nf4",
        weights="0a1b2c",
        reason="length",
    )
    number = store.cast(three)
    (kept,) = store.all()
    assert (kept.id, kept.vote) == (number, three)


def test_nothing_was_voted_before_the_first_vote(store: VoteStore, tmp_path: Path) -> None:
    assert store.all() == []
    assert win_rates(store) == []
    assert not (tmp_path / "mine").exists()


def test_a_second_vote_on_the_same_answers_replaces_the_first(store: VoteStore) -> None:
    store.cast(vote(0))
    other_way_round = vote(0, answers=((CAFE, "Welcome!"), (BASE, "Hi.")))
    store.cast(other_way_round)
    assert [kept.vote.verdict for kept in store.all()] == [0]
    assert (rate_of(store).left.contender, rate_of(store).all.wins) == (CAFE, 1)
    store.cast(vote(0, asked="Bye?"))
    assert len(store.all()) == 2


def test_a_vote_takes_the_place_of_the_one_that_it_replaces(store: VoteStore) -> None:
    first = store.cast(vote(0))
    gone_on = vote("tie", answers=((BASE, "Hi. And bye."), (CAFE, "Welcome!")))
    second = store.cast(gone_on, replaces=first)
    assert [(kept.id, kept.vote) for kept in store.all()] == [(second, gone_on)]
    assert rate_of(store).all.votes == 1
    store.cast(vote(1, asked="Bye?"), replaces=first)  # which is not there any more
    assert len(store.all()) == 2


def test_a_vote_that_cannot_replace_another_leaves_it_there(
    store: VoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.cast(vote(0))
    monkeypatch.setattr("lora_studio.judging.store.ADD_ANSWER", "INSERT INTO gone VALUES (1)")
    with pytest.raises(StudioError, match="no such table: gone"):
        store.cast(vote(1, asked="Bye?"), replaces=first)
    assert [kept.id for kept in store.all()] == [first]


def test_a_vote_can_be_taken_back_and_cast_again(store: VoteStore) -> None:
    taken = store.remove(store.cast(vote(0)))
    assert store.all() == []
    store.cast(taken)
    assert [kept.vote for kept in store.all()] == [taken]


@pytest.mark.parametrize("verdict", [2, -1, "left", True, None, 1.0, "0"])
def test_a_vote_that_names_no_answer_is_refused(verdict: Any) -> None:
    with pytest.raises(StudioError, match="is no vote on 2 answers"):
        vote(verdict)


def test_one_answer_is_nothing_to_vote_on() -> None:
    with pytest.raises(StudioError, match="at least two answers"):
        vote(0, answers=((BASE, "Hi."),))


def test_what_is_gone_cannot_be_taken_back(store: VoteStore) -> None:
    number = store.cast(vote(0))
    store.remove(number)
    with pytest.raises(StudioError, match="not there any more"):
        store.remove(number)


def test_votes_of_several_tabs_at_once_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.judging.store.WAIT_S", 120.0)
    file = tmp_path / "votes.sqlite"

    def tab(name: int) -> None:
        mine = VoteStore(file)
        for at in range(10):
            mine.cast(vote(at % 2, asked=f"{name}/{at}"))

    tabs = [threading.Thread(target=tab, args=(name,)) for name in range(4)]
    for one in tabs:
        one.start()
    for one in tabs:
        one.join()
    assert len(VoteStore(file).all()) == 40
    assert rate_of(VoteStore(file)).all.votes == 40


def test_a_vote_that_is_broken_off_leaves_nothing_behind(
    store: VoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.cast(vote(0))
    with (
        monkeypatch.context() as broken,
        pytest.raises(StudioError, match=r"cannot be read or written \(no such table: gone"),
    ):
        broken.setattr(
            "lora_studio.judging.store.ADD_ANSWER", "INSERT INTO gone VALUES (?,?,?,?,?)"
        )
        store.cast(vote(1, asked="Another?"))
    assert store.all()[0].vote.verdict == 0
    assert len(store.all()) == 1


def test_a_file_that_holds_no_votes_is_named_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "votes.sqlite"
    file.write_text("This is a text, and not a database at all.\n" * 50)
    before = file.read_bytes()
    with pytest.raises(StudioError, match=r"votes\.sqlite cannot be read or written"):
        VoteStore(file).cast(vote(0))
    assert file.read_bytes() == before


def test_votes_of_a_newer_program_are_not_touched(store: VoteStore, tmp_path: Path) -> None:
    store.cast(vote(0))
    file = tmp_path / "mine" / "votes.sqlite"
    database = sqlite3.connect(file)
    database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.commit()
    database.close()
    with pytest.raises(StudioError, match=f"of version {VERSION + 1}"):
        store.cast(vote(1))


def test_the_best_of_several_wins_against_each_and_of_the_others_nothing_is_known(
    store: VoteStore,
) -> None:
    store.cast(vote(2, answers=((BASE, "a"), (HALF, "b"), (CAFE, "c"))))
    found = {
        (rate.left.contender.key, rate.right.contender.key): (rate.all.wins, rate.all.losses)
        for rate in win_rates(store)
    }
    assert found == {("cafe-1", "(base)"): (1, 0), ("cafe-1×0.5", "cafe-1"): (0, 1)}


def test_a_vote_counts_once_for_two_contenders_in_however_many_panes_they_stood(
    store: VoteStore,
) -> None:
    answers = ((BASE, "a"), (BASE, "b"), (CAFE, "c"))
    for number, verdict in enumerate([2] * 10 + [0, 1] * 5 + ["tie", "bad"]):
        store.cast(vote(verdict, asked=str(number), answers=answers, weights="0a1b2c"))  # type: ignore[arg-type]
    tally = rate_of(store).all
    assert (tally.wins, tally.losses, tally.ties) == (10, 10, 2)


def test_a_tie_and_all_bad_are_half_a_win(store: VoteStore) -> None:
    for number, verdict in enumerate([1, 1, "tie", "bad"]):
        store.cast(vote(verdict, asked=str(number)))  # type: ignore[arg-type]
    tally = rate_of(store).all
    assert (tally.wins, tally.losses, tally.ties) == (2, 0, 2)
    assert tally.rate == 0.75


def test_contenders_on_another_base_are_counted_apart(store: VoteStore) -> None:
    store.cast(vote(1))
    store.cast(vote(0, base="other/model"))
    assert len(win_rates(store)) == 2
    (only,) = win_rates(store, "other/model")
    assert (only.all.wins, only.all.losses) == (0, 1)


@pytest.mark.parametrize(("wins", "votes"), [(0, 1), (1, 1), (3, 7), (8, 10), (50, 100), (99, 100)])
def test_the_interval_is_that_of_scipy(wins: int, votes: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(wins, votes).proportion_ci(0.95, method="wilson")
    assert wilson(wins, votes) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_few_votes_are_too_few_to_say_and_many_say_it(store: VoteStore) -> None:
    for number in range(3):
        store.cast(vote(1, asked=str(number)))
    assert rate_of(store).standing == "unknown"
    assert "3 votes, too few to say" in rate_of(store).say("en")
    for number in range(3, 8):
        store.cast(vote(1, asked=str(number)))
    assert rate_of(store).standing == "wins"
    assert rate_of(store).say("en").startswith("cafe-1 wins against the base: 100% of 8 votes")
    assert "기반 모델보다 나아요" in rate_of(store).say("ko")


def test_who_wins_stands_on_the_left_in_words_and_numbers(store: VoteStore) -> None:
    for number in range(20):
        store.cast(vote(int(number < 3), asked=str(number), is_blind=number >= 10))
    rate = rate_of(store)
    assert (rate.left.contender, rate.right.contender) == (BASE, CAFE)
    assert (rate.all.wins, rate.all.losses, rate.blind.wins) == (17, 3, 10)
    assert rate.all.interval == pytest.approx(wilson(17, 20))
    assert rate.say("en").startswith("the base wins against cafe-1: 85% of 20 votes")
    assert rate.say_blind("en").startswith("Blind votes alone: 100% of 10 to the base (95 % ")

    shown = row(rate, Voice(None))
    assert "17 : 3, 0 tied, 20 in all, 10 of them blind" in shown
    assert '<b style="left:85.0%">' in shown


def test_blind_votes_are_told_apart_where_there_are_others_too(store: VoteStore) -> None:
    store.cast(vote(1, asked="One?", is_blind=True))
    assert rate_of(store).blind.votes == 1
    assert rate_of(store).say_blind("en") == ""
    store.cast(vote(0, asked="Two?"))
    assert (rate_of(store).all.rate, rate_of(store).blind.rate) == (0.5, 1.0)
    assert "100% of 1 to cafe-1" in rate_of(store).say_blind("en")
    assert "이름을 숨긴 투표 1개만 보면 cafe-1 쪽이 100%" in rate_of(store).say_blind("ko")


def test_a_second_vote_on_the_same_answers_is_not_blind(store: VoteStore) -> None:
    store.cast(vote(1, is_blind=True))
    store.cast(vote(0, is_blind=True))
    assert [kept.vote.is_blind for kept in store.all()] == [False]


def test_votes_on_answers_to_different_conversations_are_kept_and_not_counted(
    store: VoteStore,
) -> None:
    store.cast(vote(1, is_shared=False))
    assert win_rates(store) == []
    assert "different earlier turns: 1." in standings([], store.unshared("starter"), Voice(None))
    store.cast(vote(1, asked="Bye?"))
    assert rate_of(store).all.votes == 1
    assert (store.unshared(), store.unshared("starter"), store.unshared("other")) == (1, 1, 0)
    assert len(store.all()) == 2


def test_how_ties_count_is_said_beneath_the_table(store: VoteStore) -> None:
    store.cast(vote("tie"))
    shown = standings(win_rates(store), 0, Voice(None))
    assert "A tie, or all bad, is half a win for each" in shown
    assert "Wilson" in shown
    assert "Not counted" not in shown


def test_other_weights_of_a_name_are_another_contender(store: VoteStore) -> None:
    for number, weights in enumerate(["aaaaaaaa", "aaaaaaaa", "bbbbbbbb"]):
        store.cast(vote(1, asked=str(number), weights=weights, precision="bf16"))
    first, second = win_rates(store)
    assert (first.all.votes, second.all.votes) == (2, 1)
    last = max(
        one.vote.cast_at
        for one in store.all()
        if "aaaaaaaa" in one.vote.answers[1].weights.values()
    )
    assert first.left.named("en") == f"cafe-1 (weights aaaaaa, last vote {last[:10]})"
    assert "cafe-1(가중치 bbbbbb, " in second.say("ko")
    store.cast(vote(1, asked="Another base?", weights="aaaaaaaa", base="other/model"))
    (only,) = win_rates(store, "other/model")
    assert only.left.named("en") == "cafe-1"


def test_the_same_answers_of_other_weights_are_another_vote(store: VoteStore) -> None:
    for weights in ("aaaa", "bbbb", "bbbb"):
        store.cast(vote(1, weights=weights))
    assert len(store.all()) == 2


def test_a_base_in_another_precision_is_counted_apart(store: VoteStore) -> None:
    store.cast(vote(1, precision="bf16"))
    assert rate_of(store).precision == ""
    store.cast(vote(1, precision="nf4"))
    said = {rate.say("en").split(" The base")[1] for rate in win_rates(store)}
    assert said == {" was held in bf16.", " was held in nf4."}


def test_votes_of_an_older_program_are_read_and_counted_apart(tmp_path: Path) -> None:
    file = tmp_path / "votes.sqlite"
    asked = {"base": "starter", "messages": [], "text": '"is_shared": false', "sampling": {}}
    with closing(sqlite3.connect(file)) as database, database:
        for statement in STEPS[0]:
            database.execute(statement)
        for number, is_shared in enumerate((True, False), 1):
            question = json.dumps({**asked, "is_shared": is_shared}, sort_keys=True)
            database.execute(
                "INSERT INTO votes VALUES (?, ?, '2026-01-02T03:04:05', 'starter', ?, 1, '1')",
                [number, str(number), question],
            )
            for place, who in enumerate((BASE, CAFE)):
                database.execute(
                    "INSERT INTO answers VALUES (?, ?, ?, ?, 'Hi.')",
                    [number, place, who.key, json.dumps(who.to_dict(), sort_keys=True)],
                )
        database.execute("PRAGMA user_version = 1")

    store = VoteStore(file)
    assert [kept.vote.question.is_shared for kept in store.all()] == [True, False]
    assert store.all()[0].vote.answers[1] == Said(contender=CAFE, answer="Hi.")
    assert (rate_of(store).all.votes, store.unshared()) == (1, 1)
    assert rate_of(store).left.named("en") == "cafe-1"
    store.cast(vote(1, weights="cccccccc", precision="bf16"))
    names = {rate.left.named("en").split(", last")[0] for rate in win_rates(store)}
    assert names == {"cafe-1 (older votes, weights not noted)", "cafe-1 (weights cccccc"}
    assert list(preferences_jsonl(store.all()))  # how old answers ended is not known


def test_many_votes_of_half_and_half_say_that_both_are_alike(store: VoteStore) -> None:
    for number in range(120):
        store.cast(vote(number % 2, asked=str(number)))
    assert rate_of(store).standing == "alike"
    assert "about as often" in rate_of(store).say("en")


def test_a_blind_order_is_drawn_and_leads_back_to_the_panes() -> None:
    orders = {Shuffled.draw(3, seed).order for seed in range(200)}
    assert len(orders) == 6
    assert Shuffled.draw(4, 7) == Shuffled.draw(4, 7)
    assert len({Shuffled.draw(4).order for _ in range(200)}) > 10
    order = Shuffled((2, 0, 1))
    assert [order.pane_at(place) for place in range(3)] == [2, 0, 1]
    assert Shuffled.open(2).order == (0, 1)
    assert [letter(place) for place in range(4)] == ["A", "B", "C", "D"]


def test_votes_are_written_as_a_table_that_runs_no_formula(store: VoteStore) -> None:
    answers = ((BASE, " -2+3"), (CAFE, "@SUM(A1)"))
    asked = {"asked": "=HYPERLINK(1)", "precision": "bf16", "weights": "0a1b2c"}
    store.cast(vote(1, answers=answers, **asked))
    rows = list(csv.DictReader(io.StringIO(votes_csv(store.all()))))
    assert [row["answer"] for row in rows] == ["' -2+3", "'@SUM(A1)"]
    assert [row["is_best"] for row in rows] == ["0", "1"]
    assert [row["contender"] for row in rows] == ["(base)", "cafe-1"]
    assert [row["weights"] for row in rows] == ["{}", '{"cafe-1": "0a1b2c"}']
    assert {(row["reason"], row["precision"], row["is_shared"]) for row in rows} == {
        ("end", "bf16", "1")
    }
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell.lstrip().startswith(("=", "+", "-", "@"))]


def test_votes_are_written_as_lines_of_json(store: VoteStore) -> None:
    store.cast(vote("bad", asked="뭐라고요?", weights="0a1b2c", reason="stopped"))
    (line,) = votes_jsonl(store.all())
    found = json.loads(line)
    assert found["verdict"] == "bad"
    assert found["messages"] == [{"role": "user", "content": "뭐라고요?"}]
    assert [one["contender"] for one in found["answers"]] == ["(base)", "cafe-1"]
    assert found["answers"][1]["weights"] == {"cafe-1": "0a1b2c"}
    assert found["answers"][1]["reason"] == "stopped"


def test_preferences_pair_the_best_answer_with_each_other_one(store: VoteStore) -> None:
    store.cast(vote("tie"))
    store.cast(vote(1, asked="And then?", is_shared=False))
    store.cast(vote(1, asked="Who?", answers=((BASE, "x"), (CAFE, "best"), (HALF, "best"))))
    store.cast(
        Vote(
            question=Question(base="starter", text="Once upon"),
            answers=(Said(contender=BASE, answer=" a"), Said(contender=CAFE, answer=" b")),
            verdict=0,
        )
    )
    assert [json.loads(line) for line in preferences_jsonl(store.all())] == [
        {
            "prompt": [{"role": "user", "content": "Who?"}],
            "chosen": [{"role": "assistant", "content": "best"}],
            "rejected": [{"role": "assistant", "content": "x"}],
        },
        {"prompt": "Once upon", "chosen": " a", "rejected": " b"},
    ]


@pytest.mark.parametrize("reason", ["length", "stopped"])
def test_an_answer_that_was_cut_short_is_in_no_preference(store: VoteStore, reason: str) -> None:
    whole = vote(1, answers=((BASE, "x"), (CAFE, "best"), (HALF, "y")))
    cut = replace(whole.answers[2], reason=reason)
    store.cast(replace(whole, answers=(*whole.answers[:2], cut)))
    (line,) = preferences_jsonl(store.all())
    assert json.loads(line)["rejected"][0]["content"] == "x"
    store.cast(vote(1, asked="Best of all?", reason=reason))
    assert len(list(preferences_jsonl(store.all()))) == 1


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("One?\nTwo?\nThree?\n", ["One?", "Two?", "Three?"]),
        ("One?\n\nTwo?", ["One?", "Two?"]),
        ("First\nline.\n\n\nSecond.", ["First\nline.", "Second."]),
        ("One\n\nwith a gap\n---\nTwo", ["One\n\nwith a gap", "Two"]),
        ('"One?"\n"Two?"', ["One?", "Two?"]),
        ('["One?", {"prompt": "Two?"}]', ["One?", "Two?"]),
        ('{"instruction": "Sum", "input": "1 2"}', ["Sum\n\n1 2"]),
        ('{"질문": "누구?", "답변": "나"}\r\n\r\n{"text": "글"}', ["누구?", "글"]),
    ],
)
def test_pasted_prompts_are_understood(text: str, questions: list[str]) -> None:
    assert [prompt.question for prompt in parse_prompts(text)] == questions


def test_a_pasted_conversation_keeps_its_turns_and_gives_its_last_answer_as_reference() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "4"},
    ]
    (prompt,) = parse_prompts(json.dumps({"messages": turns}))
    assert prompt.messages == tuple(turns[:2])
    assert (prompt.question, prompt.reference) == ("Two and two?", "4")


def test_prompts_that_are_written_as_lines_are_read_as_they_were() -> None:
    prompts = [
        Prompt.of("Two and\ntwo?", system="Be brief.", reference="4"),
        Prompt.of("누구?"),
        Prompt(
            messages=(
                {"role": "user", "content": "Hi."},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "Who?"},
            ),
            reference="Me.",
        ),
    ]
    assert parse_prompts(as_lines(prompts)) == prompts


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 200_000, "Line 1 is not valid JSON"),
        (" \n ", "There are no prompts yet"),
        ('{"prompt": "One?"}\n{"prompt": ', "Line 2 is not valid JSON"),
        ('[{"prompt": "One?"}, 2]', "Item 2 holds no question"),
        ('{"messages": [{"role": "assistant", "content": "Hi"}]}', "Item 1 holds no question"),
        ('{"prompt": ""}', "Item 1 holds no question"),
        ("x\n" * 2001, "2001 prompts are too many"),
        ("x" * 100_001, "Prompt 1 has 100001 characters"),
    ],
)
def test_a_list_that_cannot_be_asked_is_refused_in_words(text: str, sentence: str) -> None:
    with pytest.raises(StudioError, match=sentence):
        parse_prompts(text)
