"""Goals and Learn without a browser: what is shown, what a reset puts back, real NF4 numbers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from lora_studio.errors import ModelError
from lora_studio.hardware import Hardware
from lora_studio.models.description import ModelInfo
from lora_studio.recipe import AdapterSpec, Recipe
from lora_studio.recommendations.recommendation import differing
from lora_studio.recommendations.table import GOAL_NAMES
from lora_studio.settings import Settings
from lora_studio.ui import goals, learn
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice
from lora_studio.wording import say
from lora_studio.workbench import Workbench

FOUND = {
    "trained_rows": 380, "eval_rows": 20, "tokens": 38_000, "trained_tokens": 19_000,
    "lengths": [[100, 400]],
}  # fmt: skip
CPU = Hardware(
    device="cpu",
    device_name="CPU",
    cores=2,
    memory_total_bytes=24 << 30,
    memory_free_bytes=19 << 30,
)


def voice(language: str) -> Voice:
    said = Voice(None)
    said.language = language
    return said


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


@pytest.fixture(scope="module")
def info(tiny_llama: Path) -> ModelInfo:
    from lora_studio.models.inspection import inspect_model

    return inspect_model(tiny_llama, "owner/tiny")


@pytest.fixture
def form(page: None) -> Form:
    form = Form()
    form.add("adapter.r", gr.Slider(1, 256, value=16))
    form.add("adapter.target_modules", gr.CheckboxGroup([]))
    form.add("training.max_steps", gr.Number(None))
    form.add("seed", gr.Number(42))
    return form


def test_nothing_is_recommended_without_a_model_or_text(info: ModelInfo) -> None:
    assert goals.recommendation("style", None, info, CPU) is None
    assert goals.recommendation("style", FOUND, None, CPU) is None
    chosen, differs = goals.show(Recipe(), None, voice("en"))
    assert "once there is a model and some text" in chosen
    assert differs == ""


def test_unknown_goals_and_modes_are_the_first_ones(info: ModelInfo) -> None:
    assert goals.goal_of("<b>") == GOAL_NAMES[0]
    assert goals.mode_of(None) == "simple"
    assert goals.mode_of("all") == "all"
    found = goals.recommendation(["style"], FOUND, info, CPU)
    assert found is not None
    assert found.goal == GOAL_NAMES[0]


@pytest.mark.parametrize("language", ["en", "ko"])
def test_every_value_is_listed_with_reason_and_source(info: ModelInfo, language: str) -> None:
    found = goals.recommendation("style", FOUND, info, CPU)
    html, _ = goals.show(Recipe(), found, voice(language))
    assert html.count("<li>") == html.count("<cite>") == len(found.values)
    assert "https://arxiv.org/abs/2106.09685" in html
    assert ("360 rows are very few" if language == "en" else "360개") in html


def test_the_list_of_differences_counts_and_has_a_button_for_each(info: ModelInfo) -> None:
    found = goals.recommendation("style", FOUND, info, CPU)
    recipe = found.applied(Recipe())
    assert "as recommended" in goals.differences(recipe, found, voice("en"))
    one = replace(recipe, adapter=replace(recipe.adapter, r=3))
    html = goals.differences(one, found, voice("en"))
    assert "1 setting differs" in html
    assert html.count("data-setting=") == 1
    two = replace(one, seed=7, training=replace(recipe.training, learning_rate=3e-5))
    html = goals.differences(two, found, voice("en"))
    assert "2 settings differ" in html
    assert html.count("data-setting=") == 3
    assert "3e-05" in html


def test_names_of_modules_are_escaped(info: ModelInfo) -> None:
    found = goals.recommendation("style", FOUND, info, CPU)
    recipe = replace(Recipe(), adapter=AdapterSpec(target_modules=("<img src=x>",)))
    assert "<img" not in goals.differences(recipe, found, voice("en"))


@pytest.mark.parametrize(
    ("goal", "now", "wanted"),
    [
        ("classification", "auto", "classification"),
        ("classification", "alpaca", "classification"),
        ("style", "classification", "auto"),
        ("style", "alpaca", "alpaca"),
        ("style", "auto", "auto"),
    ],
)
def test_a_goal_says_how_rows_are_read_only_where_it_must(goal: str, now: str, wanted: str) -> None:
    form = Form({"seed": None, goals.FORMAT: None})
    assert goals.format_for(goal, now) == wanted
    put = goals.put_format(form, goal, [7, now], [8, gr.skip()])
    assert put == [8, gr.skip() if wanted == now else wanted]


def test_rows_read_otherwise_bring_the_goal_along() -> None:
    assert goals.follow_format("classification", "style") == "classification"
    assert goals.follow_format("auto", "classification") == GOAL_NAMES[0]
    assert goals.follow_format("alpaca", "style") == gr.skip()
    assert goals.follow_format("classification", "classification") == gr.skip()


def test_nothing_is_recommended_from_rows_that_were_read_for_another_task(
    info: ModelInfo,
) -> None:
    labelled = FOUND | {"format": "classification", "labels": [["a", 190, 10], ["b", 190, 10]]}
    assert goals.recommendation("classification", FOUND, info, CPU) is None
    assert goals.recommendation("style", labelled, info, CPU) is None
    found = goals.recommendation("classification", labelled, info, CPU)
    assert found is not None
    html, _ = goals.show(found.applied(Recipe()), found, voice("ko"))
    assert "클래스 2개" in html


@pytest.mark.parametrize("language", ["en", "ko"])
def test_what_classification_needs_is_said_beside_the_goal_until_it_is_there(
    language: str,
) -> None:
    sorts = Recipe().changed(["data.format=classification"])
    _, said = goals.show(sorts, None, voice(language))
    assert say("page.goal_needs_labels", language) in said


def test_putting_back_one_setting_leaves_the_others(info: ModelInfo, form: Form) -> None:
    found = goals.recommendation("style", FOUND, info, CPU)
    recipe = replace(Recipe(), adapter=AdapterSpec(r=3, target_modules=("q_proj",)))
    paths = list(form.controls)
    put = dict(zip(paths, goals.put(form, recipe, found, "adapter.r"), strict=True))
    assert put["adapter.r"] == 16
    assert all(put[path] == gr.skip() for path in paths if path != "adapter.r")
    every = dict(zip(paths, goals.put(form, recipe, found), strict=True))
    assert every["adapter.target_modules"].value == list(info.target_names)
    assert every["seed"] == gr.skip()


def test_what_is_as_recommended_is_not_set_again(info: ModelInfo, form: Form) -> None:
    """Else each answer of the page would change the controls and ask again, without end."""
    found = goals.recommendation("style", FOUND, info, CPU)
    recipe = found.applied(Recipe())
    assert differing(recipe, found) == []
    assert goals.put(form, recipe, found) == [gr.skip()] * len(form.controls)


@pytest.mark.parametrize("path", ["seed", "__class__", None, "adapter.r' onclick="])
def test_only_recommended_settings_can_be_asked_for(info: ModelInfo, path: str | None) -> None:
    found = goals.recommendation("style", FOUND, info, CPU)
    assert goals.asked_path(SimpleNamespace(setting=path), found) is None
    assert goals.asked_path(SimpleNamespace(setting="adapter.r"), found) == "adapter.r"
    assert goals.asked_path(SimpleNamespace(setting="all"), found) == "all"


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_picture_has_the_models_layers_and_the_current_numbers(
    info: ModelInfo, language: str
) -> None:
    shown = json.loads(learn.picture_value(info, AdapterSpec(r=4, lora_alpha=8), voice(language)))
    first = {"name": "self_attn.q_proj", "count": 2, "d_in": 32, "d_out": 32}
    assert shown["modules"][0] == first
    assert (shown["r"], shown["alpha"], shown["root"]) == (4, 8, False)
    assert "{few}" in shown["words"]["count"]
    assert learn.picture_value(None, AdapterSpec(), voice(language)) == ""


@pytest.fixture(scope="module")
def rounded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    bench = Workbench(Settings(home=tmp_path_factory.mktemp("home"), offline=True))
    events = list(bench.nf4(str(tiny_llama)))
    again = list(bench.nf4(str(tiny_llama)))
    assert [event.get("stage") for event in events] == ["weights", None]
    assert again == events[-1:]
    return events[-1]["result"]


def test_nf4_is_shown_on_a_real_weight_of_the_middle_block(rounded: dict) -> None:
    assert rounded["tensor"] == "model.layers.1.self_attn.q_proj.weight"
    assert (rounded["rows"], rounded["columns"]) == (32, 32)
    assert len(rounded["levels"]) == len(rounded["shares"]) == 16
    assert rounded["levels"] == sorted(rounded["levels"])
    assert (rounded["levels"][0], rounded["levels"][7], rounded["levels"][15]) == (-1, 0, 1)
    assert sum(rounded["shares"]) == pytest.approx(1)
    assert sum(rounded["scaled"]) == pytest.approx(1)
    assert 0.99 < sum(rounded["before"]) <= 1.0001


def test_the_error_is_that_of_our_own_rounding(rounded: dict, tiny_llama: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weight = load_file(tiny_llama / "model.safetensors")[rounded["tensor"]].float()
    blocks = weight.view(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(rounded["levels"])
    nearest = ((blocks / largest)[..., None] - levels).abs().argmin(dim=-1)
    ours = (levels[nearest] * largest).view_as(weight)
    assert rounded["mean_error"] == pytest.approx(float((ours - weight).abs().mean()), rel=1e-3)
    counts = torch.bincount(nearest.flatten(), minlength=16) / weight.numel()
    assert rounded["shares"] == pytest.approx(counts.tolist(), abs=2e-3)
    assert 0.05 < rounded["relative_error"] < 0.15


def test_gpt2_and_models_without_a_float_weight_are_answered(
    tiny_gpt2: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    from lora_studio.models.weights_histogram import nf4_histogram

    assert "h.1.attn.c_attn" in nf4_histogram(tiny_gpt2).tensor
    file, name = tmp_path / "a.safetensors", "layers.0.q_proj.weight"
    save_file({name: torch.zeros(8, 8, dtype=torch.int8)}, file)
    with pytest.raises(ModelError, match="int8"):
        nf4_histogram(tmp_path)
    save_file({"norm.weight": torch.zeros(8)}, file)
    with pytest.raises(ModelError, match="no weight matrix"):
        nf4_histogram(tmp_path)
    save_file({name: torch.zeros(8, 8)}, file)
    assert nf4_histogram(tmp_path).relative_error == 0


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_charts_say_the_tensor_and_the_error_in_words(rounded: dict, language: str) -> None:
    shown = json.loads(learn.chart_value(rounded, voice(language)))
    assert rounded["tensor"] in shown["words"]["shape"]
    assert f"{100 * rounded['relative_error']:.2g}" in shown["words"]["error"]
    assert "4.5" in shown["words"]["error"]
