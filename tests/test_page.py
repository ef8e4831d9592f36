"""The page in a real browser: what a person does, and what they see."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from browser import ROOT, App, Visit, Witness
from person import (
    CURVE,
    LONG,
    SLOW_MS,
    add,
    all_settings,
    choose_tiny,
    points_of,
    put,
    reload,
    start,
    unfold,
    value,
)
from playwright.sync_api import Page, expect
from sorting import make_sorter, write_run

from lora_studio.models import starter
from lora_studio.recipe import Recipe
from lora_studio.runs import folder as run_folder
from lora_studio.runs.process import is_running, pid_of
from lora_studio.settings import Settings
from lora_studio.ui import numbers
from lora_studio.ui.visitors import COOKIE as VISITOR
from lora_studio.ui.visitors import Door
from lora_studio.wording import say

pytestmark = pytest.mark.ui

STEPS = 8
ROWS = 120
RESTAURANTS = ROOT.parent / "shared" / "data" / "e2e_valid.jsonl"
EXAMPLE = ROOT / "assets" / "examples" / "lighthouse.jsonl"
HEAVY = {"torch", "transformers", "tokenizers", "peft", "trl", "bitsandbytes", "accelerate"}
LIBRARIES = ("libtorch", "tokenizers", "libbitsandbytes")
# r·(d_in + d_out) over the tiny Llama's fourteen linear layers.
TINY_PER_RANK = 1024


@pytest.fixture(scope="module")
def tiny_app(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app with a random two-layer Llama among its models."""
    app = App(tmp_path_factory.mktemp("tiny-app"))
    app.add_model(tiny_llama)
    with app:
        yield app


@pytest.fixture
def tiny(tiny_app: App, visit: Visit) -> Iterator[Page]:
    """The page with the tiny model chosen; what still trains afterwards is ended."""
    page = visit(tiny_app)
    choose_tiny(page)
    all_settings(page)
    yield page
    tiny_app.end_runs()


