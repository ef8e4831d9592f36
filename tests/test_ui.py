"""The page's parts that need no browser: form, shelf, live deltas, numbers, rendering."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from lora_studio.cases.machine import Machine
from lora_studio.errors import DatasetError, RecipeError
from lora_studio.recipe import (
    AdapterSpec,
    ChecksSpec,
    DataSpec,
    HubSpec,
    Recipe,
    TrainingSpec,
)
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.ui import (
    data_checks,
    data_columns,
    data_panel,
    data_rows,
    data_view,
    length_chart,
    numbers,
    render,
    run_panel,
)
from lora_studio.ui.data_panel import DataPanel, pasted_name
from lora_studio.ui.draft import Draft
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice
from lora_studio.ui.live import MOST_POINTS, news
from lora_studio.ui.run_panel import RunPanel
from lora_studio.ui.shelf import Shelf

MODULES = ("q_proj", "v_proj")
PATHS = [
    "name", "precision", "data.hub.repo_id", "data.hub.columns", "data.hub.start",
    "data.hub.rows", "data.columns", "data.template", "data.format", "data.encoding",
    "data.chat_template", "data.text_as", "data.checks.duplicates", "data.max_length",
    "data.truncation", "data.chunk_overlap", "data.cut_marker", "data.eval_fraction",
    "adapter.r", "adapter.lora_alpha", "adapter.lora_dropout",
    "adapter.target_modules", "adapter.bias", "adapter.use_rslora", "training.num_train_epochs",
    "training.max_steps", "training.learning_rate", "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps", "training.lr_scheduler_type", "training.warmup_ratio",
    "training.eval_steps", "seed", "training.save_steps", "training.save_total_limit",
    "training.early_stopping_patience", "training.load_best_model_at_end", "prompts.0", "prompts.1",
]  # fmt: skip
RECIPE = Recipe(
    name="poems",
    precision="nf4",
    data=DataSpec(
        files=("/somewhere/rows.jsonl",),
        hub=HubSpec(repo_id="owner/rows", columns=("질문", "답변"), rows=None),
        columns={"question": "질문", "answer": "답변"},
        checks=ChecksSpec(duplicates="skip"),
        truncation="start",
        max_length=256,
    ),
    adapter=AdapterSpec(r=8, target_modules=("q_proj",)),
    training=TrainingSpec(max_steps=60, learning_rate=5e-4),
    prompts=("Who are you?",),
    seed=7,
)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A page to put components on; the event loops that Gradio makes for it are closed."""
    make, made = asyncio.new_event_loop, []
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(make()) or made[-1])
    with gr.Blocks():
        yield
    asyncio.set_event_loop(None)
    for loop in made:
        loop.close()


@pytest.fixture
def form() -> Form:
    form = Form()
    for path in PATHS:
        form.add(path, object())
    return form


def shown(form: Form, recipe: Recipe) -> list[object]:
    values = form.values(recipe, MODULES)
    at = PATHS.index("adapter.target_modules")
    values[at] = values[at].value
    return values


def test_what_the_form_shows_of_a_recipe_is_the_recipe(form: Form) -> None:
    values = shown(form, RECIPE)
    assert form.recipe(values, source="starter", files=["/somewhere/rows.jsonl"]) == RECIPE


def test_a_form_with_nonsense_names_every_problem(form: Form) -> None:
    values = shown(form, RECIPE)
    values[PATHS.index("adapter.r")] = 0
    values[PATHS.index("training.learning_rate")] = None
    values[PATHS.index("data.format")] = "../../etc"
    values[PATHS.index("data.columns")] = {"answer": ["a"]}
    values[PATHS.index("data.checks.duplicates")] = "burn"
    values[PATHS.index("data.hub.columns")] = 3
    with pytest.raises(RecipeError) as caught:
        form.recipe(values, source="starter", files=["x"])
    assert len(caught.value.problems) == 6


def test_the_same_upload_twice_is_one_file_on_the_shelf(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "uploads")
    file = tmp_path / "rows.txt"
    file.write_text("hello")
    assert shelf.keep(file) == shelf.keep(file)
    assert [Path(path).read_text() for path in shelf.paths([shelf.keep(file)])] == ["hello"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "nothing/here.txt", ""])
