"""The page's parts that need no browser: form, shelf, live deltas, numbers, rendering."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lora_studio.errors import RecipeError
from lora_studio.recipe import AdapterSpec, DataSpec, Recipe, TrainingSpec
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History
from lora_studio.ui import numbers, render
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice
from lora_studio.ui.live import MOST_POINTS, news
from lora_studio.ui.shelf import Shelf
from lora_studio.ui.train import pasted_name, read_draft

MODULES = ("q_proj", "v_proj")
PATHS = [
    "name", "precision", "data.format", "data.max_length",
    "data.eval_fraction", "adapter.r", "adapter.lora_alpha", "adapter.lora_dropout",
    "adapter.target_modules", "adapter.bias", "adapter.use_rslora", "training.num_train_epochs",
    "training.max_steps", "training.learning_rate", "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps", "training.lr_scheduler_type", "training.warmup_ratio",
    "training.eval_steps", "seed", "prompts.0", "prompts.1",
]  # fmt: skip
RECIPE = Recipe(
    name="poems",
    precision="nf4",
    data=DataSpec(files=("/somewhere/rows.jsonl",), max_length=256),
    adapter=AdapterSpec(r=8, target_modules=("q_proj",)),
    training=TrainingSpec(max_steps=60, learning_rate=5e-4),
    prompts=("Who are you?",),
    seed=7,
)


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
    with pytest.raises(RecipeError) as caught:
        form.recipe(values, source="starter", files=["x"])
    assert len(caught.value.problems) == 3


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


@pytest.mark.parametrize("draft", [None, {}, [], {"recipe": {"adapter": {"r": -1}}, "names": []}])
def test_an_unusable_draft_is_a_fresh_start(draft: object) -> None:
    assert read_draft(draft) == (Recipe(), [])


def test_a_draft_comes_back_without_paths() -> None:
    recipe, names = read_draft({"recipe": RECIPE.to_dict(), "names": ["ab/rows.jsonl", 3]})
    assert names == ["ab/rows.jsonl"]
    assert recipe == replace(RECIPE, data=replace(RECIPE.data, files=()))


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


def test_a_token_that_is_markup_is_shown_as_text() -> None:
    example = {"pieces": [["<img src=x>", True]], "end_token": True, "left_out": 0}
    assert "<img" not in render.tokens(example, Voice(None))


def test_only_the_last_trained_token_is_marked_as_the_end() -> None:
    pieces = [["a", False], ["b", True], ["<|im_end|>", True], ["\n", False]]
    html = render.tokens({"pieces": pieces, "end_token": True, "left_out": 0}, Voice(None))
    assert html.count('class="e"') == 1
    assert '<span class="e">&lt;|im_end|&gt;</span>' in html