@pytest.fixture(scope="module")
def starter_app(starter_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app on the starter model."""
    app = App(tmp_path_factory.mktemp("starter-app"))
    model = starter.folder_of(Settings(home=starter_home))
    (app.home / "models" / model.name).symlink_to(model)
    with app:
        yield app


def learns(page: Page, rank: int) -> None:
    """See that the sum counts what an adapter of this rank learns."""
    shown = numbers.count(TINY_PER_RANK * rank)
    expect(page.locator("#total dd").first).to_contain_text(f"{shown} ")


def test_the_sum_follows_the_settings_and_says_why_a_run_cannot_start(tiny: Page, pairs: Path):
    learns(tiny, 16)
    expect(tiny.locator("#start")).to_be_disabled()
    expect(tiny.locator("#said")).to_have_text(say("page.start_needs_data"))

    add(tiny, pairs)
    expect(tiny.locator("#start")).to_be_enabled()
    put(tiny, "r", 32)
    learns(tiny, 32)

    for box in tiny.locator("#target-modules input[type=checkbox]").all():
        box.uncheck()
    expect(tiny.locator("#said")).to_contain_text(say("recipe.no_target_modules"))
    expect(tiny.locator("#start")).to_be_disabled()


def test_a_goal_sets_everything_and_what_a_person_changed_can_be_put_back(
    visit: Visit, tiny_app: App, pairs: Path
):
    page = visit(tiny_app)
    choose_tiny(page)
    expect(page.locator("#adapter-details")).to_be_hidden()
    unfold(page, "goal-values")
    expect(page.locator("#goal-chosen")).to_contain_text(say("page.goal_waits"))
    add(page, pairs)
    page.get_by_label(say("page.goal_style")).check()
    expect(page.locator("#goal-differs")).to_have_text(say("page.differs_none"))
    expect(page.locator("#goal-chosen li")).to_have_count(14)
    expect(page.locator("#prediction .bar")).to_be_visible()
    expect(page.locator("#start")).to_be_enabled()

    all_settings(page)
    wanted = value(page, "r")
    put(page, "r", 5)
    learns(page, 5)
    expect(page.locator("#goal-differs")).to_contain_text(say("page.differs_one", n=1))
    page.locator("#goal-differs button").click()
    learns(page, int(wanted))
    assert value(page, "r") == wanted


def test_the_goal_of_classification_reads_a_table_by_its_labels(
    visit: Visit, tiny_app: App, tmp_path: Path
):
    labelled = tmp_path / "labelled.csv"
    words = {"good": "I love this", "bad": "이건 별로예요"}
    lines = [f"{text} {n},{label}" for n in range(30) for label, text in words.items()]
    labelled.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    page = visit(tiny_app)
    choose_tiny(page)
    page.get_by_label(say("page.goal_classification")).check()
    expect(page.locator("#goal-differs")).to_contain_text(say("page.goal_needs_labels"))
    add(page, labelled)
    expect(page.locator("#goal-differs")).to_contain_text(say("page.differs_none"))
    unfold(page, "data-columns")
    expect(page.locator("#data-format input")).to_have_value(say("page.format_classification"))
    expect(page.locator("#total")).to_contain_text(say("page.sum_labels"))
    expect(page.locator("#start")).to_be_enabled()

    # Rows that are read otherwise bring the goal along, and the other way round.
    page.get_by_label(say("page.goal_style")).check()
    expect(page.locator("#data-format input")).to_have_value(say("page.format_auto"))
    expect(page.locator("#total")).to_contain_text(say("page.sum_tokens"))
    page.locator("#data-format input").click()
    page.get_by_role("option", name=say("page.format_classification")).click()
    expect(page.get_by_label(say("page.goal_classification"))).to_be_checked()
    expect(page.locator("#total")).to_contain_text(say("page.sum_labels"))


def test_what_is_wrong_is_said_beside_its_control_and_beside_the_start(tiny: Page, pairs: Path):
    add(tiny, pairs)
    put(tiny, "learning-rate", 0.05)
    for place in ("#training-said", "#said"):
        expect(tiny.locator(place)).to_contain_text("0.05")
    unfold(tiny, "more-adapter")
    expect(tiny.locator("#methods-not-offered")).to_contain_text("LoftQ")
    tiny.locator("#use-dora input").check()
    expect(tiny.locator("#methods-not-offered")).to_contain_text("PiSSA")
    unfold(tiny, "layers-advanced")
    put(tiny, "layers-to-transform", "7")
    expect(tiny.locator("#said")).to_contain_text(say("model.unknown_layers", layers="7", last=1))
    expect(tiny.locator("#start")).to_be_disabled()


def test_a_draft_survives_a_reload_and_a_recipe_comes_back_as_it_went(
    tiny: Page, witness: Witness, pairs: Path, tmp_path: Path
):
    add(tiny, pairs)
    put(tiny, "learning-rate", 0.0007)
    put(tiny, "r", 24)
    learns(tiny, 24)
    tiny.wait_for_timeout(500)

    reload(tiny, witness)
    expect(tiny.locator(".ls-strip")).to_contain_text("20")
    expect(tiny.locator("#data-files")).to_contain_text("pairs")
    learns(tiny, 24)
    assert (value(tiny, "r"), float(value(tiny, "learning-rate"))) == ("24", 0.0007)

    with tiny.expect_download() as saving:
        tiny.click("#recipe-save")
    file = tmp_path / "recipe.yaml"
    saving.value.save_as(file)
    saved = yaml.safe_load(file.read_text())
    assert (saved["adapter"]["r"], saved["training"]["learning_rate"]) == (24, 0.0007)
    put(tiny, "r", 8)
    put(tiny, "learning-rate", 0.001)
    learns(tiny, 8)
    with tiny.expect_file_chooser() as choosing:
        tiny.click("#recipe-load")
    choosing.value.set_files(file)
    learns(tiny, 24)
    assert (value(tiny, "r"), float(value(tiny, "learning-rate"))) == ("24", 0.0007)


def test_what_cannot_be_read_is_a_sentence_on_the_page(tiny: Page, tiny_app: App):
    binary = bytes(range(256)) * 40
    cases = {
        "empty.txt": (b"", say("data.empty_file", file="empty.txt")),
        "broken.jsonl": (
            b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", \n',
            say("data.broken_json", file="broken.jsonl", line=2),
        ),
        "binary.txt": (binary, say("data.binary_file", file="binary.txt")),
    }
    for name, (content, sentence) in cases.items():
        file = {"name": name, "mimeType": "text/plain", "buffer": content}
        tiny.set_input_files("#data-files input[type=file]", [file])
        expect(tiny.locator("#data-report")).to_contain_text(sentence, timeout=60_000)
        expect(tiny.locator("#start")).to_be_disabled()
        tiny.locator("#data-files").get_by_label("Clear").click()
        expect(tiny.locator("#data-report")).to_contain_text(say("page.data_empty"))
    assert "Traceback" not in tiny_app.log.read_text()


def test_a_file_of_an_unknown_kind_is_refused_in_words(tiny: Page):
    file = {"name": "notes.exe", "mimeType": "application/octet-stream", "buffer": b"MZ"}
    tiny.set_input_files("#data-files input[type=file]", [file])
    expect(tiny.locator("body")).to_contain_text(".jsonl")
    expect(tiny.get_by_test_id("toast-body").first).to_be_visible()


def test_a_hub_id_that_cannot_be_reached_is_a_sentence(tiny: Page):
    tiny.get_by_label(say("page.model_hub"), exact=True).first.check()
    expect(tiny.locator("#model-info")).to_contain_text(say("page.model_hub_next"))
    put(tiny, "model-repo", "nobody/nothing-at-all")
    tiny.click("#model-look")
    sentence = say("model.no_network", source="nobody/nothing-at-all")
    expect(tiny.locator("#model-info")).to_contain_text(sentence, timeout=60_000)
    put(tiny, "model-repo", "../../etc/passwd")
    tiny.click("#model-look")
    expect(tiny.locator("#model-info")).to_contain_text(
        say("page.no_repo", repo="../../etc/passwd")
    )


def test_a_run_outlives_the_app_is_found_again_and_stopped_and_kept(
    tiny: Page, tiny_app: App, witness: Witness, pairs: Path, tmp_path: Path
):
    add(tiny, pairs)
    start(tiny, name="Long walk", steps=LONG)
    assert points_of(tiny) > 0
    expect(tiny.locator("#live .name")).to_have_text("long-walk-1")

    # What is started meanwhile waits behind it, and is taken out again by keyboard.
    expect(tiny.locator("#start")).to_have_text(say("page.start_queue"))
    tiny.click("#start")
    expect(tiny.locator("#said")).to_contain_text("long-walk-2 is number 1 in the queue")
    tiny.click("#start")
    waiting = tiny.locator("#queue .name")
    expect(waiting).to_have_text(["long-walk-2", "long-walk-3"])
    expect(tiny.locator("#live .name")).to_have_text("long-walk-1")
    tiny.locator("#queue li", has_text="long-walk-3").locator(".up").press("Enter")
    expect(waiting).to_have_text(["long-walk-3", "long-walk-2"])
    expect(tiny.locator("#queue li", has_text="long-walk-3").locator(".down")).to_be_focused()
    for left in (["long-walk-2"], []):
        tiny.locator("#queue .leave").first.press("Enter")
        expect(waiting).to_have_text(left)

    tiny.evaluate("window.old = true")
    said_before = list(witness.complaints)
    tiny_app.kill()
    expect(tiny.locator("#live .state")).to_have_text(say("page.live_reconnecting"))
    assert is_running(tiny_app.run("long-walk-1").process)
    tiny_app.start()
    # The open tab finds the app again by itself.
    tiny.wait_for_function("!window.old")
    assert points_of(tiny) > 0
    expect(tiny.locator("#live .name")).to_have_text("long-walk-1")
    expect(tiny.get_by_test_id("toast-body")).to_have_count(0)
    # What a page says while its server is gone depends on what was under way: no fault of it.
    witness.complaints = said_before
    before = points_of(tiny)
    tiny.wait_for_function(f"{CURVE} > {before}")

    tiny.click("#stop-keep")
    expect(tiny.locator("#live .state")).to_contain_text("what it learned is kept")
    with tiny.expect_download() as packing:
        tiny.click("#download")
    archive = tmp_path / "adapter.zip"
    packing.value.save_as(archive)
    assert packing.value.suggested_filename == "long-walk-1.zip"
    names = {Path(name).name for name in zipfile.ZipFile(archive).namelist()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= names


def test_a_discarded_run_leaves_no_adapter(tiny: Page, tiny_app: App, pairs: Path):
    add(tiny, pairs)
    start(tiny, name="Not this one", steps=LONG)
    expect(tiny.locator("#live .name")).to_have_text("not-this-one-1")
    tiny.click("#stop-discard")
    tiny.click("#stop-sure")
    expect(tiny.locator("#live .state")).to_have_text(say("page.status_stopped"))
    expect(tiny.locator("#compare-now")).to_be_hidden()
    folder = tiny_app.run("not-this-one-1")
    deadline = time.monotonic() + SLOW_MS / 1000
    while is_running(folder.process) and time.monotonic() < deadline:  # it says so before it leaves
        time.sleep(0.05)
    assert not is_running(folder.process)
    assert not folder.adapter.exists()


# What a browser does with a notification, written down instead of shown.
NOTES = """() => { window.notes = []; window.Notification = class {
    static permission = 'granted';
    static requestPermission = async () => 'granted';
    constructor(title, options) { notes.push([title, options.body, options.tag]); }
} }"""
ICON = "document.querySelector('link[rel~=icon]')?.href"


def test_the_tab_shows_how_far_a_run_is_and_its_end_is_notified_once_it_is_wished(
    tiny: Page, tiny_app: App, pairs: Path
):
    plain = tiny.evaluate(ICON)
    expect(tiny).to_have_title("LoRA Studio")
    expect(tiny.locator("#head .notify")).to_be_hidden()
    add(tiny, pairs)
    start(tiny, name="Far away", steps=STEPS)
    expect(tiny.locator("#live .name")).to_have_text("far-away-1")
    pid = pid_of(tiny_app.run("far-away-1").process)
    assert pid
    os.kill(pid, signal.SIGSTOP)  # so short a run could be over before the page was looked at
    wish = tiny.locator("#head .notify input")
    wish.click()  # this browser allows no notifications
    expect(tiny.locator("#head .refused")).to_have_text(say("page.notify_refused"))
    expect(wish).not_to_be_checked()
    tiny.evaluate(NOTES)
    wish.check()
    expect(tiny.locator("#head .refused")).to_be_hidden()
    expect(tiny).to_have_title(re.compile(r"^\d+% far-away-1 – LoRA Studio$"))
    assert tiny.evaluate(ICON).startswith("data:image/png")

    tiny.evaluate("document.hasFocus = () => false")
    os.kill(pid, signal.SIGCONT)
    tiny.wait_for_function("notes.length", timeout=SLOW_MS)
    ((title, said, tag),) = tiny.evaluate("notes")
    assert (title, tag) == ("far-away-1", "far-away-1")
    assert said.startswith(say("page.finished"))
    expect(tiny).to_have_title(say("page.run_title_over", run="far-away-1"))
    tiny.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(tiny).to_have_title("LoRA Studio")
    assert tiny.evaluate(ICON) == plain


@pytest.fixture
def sorted_run(tiny_app: App, tiny_llama: Path) -> Iterator[str]:
    """A run that sorts texts into classes, written without training."""
    run = write_run(
        tiny_app.home / "runs" / "sort-1", str(tiny_app.home / "models" / "tiny"),
        prompts=["Nice.", "별로예요."],
    )  # fmt: skip
    make_sorter(tiny_llama, run.adapter, seed=1)
    yield run.id
    shutil.rmtree(run.path)


@pytest.mark.parametrize(("locale", "language"), [("ko-KR", "ko"), ("en-US", "en")])
def test_a_run_that_sorts_shows_its_confusion_and_both_sides_classes(
    visit: Visit, tiny_app: App, sorted_run: str, locale: str, language: str
):
    page = visit(tiny_app, locale=locale)
    live = page.locator("#live")
    expect(live.locator(".name")).to_have_text(sorted_run)
    expect(live).to_contain_text(say("page.live_accuracy", language))
    expect(live.locator(".confusion td.right")).to_have_text(["9"] * 3)
    expect(live.locator(".confusion td.wrong")).to_have_text(["1"] * 3)
    curves = "document.querySelector('#live .plot.loss').data.map(({y}) => y.length)"
    # Steps, their smoothed line, held-out loss, accuracy, and the star on the best.
    assert page.evaluate(curves) == [8, 8, 3, 3, 1]

    page.get_by_role("tab", name=say("page.tab_compare", language)).click()
    box = page.locator("#classify")
    expect(box).to_contain_text("bad, fair, good")
    expect(page.locator("#question")).to_be_hidden()
    expect(page.locator("#compare-clear")).to_be_hidden()
    box.get_by_role("button", name="별로예요.").click()
    sides = box.locator(".ls-classes .side")
    expect(sides).to_have_count(2, timeout=SLOW_MS)
    expect(page.locator("#classify-text textarea")).to_have_value("별로예요.")
    for side in sides.all():
        expect(side.locator("li")).to_have_count(3)
        expect(side.locator("li.top")).to_have_count(1)
    expect(sides.first).to_contain_text(say("page.classify_base_why", language))
    page.locator("#classify-text textarea").fill(" ")
    page.locator("#classify-send").click()
    expect(box).to_contain_text(say("page.classify_first", language))


def test_markup_in_the_data_is_shown_as_text_and_never_run(tiny: Page):
    evil = "<img src=x onerror=window.struck=1><script>window.struck=1</script>"
    rows = "".join(
        f'{{"prompt": "{evil} {n}", "completion": "{evil}", "{evil}": 1}}\n' for n in range(12)
    )
    file = {"name": f"{evil[:20]}.jsonl", "mimeType": "text/plain", "buffer": rows.encode()}
    tiny.set_input_files("#data-files input[type=file]", [file])
    expect(tiny.locator(".ls-strip")).to_be_visible(timeout=60_000)
    assert evil in tiny.locator(".ls-tokens").first.inner_text().replace("\n", "")
    expect(tiny.locator("#data-report")).to_contain_text(evil)
    assert tiny.locator("img[src=x]").count() == 0
    assert tiny.evaluate("window.struck") is None


TABLE = """frage,antwort,mail
What is A?,A is a letter.,x
What is B?,Write to lee@example.com about it.,x
What is C?,,x
""" + "".join(f"What is {n}?,{n} is the number after {n - 1}.,x\n" for n in range(1, 31))


def choose(page: Page, dropdown: str, option: str) -> None:
    page.locator(f"{dropdown} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def listed(page: Page, dropdown: str) -> list[str | None]:
    """Return what a dropdown offers, in its order."""
    page.locator(f"{dropdown} input").click()
    options = page.get_by_test_id("dropdown-option")
    expect(options.first).to_be_visible()
    names = [option.get_attribute("aria-label") for option in options.all()]
    page.keyboard.press("Escape")
    expect(options).to_have_count(0)
    return names


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table whose columns have names that say nothing to the program."""
    file = tmp_path / "tabelle.csv"
    file.write_text(TABLE, encoding="utf-8")
    return file


def test_columns_are_chosen_where_they_are_not_recognised(tiny_app: App, visit: Visit, table: Path):
    page = visit(tiny_app, locale="ko-KR")
    choose_tiny(page, "ko")
    choose_columns(page, table)
    shows_the_table(page, "33행: 학습 3", "ko")


def shows_the_table(page: Page, strip: str, language: str = "en") -> None:
    expect(page.locator(".ls-strip")).to_contain_text(strip, timeout=60_000)
    reason = say("data.skip_no_answer", language)
    expect(page.locator(".ls-strip")).to_contain_text(f"({reason}: 1)")
    expect(page.locator("#rows-list h4").first).to_have_text("tabelle.csv:2")
    for style in ("m", "t", "e"):
        expect(page.locator(f"#rows-list .ls-tokens .{style}").first).to_be_visible()
    expect(page.locator("#total")).to_contain_text(say("page.sum_tokens", language))


def test_columns_keep_their_places_in_the_list_while_one_is_chosen(tiny: Page, table: Path):
    tiny.set_input_files("#data-files input[type=file]", [table])
    expect(tiny.locator("#column-question input")).to_be_visible(timeout=60_000)
    before = listed(tiny, "#column-answer")
    assert before[1:] == ["frage", "antwort", "mail"]
    choose_question(tiny)
    assert listed(tiny, "#column-answer") == before


def test_rows_are_turned_over_searched_and_told_why_they_are_skipped(tiny: Page, table: Path):
    choose_columns(tiny, table)
    shows_the_table(tiny, "33 rows: 3")
    expect(tiny.locator("#rows-where")).to_have_text("page 1 of 6")
    tiny.click("#rows-on")
    expect(tiny.locator("#rows-where")).to_have_text("page 2 of 6")
    tiny.click("#rows-back")
    expect(tiny.locator("#rows-back")).to_be_disabled()
    put(tiny, "rows-search", "lee@example")
    tiny.click("#rows-find")
    expect(tiny.locator("#rows-list h4")).to_have_count(1)
    expect(tiny.locator("#rows-list")).to_contain_text("lee@example.com")
    put(tiny, "rows-search", "")
    tiny.locator("#rows-part input").nth(2).check()
    expect(tiny.locator("#rows-list")).to_contain_text(
        f"tabelle.csv:4 {say('data.skip_no_answer')}"
    )


def test_a_check_says_what_it_found_and_what_is_chosen_is_done(tiny: Page, table: Path):
    choose_columns(tiny, table)
    check = "#check-secrets"
    expect(tiny.locator(check)).to_contain_text("tabelle.csv:3")
    expect(tiny.locator("#check-mojibake")).to_be_hidden()
    choose(tiny, check, say("page.choice_skip"))
    expect(tiny.locator(".ls-strip")).to_contain_text(f"{say('data.skip_secrets')}: 1")
    choose(tiny, check, say("page.choice_stop"))
    expect(tiny.locator("#data-status .bad")).to_be_visible()
    choose(tiny, check, say("page.choice_keep"))
    expect(tiny.locator("#data-status .bad")).to_have_count(0)
    expect(tiny.locator(".ls-strip")).to_be_visible()


LINE = "document.querySelector('#lengths .plot').layout?.shapes?.[0]?.x0"


def test_the_line_in_the_chart_moves_with_the_slider_in_the_browser(tiny: Page, pairs: Path):
    add(tiny, pairs)
    expect(tiny.locator("#lengths .said")).to_have_text("All 20 rows fit into 512 tokens.")
    assert "20 rows" in tiny.locator("#lengths .plot").get_attribute("aria-label")
    box = tiny.locator("#max-length input[type=number]")
    box.fill("56")
    tiny.wait_for_function(f"{LINE} === 56")
    expect(tiny.locator("#lengths .said")).to_contain_text(" of 20 rows are cut at 56 tokens.")
    tiny.locator("#truncation input").nth(2).check()
    expect(tiny.locator("#lengths .said")).to_contain_text("are over 56 tokens and left out.")


def choose_question(page: Page) -> None:
    """Choose the first column, and wait until the page has asked for the other one."""
    choose(page, "#column-question", "frage")
    expect(page.locator("#data-status")).to_contain_text(": antwort, mail", timeout=60_000)


def choose_columns(page: Page, table: Path) -> None:
    page.set_input_files("#data-files input[type=file]", [table])
    expect(page.locator("#data-status")).to_contain_text("frage, antwort, mail", timeout=60_000)
    expect(page.locator("#column-question input")).to_be_visible()
    choose_question(page)
    choose(page, "#column-answer", "antwort")
    expect(page.locator(".ls-strip")).to_be_visible(timeout=60_000)


def words(page: Page) -> str:
    """Return everything that can be read or heard on the page, in single spaces."""
    read = page.evaluate(
        """() => [document.body.innerText, ...[...document.querySelectorAll('*')].flatMap((node) =>
            ['placeholder', 'aria-label', 'title'].map((name) => node.getAttribute(name) || ''))
        ].join(' ')"""
    )
    return " ".join(read.split())


@pytest.mark.parametrize(("locale", "language"), [("ko-KR", "ko"), ("en-US", "en")])
def test_every_text_speaks_the_browsers_language(
    tiny_app: App, visit: Visit, locale: str, language: str
):
    page = visit(tiny_app, locale=locale)
    all_settings(page, language)
    for card in (
        "card-model", "card-data", "card-adapter", "card-training", "card-prompts", "goal-values",
        "layers-advanced", "parameters", "more-adapter", "recipes",
    ):  # fmt: skip
        unfold(page, card)
    for kind in ("hub", "folder"):
        page.get_by_label(say(f"page.model_{kind}", language), exact=True).first.check()
    expect(page.locator("#model-info")).to_contain_text(say("page.model_folder_next", language))
    read = words(page)
    page.get_by_role("tab", name=say("page.tab_compare", language)).click()
    unfold(page, "compare-more")
    expect(page.locator("#question")).to_be_visible()
    expect(page.locator("#max-new-tokens")).to_be_visible()
    read += words(page)
    page.get_by_role("tab", name=say("page.tab_learn", language)).click()
    expect(page.locator("#nf4-show")).to_be_visible()
    read += words(page)
    for key in (
        "tab_train",
        "methods_not_offered",
        "memory_title",
        "learn_title",
        "target_modules",
        "start",
        "question_hint",
        "temperature_why",
    ):
        assert say(f"page.{key}", language) in read
    assert not re.findall(r"__i18n__|\b(?:page|help)\.[a-z_]+", read)
    if language == "ko":
        for key in ("start", "start_needs_data", "data_add", "r"):
            assert say(f"page.{key}", "en") not in read


def test_on_a_phone_the_sum_is_a_bar_that_covers_no_setting_and_opens(tiny_app: App, visit: Visit):
    page = visit(tiny_app)
    page.set_viewport_size({"width": 390, "height": 844})
    memory, more = page.locator("#prediction"), page.locator("#sum-more")
    expect(page.locator("#start")).to_be_in_viewport()
    expect(memory).to_be_hidden()
    assert page.locator("#sum").bounding_box()["height"] < 844 / 4
    all_settings(page)
    more.click()
    expect(more).to_have_attribute("aria-expanded", "true")
    for part in (memory, page.locator("#run-name")):
        expect(part).to_be_visible()
    more.click()
    expect(memory).to_be_hidden()


def test_the_switch_of_language_is_remembered(tiny_app: App, visit: Visit, witness: Witness):
    page = visit(tiny_app, locale="ko-KR")
    expect(page.locator("#start")).to_have_text(say("page.start", "ko"))
    with page.expect_navigation():
        page.select_option("#head .language", "en")
    expect(page.locator("#start")).to_have_text(say("page.start"))
    expect(page.locator("#said")).to_contain_text(say("page.start_needs_data"))
    reload(page, witness)
    expect(page.locator("#start")).to_have_text(say("page.start"))
    assert page.locator("html").get_attribute("lang") == "en"


# Looks after each change of the page: a timer misses some where the browser has little time.
GROWTH = """() => {
  window.grown = { 'pane-0': [], 'pane-1': [] };
  window.growing = new MutationObserver(() => {
    for (const side of ['pane-0', 'pane-1']) {
      const said = [...document.querySelectorAll(`#${side}-chat [data-testid=bot]`)].at(-1);
      const length = said ? said.textContent.length : 0, seen = window.grown[side];
      if (length > (seen.at(-1) || 0)) seen.push(length);
    }
  });
  window.growing.observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


def answer(page: Page, side: str) -> str:
    return page.locator(f"#{side}-chat [data-testid=bot]").last.inner_text().strip()


@pytest.mark.slow
@pytest.mark.network
def test_a_newcomer_trains_the_starter_model_and_sees_it_answer_differently(
    starter_app: App, visit: Visit, witness: Witness, tmp_path: Path
):
    source = RESTAURANTS if RESTAURANTS.exists() else EXAMPLE
    rows = source.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]
    data = tmp_path / source.name
    data.write_text("".join(rows), encoding="utf-8")
    page = visit(starter_app)
    before = starter_app.imported()

    add(page, data)
    expect(page.locator(".ls-strip")).to_contain_text(f"{len(rows)} rows")
    for style in ("m", "t", "e"):
        expect(page.locator(f".ls-tokens .{style}").first).to_be_visible()
    # What the goal chooses is there: it would take the place of what is chosen below.
    expect(page.locator("#goal-differs")).to_have_text(say("page.differs_none"))
    all_settings(page)
    put(page, "learning-rate", 0.001)
    unfold(page, "card-prompts")
    put(page, "prompt-0", "Say yes.")
    page.get_by_text(say("page.more_training")).click()
    put(page, "eval-steps", STEPS)
    start(page, name="First flight", steps=STEPS)

    points = points_of(page)
    reload(page, witness)
    assert points_of(page) >= points
    beside = visit(starter_app, beside=page)
    assert points_of(beside) >= points
    for tab in (page, beside):
        expect(tab.locator("#live .name")).to_have_text("first-flight-1")
    beside.close()
    expect(page.locator("#live .state")).to_contain_text("Finished.", timeout=SLOW_MS)
    assert points_of(page) == STEPS

    page.click("#compare-now")
    expect(page.locator("#compare-run input")).to_have_value("first-flight-1")
    page.evaluate(GROWTH)
    unfold(page, "compare-more")
    put(page, "max-new-tokens", 40)
    put(page, "question", "name : Zizzi | Type : pub | area : riverside")
    page.click("#send")
    for side in ("pane-0", "pane-1"):
        expect(page.locator(f"#{side}-rate")).to_contain_text("tokens/s", timeout=SLOW_MS)
    answers = {side: answer(page, side) for side in ("pane-0", "pane-1")}
    assert all(answers.values())
    assert answers["pane-0"] != answers["pane-1"]
    grown = page.evaluate("() => { window.growing.disconnect(); return window.grown; }")
    assert min(len(lengths) for lengths in grown.values()) > 2

    # A count goes on until it is stopped; what is asked for may be answered in a word.
    put(page, "max-new-tokens", 1024)
    page.get_by_label(say("page.mode_text"), exact=True).check()
    put(page, "question", "1, 2, 3, 4, 5, 6,")
    page.click("#send")
    expect(page.locator("#pane-0-chat [data-testid=user]")).to_have_count(2)
    expect(page.locator("#pane-0-chat [data-testid=bot]")).to_have_count(2, timeout=60_000)
    page.click("#stop")
    expect(page.locator("#pane-0-rate")).to_contain_text("stopped", timeout=30_000)
    expect(page.locator("#send")).to_be_enabled()

    assert not (before | starter_app.imported()) & HEAVY
    assert not [name for name in LIBRARIES if name in starter_app.mapped()]
    assert "Traceback" not in starter_app.log.read_text()


def folder_of(cookie: str) -> str:
    """Return the name under which a visitor's runs lie."""
    studio = SimpleNamespace(settings=SimpleNamespace(space_id="x"), for_visitor=lambda name: name)
    return Door(studio).enter(SimpleNamespace(cookies={VISITOR: cookie}, session_hash="s"))


def run_of(visitor: Path, name: str) -> None:
    """Put a finished run into a visitor's part of the home folder."""
    folder = run_folder.create(visitor / "runs", Recipe(name=name))
    step = {"step": 1, "loss": 1.0, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_s": 9.0}
    events = [
        {"event": "started", "total_steps": 1},
        {"event": "step", **step, "memory_bytes": 1, "seconds_left": 0},
        {"event": "finished"},
    ]
    lines = [json.dumps({"time": 1.0, **event}) + "\n" for event in events]
    folder.events.write_text("".join(lines))


@pytest.fixture(scope="module")
def space_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app as a Space runs it."""
    app = App(tmp_path_factory.mktemp("space-app"), SPACE_ID="owner/lora-studio")
    with app:
        yield app


def test_visitors_of_a_space_do_not_see_each_others_runs(
    space_app: App, visit: Visit, witness: Witness
):
    pages = {name: visit(space_app) for name in ("ann", "bob")}
    for name, page in pages.items():
        cookie = next(cookie for cookie in page.context.cookies() if cookie["name"] == VISITOR)
        assert cookie["httpOnly"]
        assert cookie["secure"]
        visitor = folder_of(cookie["value"])
        run_of(space_app.home / "visitors" / visitor, f"{name}s secret")
    for page in pages.values():
        reload(page, witness)
    for name, other in (("ann", "bob"), ("bob", "ann")):
        expect(pages[name].locator("#live .name")).to_have_text(f"{name}s-secret-1")
        pages[name].locator("#run input").click()
        expect(pages[name].get_by_role("option", name=f"{name}s-secret-1")).to_be_visible()
        expect(pages[name].get_by_role("option", name=f"{other}s-secret-1")).to_have_count(0)
        assert f"{other}s-secret" not in words(pages[name])