def test_a_name_that_is_not_on_the_shelf_is_no_path(tmp_path: Path, name: str) -> None:
    shelf = Shelf(tmp_path / "uploads")
    shelf.keep_text("hello", "a.txt")
    assert shelf.paths([name]) == []


def test_a_recipes_files_are_found_on_the_shelf_or_named_as_absent(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "uploads")
    name = shelf.keep_text("hello", "a.txt")
    assert shelf.names([*shelf.paths([name]), "/etc/passwd"]) == ([name], ["passwd"])


@pytest.mark.parametrize("kept", [None, {}, [], 3, {"recipe": {"adapter": {"r": -1}}, "names": []}])
def test_an_unusable_draft_is_a_fresh_start(kept: object) -> None:
    assert Draft.read(kept) == Draft()


def test_a_draft_comes_back_without_paths() -> None:
    kept = Draft(recipe=RECIPE, names=["ab/rows.jsonl"], goal="style", mode="all").to_dict()
    read = Draft.read(kept | {"names": ["ab/rows.jsonl", 3]})
    assert read.names == ("ab/rows.jsonl",)
    assert read.recipe == replace(RECIPE, data=replace(RECIPE.data, files=()))
    assert (read.goal, read.mode) == ("style", "all")


def test_a_draft_from_before_there_were_goals_keeps_its_settings() -> None:
    kept = {"recipe": RECIPE.to_dict(), "names": []}
    assert Draft.read(kept).mode == "all"


@pytest.mark.parametrize(
    ("pasted", "name"),
    [
        ("Roses are red, violets are blue", "Roses-are-red-violets.txt"),
        ('{"prompt": "a", "completion": "b"}', "prompt-a-completion-b.jsonl"),
        ('[{"question": "a"}]', "question-a.json"),
        ("../../etc/passwd", "etc-passwd.txt"),
        ("…", "pasted.txt"),
    ],
)
def test_pasted_text_is_named_after_its_first_words(pasted: str, name: str) -> None:
    assert pasted_name(pasted) == name


