"""The Compare tab in a browser: panes, votes, differences, measuring, many questions; exporting."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import App, Visit, Witness
from kept import write_answering
from person import SLOW_MS, put, reload, unfold
from playwright.sync_api import Locator, Page, expect

from lora_studio.chat.request import Sampling
from lora_studio.judging.batch import Answer, Asked, Batch
from lora_studio.judging.contenders import Contender
from lora_studio.judging.prompts import Prompt
from lora_studio.judging.store import NAME, VoteStore
from lora_studio.settings import Settings
from lora_studio.wording import say

pytestmark = [
    pytest.mark.ui,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def app(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app with a tiny Llama and two runs whose adapters do something."""
    app = App(tmp_path_factory.mktemp("compare-app"))
    base = app.add_model(tiny_llama)
    settings = Settings(home=app.home, offline=True)
    for name, rank in (("poems", 4), ("sea", 8)):
        write_answering(settings, name, base, r=rank)
    with app:
        yield app


@pytest.fixture
def votes(app: App) -> Iterator[VoteStore]:
    file = app.home / NAME
    yield VoteStore(file)
    file.unlink(missing_ok=True)


@pytest.fixture
def open_compare(visit: Visit, app: App) -> Open:
    """Open the tab with short answers."""

    def opened(locale: str = "en-US") -> Page:
        page = visit(app, locale=locale)
        page.click("#tab-compare-button")
        expect(page.locator("#compare-run input")).to_have_value("sea-1")
        expect(page.locator("#pane-1-who input")).to_have_value("sea-1")
        unfold(page, "compare-more")
        put(page, "max-new-tokens", 8)
        return page

    return opened


def panes(page: Page, count: int) -> None:
    page.locator("#pane-count").get_by_text(str(count), exact=True).click()
    expect(page.locator(f"#pane-{count - 1}-chat")).to_be_visible()


def choose(page: Page, control: str, name: str) -> None:
    page.locator(f"#{control} input").click()
    page.get_by_role("option", name=name).click()


def ask(page: Page, question: str, count: int = 2) -> None:
    put(page, "question", question)
    page.click("#send")
    # Until it is under way, the page shows the end of the last one.
    expect(page.locator("#question textarea")).to_have_value("")
    expect(page.locator(f"#vote-{count - 1}")).to_be_visible(timeout=SLOW_MS)
    expect(page.locator("#send")).to_be_enabled()


def said(page: Page, pane: int) -> Locator:
    return page.locator(f"#pane-{pane}-chat [data-testid=bot]")


def test_base_adapter_strength_and_mixture_answer_side_by_side(open_compare: Open) -> None:
    page = open_compare()
    panes(page, 4)
    choose(page, "pane-2-who", "sea-1")
    put(page, "pane-2-strength", 0)
    choose(page, "pane-3-who", say("page.mixture"))
    choose(page, "pane-3-mixed", "sea-1")
    choose(page, "pane-3-mixed", "poems-1")
    put(page, "pane-3-weight-0", 1)
    put(page, "pane-3-weight-1", 0)
    ask(page, "The quick brown fox", 4)
    base, sea, weakened, mixed = (said(page, pane).inner_text() for pane in range(4))
    assert base != sea
    assert weakened == base  # at strength 0
    assert mixed == sea  # 1 × sea + 0 × poems
    for pane in range(4):
        expect(page.locator(f"#pane-{pane}-rate")).to_contain_text("tokens/s")
    for file in ("batch-file", "votes-file"):  # buttons for scripts alone
        expect(page.locator(f"#{file}")).to_be_hidden()


def test_who_answers_is_hidden_until_the_vote_and_the_vote_is_kept(
    open_compare: Open, votes: VoteStore
) -> None:
    page = open_compare()
    page.locator("#blind input").check()
    ask(page, "The quick brown fox")
    expect(page.locator("#pane-0-title")).to_have_text("A")
    expect(page.locator("#pane-0-who")).to_be_hidden()
    assert "sea-1" not in page.locator("#panes").inner_text()
    page.locator("#differences input").check()
    expect(page.locator("#differences-note")).to_contain_text(say("page.differences_hidden"))

    page.locator("body").press("2")
    expect(page.locator("#pane-1-title")).to_contain_text("B was")
    titles = [page.locator(f"#pane-{pane}-title").inner_text() for pane in range(2)]
    assert sorted(title.split(" was ")[1] for title in titles) == ["Base", "sea-1"]
    (kept,) = votes.all()
    assert (kept.vote.verdict, kept.vote.is_blind) == (1, True)
    best = kept.vote.answers[1].contender.adapter or "Base"
    assert titles[1] == f"B was {best}"
    assert kept.vote.answers[1].answer == said(page, 1).inner_text()

    # Differences are shown now; another verdict replaces the first; it can be taken back.
    expect(page.locator("#pane-0-difference .tokens")).to_be_visible(timeout=SLOW_MS)
    page.click("#vote-tie")
    expect(page.locator("#vote-tie")).to_have_class(re.compile("primary"))
    (kept,) = votes.all()
    assert (kept.vote.verdict, kept.vote.is_blind) == ("tie", False)  # names were seen
    assert kept.vote.question.precision
    assert sum(len(one.weights) for one in kept.vote.answers) == 1
    unfold(page, "votes-more")
    expect(page.locator("#win-rates tbody tr")).to_have_count(1)
    with page.expect_download() as download:
        page.click("#votes-jsonl")
    assert json.loads(download.value.path().read_text())["verdict"] == "tie"
    page.click("#vote-undo")
    expect(page.locator("#win-rates")).to_contain_text(say("page.votes_none"))
    assert list(votes.all()) == []


def test_what_was_asked_can_be_edited_gone_on_with_and_seen_as_the_model_does(
    open_compare: Open,
) -> None:
    page = open_compare()
    ask(page, "The quick brown fox")
    first = said(page, 0).inner_text()
    page.click("#go-on")
    expect(page.locator("#send")).to_be_enabled(timeout=SLOW_MS)
    expect(said(page, 0)).not_to_have_text(first)
    assert said(page, 0).inner_text().startswith(first)

    page.click("#again")
    expect(page.locator("#compare-note")).to_contain_text(say("page.again_same"))
    put(page, "temperature", 1)
    page.click("#again")
    expect(page.locator("#compare-note")).not_to_contain_text(say("page.again_same"))
    expect(page.locator("#send")).to_be_enabled(timeout=SLOW_MS)
    expect(page.locator("#pane-0-chat [data-testid=user]")).to_have_count(1)

    unfold(page, "prompt-seen")
    expect(page.locator("#prompt-text pre")).to_contain_text("The quick brown fox")
    put(page, "question", "")
    page.click("#send")
    expect(page.locator("#compare-note")).to_contain_text(say("page.ask_first"))


def test_answers_keep_the_name_they_were_given_under_and_end_with_their_conversation(
    open_compare: Open,
) -> None:
    page = open_compare()
    title = page.locator("#pane-1-title")
    put(page, "pane-1-strength", 0.5)
    ask(page, "The quick brown fox")
    expect(title).to_have_text("sea-1 × 0.5")
    put(page, "pane-1-strength", 1)
    expect(title).to_have_text("sea-1 × 0.5")
    page.click("#again")  # at temperature 0, but of another
    expect(title).to_have_text("sea-1")
    expect(page.locator("#vote-1")).to_be_visible(timeout=SLOW_MS)

    put(page, "max-new-tokens", 1024)
    put(page, "question", "A coffee shop")
    page.click("#send")
    expect(said(page, 1)).to_have_count(2, timeout=SLOW_MS)
    page.click("#compare-clear")
    expect(said(page, 1)).to_have_count(0)
    expect(title).to_have_text("")
    expect(page.locator("#send")).to_be_enabled()
    page.wait_for_timeout(1500)
    expect(said(page, 1)).to_have_count(0)
    put(page, "max-new-tokens", 8)
    ask(page, "A coffee shop near the river")
    expect(said(page, 1)).to_have_count(1)

    page.locator("#mode-ask").get_by_text(say("page.mode_text"), exact=True).click()
    expect(page.locator("#system textarea")).to_be_disabled()
    expect(page.locator("#system")).to_contain_text(say("page.system_unused"))