def write_run(folder: Path, steps: int) -> History:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(Recipe().to_yaml())
    events = [{"time": 1.0, "event": "started", "total_steps": steps}]
    events += [
        {"time": 1.0 + step, "event": "step", "step": step, "loss": 1.0, "learning_rate": 1e-4,
         "grad_norm": 1.0, "tokens_per_s": 10.0, "memory_bytes": 1e9, "seconds_left": 5.0}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return History(RunFolder(folder)).update()


def test_runs_are_offered_without_reading_what_they_have_been_through(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.runs.mkdir(parents=True)
    for number in (1, 2):
        write_run(settings.runs / f"run-{number}", 3)
    studio = Studio(settings, Machine.open(settings, isolated=False))
    monkeypatch.setattr(History, "update", lambda _: pytest.fail("a run's events were read"))
    offered = run_panel.run_choices(studio, None)
    assert {name for _, name in offered.choices} == {"run-1", "run-2"}


def test_the_buttons_of_a_run_change_with_what_they_depend_on_and_with_nothing_else() -> None:
    run = SimpleNamespace(status="preparing", is_over=False, resumable=None)
    run.folder = SimpleNamespace(newest_adapter=lambda: None)
    studio = SimpleNamespace(runs=SimpleNamespace(history=lambda _: run))
    panel = RunPanel.__new__(RunPanel)
    panel.door = SimpleNamespace(enter=lambda _: studio)  # type: ignore[assignment]
    request: Any = None
    shown, *_ = panel.watch("sea-1", None, request)
    # A new status hides no “Really discard?”.
    for run.status in ("training", "evaluating", "saving"):
        assert panel.watch("sea-1", shown, request) == gr.skip()
    run.status, run.is_over, run.resumable = "stopped", True, 8
    over, keep, *_, resume, _compare, _download, again = panel.watch("sea-1", shown, request)
    assert (keep.visible, resume.visible, again.visible) == (False, True, True)
    assert panel.watch("sea-1", over, request) == gr.skip()
    assert panel.watch("sea-2", over, request) != gr.skip()


def test_a_live_view_gets_only_what_is_after_its_cursor(tmp_path: Path) -> None:
    history = write_run(tmp_path / "run", steps=10)
    fresh = news(history, [0, 0, 0], Voice(None))
    later = news(history, [8, 0, 0], Voice(None))
    assert fresh["steps"]["step"] == list(range(1, 11))
    assert "words" in fresh
    assert later["steps"]["step"] == [9, 10]
    assert later["cursor"] == fresh["cursor"] == [10, 0, 0]


def test_a_cursor_past_the_end_starts_anew(tmp_path: Path) -> None:
    history = write_run(tmp_path / "run", steps=3)
    assert news(history, [99, 0, 0], Voice(None))["from"] == [0, 0, 0]


def test_a_long_run_is_thinned_for_a_fresh_view(tmp_path: Path) -> None:
    history = write_run(tmp_path / "run", steps=3 * MOST_POINTS)
    assert len(news(history, [0, 0, 0], Voice(None))["steps"]["step"]) <= MOST_POINTS


@pytest.mark.parametrize(
    ("value", "text"), [(154, "154"), (12_345, "12.3 k"), (4_884_480, "4.88 M"), (7e9, "7 B")]
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7500, "2 h 5 min")]
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert numbers.duration(seconds, "en") == text


def row(**changed: object) -> dict[str, object]:
    usual = {
        "text": "ab", "tokens": ["a", "b"], "mask": [0, 1], "end_token": False, "left_out": 0,
        "cut_start": 0, "cut_end": 0, "file": "rows.csv", "number": 3,
    }  # fmt: skip
    return usual | changed


EVIL = "<img src=x>"
FOUND = {
    "format": "question_answer", "formats": {EVIL: "question_answer"}, "encodings": {EVIL: "cp949"},
    "columns": {EVIL: [EVIL, "답"], "b.csv": ["q"]}, "unused_columns": {EVIL: [EVIL]},
    "parts": {EVIL: {"answer": "답"}, "b.csv": {"question": "q", "answer": "other"}},
    "records": 412, "rows": 412, "trained_rows": 390, "eval_rows": 15,
    "skipped": {"data.skip_no_answer": 6, "data.skip_empty_text": 1}, "findings": [],
    "max_length": 256, "tokens": 9, "trained_tokens": 5, "tokens_median": 7, "tokens_longest": 9,
    "histogram": [[1, 9, 405]], "lengths": [[7, 400], [9, 5]], "last_answer_only": 0,
    "own_template": "", "pairs": {EVIL: {"count": 24, "examples": [[EVIL, EVIL]]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("total", "said"), [(0, "2,000 rows so far"), (8100, "2,000 of about 8,100 rows")]
)
def test_an_estimate_of_rows_is_called_one(total: int, said: str) -> None:
    event = {"stage": "tokenize", "done": 2000, "total": total}
    assert render.stage_sentence(event, Voice(None)).endswith(f": {said}")


def test_a_token_that_is_markup_is_shown_as_text() -> None:
    shown = row(tokens=["<img src=x>", "b"], file="<img src=y>")
    assert "<img" not in data_rows.sample(shown, Voice(None))


def test_only_the_last_trained_token_is_marked_as_the_end() -> None:
    shown = row(tokens=["a", "b", "<|im_end|>", "\n"], mask=[0, 1, 1, 0], end_token=True)
    html = data_rows.tokens(shown, Voice(None))
    assert html.count('class="e"') == 1
    assert '<span class="e">&lt;|im_end|&gt;</span>' in html


def test_a_cut_row_says_at_which_end_how_many_tokens_are_gone() -> None:
    html = data_rows.tokens(row(cut_start=12, cut_end=5), Voice(None))
    start, end = html.index("12 tokens before"), html.index("5 tokens after")
    assert start < html.index('class="m"') < end


def test_the_strip_adds_up_and_gives_each_reason() -> None:
    said = data_view.strip(FOUND, Voice(None))
    assert said == "412 rows: 390 to learn from, 15 held out, 7 skipped (no answer: 6, no text: 1)"


def test_nothing_of_the_data_is_read_as_markup() -> None:
    finding = {
        "check": "secrets", "choice": "keep", "count": 30, "rows": [[EVIL, 1]], "example": EVIL,
        "looked_at": 100,
    }  # fmt: skip
    html = [
        data_view.summary(FOUND, Voice(None)),
        data_view.pairs(FOUND, Voice(None)),
        data_checks.sentence("secrets", finding, Voice(None)),
        data_rows.skipped(
            {"file": EVIL, "number": 1, "reason": "data.skip_no_answer"}, Voice(None)
        ),
    ]
    assert "<img" not in "".join(html)


def test_rows_of_each_class_are_bars_the_largest_first() -> None:
    sizes = [(EVIL, 3, 1), ("pos", 90, 10), *((f"kind {at}", 2, 0) for at in range(12))]
    html = data_view.classes({"labels": sizes}, Voice(None))
    assert html.index("90 + 10") < html.index("3 + 1") < html.index("kind 0")
    assert html.count("<li>") == 12
    assert "fewer rows each: 2" in html
    assert "<img" not in html
    assert data_view.classes(FOUND, Voice(None)) == ""


def test_a_class_that_most_rows_belong_to_is_warned_of() -> None:
    said = data_view.one_sided({"labels": [("no", 85, 10), ("yes", 4, 1)]}, Voice(None))
    assert said.startswith("95% of the rows have one label, “no”")
    assert data_view.one_sided({"labels": [("no", 80, 10), ("yes", 9, 1)]}, Voice(None)) == ""
    assert data_view.one_sided(FOUND, Voice(None)) == ""


def test_a_row_shows_its_class_and_the_legend_says_that_it_is_learned() -> None:
    shown = data_rows.sample(row(label=EVIL), Voice(None))
    assert '<b class="ls-class">&lt;img' in shown
    assert "ls-class" not in data_rows.sample(row(), Voice(None))
    found = {"page": 1, "pages": 1, "rows": [row(label="pos")]}
    listed = data_rows.show("train", found, Voice(None))[0]
    assert "the text&#x27;s label" in listed
    assert "where to stop" not in listed


def test_the_columns_to_choose_are_those_of_the_format(page: None) -> None:
    columns = data_columns.build(Form())
    found = FOUND | {
        "columns": {"a.csv": ["t", "l"]},
        "parts": {"a.csv": {"text": "t", "label": "l"}},
    }
    shown = columns.show(found, DataSpec(format="classification"), Voice(None))
    pickers = {part: shown[picker] for part, picker in columns.pickers.items()}
    assert {part for part, picker in pickers.items() if picker.visible} == {"text", "label"}
    assert (pickers["text"].value, pickers["label"].value) == ("t", "l")
    shown = columns.show(found, DataSpec(), Voice(None))
    assert not shown[columns.pickers["label"]].visible
    assert shown[columns.pickers["question"]].visible


def test_the_guess_of_several_tables_is_that_of_the_first_that_has_the_part() -> None:
    assert data_columns.guessed(FOUND) == {"answer": "답", "question": "q"}


def test_only_parts_with_a_column_are_chosen() -> None:
    assert data_columns.chosen(["q", "", "a", None, 3, "", ""]) == {"question": "q", "answer": "a"}


def test_the_columns_that_an_error_names_can_be_chosen() -> None:
    error = DatasetError("data.unrecognised", file="a.csv", columns=["what", "why"], choices="…")
    assert data_columns.columns_of(error) == ["what", "why"]
    assert data_columns.columns_of(DatasetError("data.empty_file", file="a.csv")) == []


def test_columns_stay_in_the_order_in_which_they_were_known() -> None:
    known = ["frage", "antwort", "mail"]
    assert data_columns.in_order(["antwort", "mail", "frage"], known) == known
    assert data_columns.in_order(["mail", "new", "frage"], known) == ["frage", "mail", "new"]
    assert data_columns.in_order(["b", "a", "b"], []) == ["b", "a"]


@pytest.mark.parametrize(
    ("error", "check"),
    [
        (DatasetError("data.check_stops_secrets", count=1, rows="a:1"), "secrets"),
        (DatasetError("data.broken_json", file="a", line=1), "broken_rows"),
        (DatasetError("data.empty_file", file="a"), ""),
    ],
)
def test_the_check_that_stopped_a_preview_is_known(error: DatasetError, check: str) -> None:
    assert data_checks.stopped_by(error) == check


@pytest.mark.parametrize("page", [0, -3, True, "2", None, 1.5])
def test_a_page_that_is_none_is_the_first(page: object) -> None:
    assert data_rows.asked("../etc", page, None) == ("train", 1, "")


def test_the_chart_gets_sentences_for_the_browser_to_fill_in() -> None:
    chart = json.loads(length_chart.value(FOUND, Voice(None)))
    assert chart["lengths"] == FOUND["lengths"]
    assert chart["words"]["cut"] == "{n} of {rows} rows are cut at {length} tokens."
    text = json.loads(length_chart.value(FOUND | {"lengths": []}, Voice(None)))
    assert text["bars"] == FOUND["histogram"]


def test_a_preview_is_known_by_what_it_depends_on() -> None:
    same = replace(RECIPE, name="other", training=TrainingSpec(), adapter=AdapterSpec())
    other = replace(RECIPE, data=replace(RECIPE.data, max_length=128))
    assert data_panel.key_of(same) == data_panel.key_of(RECIPE) != data_panel.key_of(other)


def test_what_no_tab_of_ours_asked_for_lately_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_panel, "MOST_SESSIONS", 2)
    panel = DataPanel.__new__(DataPanel)
    panel._wanted = OrderedDict()
    for session in ("a", "b", "a", "c"):
        panel.want(SimpleNamespace(session_hash=session), RECIPE)
    assert list(panel._wanted) == ["a", "c"]


def test_a_preview_nobody_wants_any_more_ends_and_asks_again(page: None) -> None:
    panel = DataPanel(SimpleNamespace(), Form(), SimpleNamespace())
    request = SimpleNamespace(session_hash="tab", cookies={}, headers={})
    events = [{"stage": "tokenize", "done": 1, "total": 2}] * 3
    studio = SimpleNamespace(data=SimpleNamespace(preview=lambda recipe, token: iter(events)))
    panel.want(request, RECIPE)
    shown = panel._prepare(request, studio, RECIPE, None, [])
    assert [panel.card.status in next(shown) for _ in range(2)] == [True, True]
    panel.want(request, replace(RECIPE, seed=1))
    assert [list(outputs) for outputs in shown] == [[panel.card.asked]]


def test_what_is_wrong_with_data_nobody_wants_any_more_is_not_said(page: None) -> None:
    panel = DataPanel(SimpleNamespace(), Form(), SimpleNamespace())
    request = SimpleNamespace(session_hash="tab", cookies={}, headers={})
    one = replace(RECIPE, data=replace(RECIPE.data, columns={"question": "q"}))
    both = replace(RECIPE, data=replace(RECIPE.data, columns={"question": "q", "answer": "a"}))

    def preview(recipe: Recipe, token: object) -> Iterator[object]:
        panel.want(request, both)  # meanwhile the second column is chosen
        yield from ()
        raise DatasetError("data.part_missing", file="a.csv", part="answer", columns=["a", "b"])

    studio = SimpleNamespace(data=SimpleNamespace(preview=preview))
    _begun, *rest = panel._prepare(request, studio, one, None, [])
    assert [list(outputs) for outputs in rest] == [[panel.card.asked]]
    *_, last = panel._prepare(request, studio, both, None, [])
    assert panel.card.status in last


def test_a_failed_preview_keeps_the_columns_choosable(page: None) -> None:
    def preview(recipe: Recipe, token: object) -> Iterator[object]:
        yield from ()
        raise DatasetError("data.unrecognised", file="a.csv", columns=["what", "why"], choices="…")

    panel = DataPanel(SimpleNamespace(), Form(), SimpleNamespace())
    request = SimpleNamespace(session_hash="tab", cookies={}, headers={})
    studio = SimpleNamespace(data=SimpleNamespace(preview=preview))
    *_, last = panel._prepare(request, studio, Recipe(), None, ["old"])
    columns = panel.card.columns
    assert last[columns.part].open
    assert [value for _, value in last[columns.pickers["answer"]].choices] == ["", "what", "why"]
    assert last[panel.card.found] is None


def test_a_check_without_its_usual_choice_can_be_taken_back(page: None) -> None:
    checks = data_checks.build(Form())
    shown = checks.show(FOUND, ChecksSpec(duplicates="stop"), Voice(None))
    visible = [name for name, line in checks.lines.items() if shown[line].visible]
    assert visible == ["duplicates"]