def test_many_questions_become_a_table_and_files(open_compare: Open) -> None:
    page = open_compare()
    unfold(page, "batch")
    put(page, "batch-prompts", "The quick brown fox\nA coffee shop near the river")
    page.click("#batch-start")
    expect(page.locator("#batch-out")).to_be_visible(timeout=SLOW_MS)
    rows = page.locator("#batch-table tbody tr")
    expect(rows).to_have_count(2)
    expect(page.locator("#batch-table th")).to_have_text(["Question", "Base", "sea-1"])
    with page.expect_download() as download:
        page.click("#batch-csv")
    text = download.value.path().read_text(encoding="utf-8-sig")
    assert text.splitlines()[0].startswith("prompt,reference,(base)")

    page.click("#batch-take")
    expect(page.locator("#batch-note")).to_contain_text("No held-out row of sea-1")


def test_texts_are_continued_in_a_table_as_they_are_in_the_panes(open_compare: Open) -> None:
    page = open_compare()
    page.get_by_label(say("page.mode_text")).check()
    ask(page, "The quick brown fox")
    answers = [said(page, pane).inner_text().split() for pane in range(2)]
    unfold(page, "batch")
    put(page, "batch-prompts", "The quick brown fox")
    page.click("#batch-start")
    expect(page.locator("#batch-out")).to_be_visible(timeout=SLOW_MS)
    with page.expect_download() as download:
        page.click("#batch-jsonl")
    (line,) = download.value.path().read_text().splitlines()
    found = json.loads(line)
    assert found["text"] == "The quick brown fox"
    assert [one["text"].split() for one in found["answers"].values()] == answers
    expect(page.locator("#batch-table td small").first).to_have_text(say("page.batch_cut"))


def test_a_table_of_before_is_shown_again_and_its_rest_is_asked(
    open_compare: Open, app: App
) -> None:
    asked = Asked(
        base=str(app.home / "models" / "tiny"),
        contenders=(Contender.of("poems-1", 0.5), Contender.of("sea-1")),
        prompts=(Prompt.of("A fox"), Prompt.of("A coffee shop")),
        sampling=Sampling(max_new_tokens=8),
    )
    folder = app.home / "batches"
    elsewhere = Batch.start(folder, replace(asked, base="other/base"))
    batch = Batch.start(folder, asked)
    for who in range(2):
        batch.add(0, who, Answer(text="mine", tokens=1, seconds=1.0, reason="end"))
    page = open_compare()
    unfold(page, "batch")
    page.locator("#batch-earlier input").click()
    page.get_by_role("option", name="1 of 2 answered").click()
    expect(page.locator("#batch-table tbody tr")).to_have_text("A foxminemine")
    expect(page.locator("#batch-table th").nth(1)).to_have_text("poems-1 × 0.5")
    page.click("#batch-more")
    expect(page.locator("#batch-table tbody tr")).to_have_count(2, timeout=SLOW_MS)
    expect(page.locator("#batch-more")).to_be_hidden(timeout=SLOW_MS)
    assert Batch.open(folder, batch.name).pending() == []
    with page.expect_download() as download:
        page.click("#batch-csv")
    assert "A fox,,mine,end,1,1.0,mine" in download.value.path().read_text(encoding="utf-8-sig")

    page.locator("#batch-earlier input").click()
    page.get_by_role("option", name="0 of 2 answered").click()
    page.click("#batch-more")
    expect(page.locator("#batch-note")).to_contain_text("This table was asked on other/base")
    assert elsewhere.pending() == [0, 1]


def test_four_adapters_are_coloured_and_prompts_that_differ_name_their_panes(
    open_compare: Open,
) -> None:
    page = open_compare()
    panes(page, 4)
    for pane, strength in enumerate([0.5, 1, 1.5, 2]):
        choose(page, f"pane-{pane}-who", "sea-1")
        put(page, f"pane-{pane}-strength", strength)
    page.locator("#differences input").check()
    unfold(page, "prompt-seen")
    ask(page, "The quick brown fox", 4)
    for pane in range(4):
        expect(page.locator(f"#pane-{pane}-difference .tokens")).to_be_visible(timeout=SLOW_MS)
    expect(page.locator("#prompt-text pre")).to_have_count(1)
    expect(page.locator("#prompt-text h4")).to_have_count(0)
    ask(page, "A coffee shop", 4)
    expect(page.locator("#prompt-text pre").first).to_contain_text("A coffee shop")
    expect(page.locator("#prompt-text h4").first).to_have_text("sea-1 × 0.5")

    put(page, "question", "The quick brown fox. " * 300)
    page.click("#send")
    expect(page.locator("#compare-note")).to_contain_text("would be cut off, from “")
    expect(page.locator("#prompt-text del").first).to_contain_text("The quick brown fox.")
    page.click("#compare-clear")
    expect(page.locator("#prompt-text")).to_contain_text(say("page.prompt_none"))


def test_measuring_says_what_it_lacks_and_keeps_what_it_finds(
    open_compare: Open, app: App, witness: Witness
) -> None:
    page = open_compare()
    unfold(page, "measure")
    put(page, "measure-answers", 0)
    page.click("#measure-start")
    found = page.locator("#measure-found")
    expect(found).to_contain_text("This run held out no rows", timeout=SLOW_MS)
    expect(found).to_contain_text("on a general text (Korean)")
    expect(page.locator("#measure-start")).to_be_enabled()
    assert (app.home / "runs" / "sea-1" / "measurements.json").is_file()
    reload(page, witness)
    page.click("#tab-compare-button")
    unfold(page, "measure")
    expect(page.locator("#measure-found")).to_contain_text("on a general text (English)")


def test_numbers_stand_under_the_adapter_they_are_of_whichever_is_chosen_by_then(
    open_compare: Open,
) -> None:
    page = open_compare()
    unfold(page, "measure")
    put(page, "measure-answers", 0)
    page.click("#measure-start")
    expect(page.locator("#measure-start")).to_be_disabled()
    choose(page, "compare-run", "poems-1")
    heads = page.locator("#measure-found h4")
    expect(page.locator("#measure-start")).to_be_enabled(timeout=SLOW_MS)
    expect(heads).to_have_count(0)
    choose(page, "compare-run", "sea-1")
    expect(heads).to_have_text([re.compile("^sea-1, measured")])
    page.click("#tab-library-button")
    page.locator('#library tr[data-id="sea-1"] [data-act=open]').click()
    sheet = page.locator("#library-sheet .measured")
    expect(sheet).to_contain_text("on a general text (English)")


def test_an_adapter_is_exported_and_what_would_be_pushed_is_shown(
    open_compare: Open, app: App
) -> None:
    page = open_compare()
    page.click("#tab-library-button")
    page.locator('#library tr[data-id="sea-1"] [data-act=open]').click()
    unfold(page, "ship")
    page.click("#ship-start")
    expect(page.locator("#ship-found pre")).to_contain_text("sea-1-merged", timeout=SLOW_MS)
    assert (app.home / "exports" / "sea-1-merged" / "model.safetensors").is_file()
    put(page, "push-to", "no such name!")
    page.click("#push-look")
    expect(page.locator("#push-said .ls-say")).to_contain_text("no such name!", timeout=SLOW_MS)
    unfold(page, "snippets")
    expect(page.locator("#snippets-text")).to_contain_text("--enable-lora")


def test_the_comparison_speaks_korean(open_compare: Open, votes: VoteStore) -> None:
    page = open_compare("ko-KR")
    ask(page, "빠른 갈색 여우")
    expect(page.locator("#vote-0")).to_have_text(say("page.vote_left", "ko"))
    page.click("#vote-bad")
    expect(page.locator("#vote-said")).to_contain_text(say("page.vote_kept", "ko"))
    unfold(page, "votes-more")
    expect(page.locator("#win-rates tbody")).to_contain_text("sea-1")
    page.locator("#differences input").check()
    expect(page.locator("#pane-1-difference")).to_contain_text("기반 모델이라면", timeout=SLOW_MS)
    (kept,) = votes.all()
    assert kept.vote.verdict == "bad"
