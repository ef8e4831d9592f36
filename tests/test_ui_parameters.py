"""The table of what learns, and the controls that choose layers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from lora_studio.errors import RecipeError
from lora_studio.hardware import Hardware
from lora_studio.models.accounting import count
from lora_studio.models.description import ModelInfo
from lora_studio.outlook import look_ahead
from lora_studio.recipe import AdapterSpec, Recipe
from lora_studio.ui import layer_choice, parameter_table, training_card
from lora_studio.ui.form import Form, read_numbers, read_pairs
from lora_studio.ui.language import Voice
from lora_studio.wording import ASSETS

STARTER = ModelInfo.from_dict(json.loads((ASSETS / "starter.json").read_text(encoding="utf-8")))
VOICE = Voice(None)
KOREAN = Voice(None)
KOREAN.language = "ko"


Built = tuple[Form, layer_choice.LayerChoice]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[Built]:
    """The controls on a page; the event loops that Gradio makes for it are closed."""
    make, made = asyncio.new_event_loop, []
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(make()) or made[-1])
    form = Form()
    with gr.Blocks():
        choice = layer_choice.build(form, STARTER)
        layer_choice.wire(choice, gr.State("starter"), lambda *_: STARTER)
        yield form, choice
    asyncio.set_event_loop(None)
    for loop in made:
        loop.close()


def adapter_of(form: Form, **shown: Any) -> AdapterSpec:
    """Read the adapter section off controls that show these values."""
    plain = dict(zip(form.controls, form.values(Recipe(), STARTER.target_names), strict=True))
    values = {path: getattr(value, "value", value) for path, value in plain.items()}
    values |= {f"adapter.{path}": value for path, value in shown.items()}
    return form.recipe(list(values.values()), source="starter", files=[]).adapter


# The table


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row)]
            for row in rows]  # fmt: skip


def test_the_table_has_a_row_for_each_kind_of_layer_and_a_sum() -> None:
    counted = count(STARTER, AdapterSpec(r=8))
    rows = cells(parameter_table.table(counted, VOICE))
    assert len(rows) == 1 + 7 + 1
    assert rows[1] == ["q_proj", "30", "576 → 576", "9.95 M", "276 k", "97.2 %"]
    assert rows[-1][:2] == ["together", "210"]
    adapters = re.findall(r'trained" title="([\d,]+)"', parameter_table.table(counted, VOICE))
    numbers = [int(number.replace(",", "")) for number in adapters]
    assert numbers[-1] == sum(numbers[:-1]) == counted.trainable


def test_modules_trained_whole_and_biases_have_rows_of_their_own() -> None:
    adapter = AdapterSpec(r=8, modules_to_save=("embed_tokens",))
    counted = replace(count(STARTER, adapter), biases=960)
    rows = cells(parameter_table.table(counted, KOREAN))
    assert rows[-3] == ["embed_tokens", "1", "49,152 × 576", "28.3 M", "28.3 M", "통째로 학습"]
    assert rows[-2][0] == "바이어스"


def test_names_of_a_strange_model_are_escaped() -> None:
    counted = count(STARTER, AdapterSpec())
    strange = replace(counted.per_module[0], name="<b>")
    html = parameter_table.table(replace(counted, per_module=(strange,)), VOICE)
    assert "<b>" not in html


@pytest.mark.parametrize(
    ("share", "said"),
    [(98.4375, "98.4 %"), (99.96895, "99.969 %"), (100 - 1e-9, "99.999 %"), (-12.34, "−12.3 %")],
)
def test_a_saving_is_never_rounded_to_all(share: float, said: str) -> None:
    assert parameter_table.percent(share) == said


# The form


def test_what_the_controls_show_comes_back_as_the_same_recipe(
    built: Built,
) -> None:
    form, _ = built
    adapter = {
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": [0, 1, 2, 5],
        "rank_pattern": {"q_proj": 32, "v_[ab]{1,2}": 8},
        "alpha_pattern": {"v_proj": 4},
        "modules_to_save": ["lm_head"],
    }
    recipe = Recipe.from_dict({"adapter": adapter})
    values = form.values(recipe, STARTER.target_names, layer_choice.whole_choices(STARTER))
    shown = [getattr(value, "value", value) for value in values]
    assert form.recipe(shown, source="starter", files=[]).adapter == recipe.adapter


def test_an_expression_counts_in_place_of_the_checkboxes(
    built: Built,
) -> None:
    form, _ = built
    expression = {"target_modules.expression": " .*q_proj "}
    assert adapter_of(form, **expression).target_modules == ".*q_proj"
    shown = form.values(Recipe.from_dict({"adapter": {"target_modules": ".*q_proj"}}), ["q_proj"])
    by_path = dict(zip(form.controls, shown, strict=True))
    assert by_path["adapter.target_modules.expression"] == ".*q_proj"
    assert by_path["adapter.target_modules"].value == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("layers_to_transform", "a-b"),
        ("layers_to_transform", "-1"),
        ("layers_to_transform", "0-99999999999"),
        ("rank_pattern", "q_proj 32"),
        ("rank_pattern", "q_proj: 32, v_proj"),
        ("alpha_pattern", "q_proj: many"),
        ("rank_pattern", "q_proj: 9999"),
        ("rank_pattern", "q_(: 8"),
        ("target_modules.expression", "(.+)+x"),
    ],
)
def test_a_line_that_cannot_be_read_is_said_beside_it(
    built: tuple[Form, layer_choice.LayerChoice], name: str, line: str
) -> None:
    form, _ = built
    with pytest.raises(RecipeError) as caught:
        adapter_of(form, **{name: line})
    assert "ls-say bad" in layer_choice.said_of_error(caught.value, KOREAN)


def test_a_problem_of_another_part_is_not_said_here() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"training": {"learning_rate": 9}})
    assert layer_choice.said_of_error(caught.value, VOICE) == ""


def test_lines_are_read_as_they_are_written_by_hand() -> None:
    assert read_numbers(" 0 - 2, 7 ") == [0, 1, 2, 7]
    assert read_numbers("") == []
    assert read_pairs("q_proj : 32 ,v_proj:8,") == {"q_proj": 32, "v_proj": 8}
    assert read_pairs("") == {}


# What moves what


def test_a_preset_ticks_its_modules_and_ticking_finds_the_preset() -> None:
    names, expression = layer_choice.of_preset("attention_qv", STARTER)
    assert (names, expression) == (["q_proj", "v_proj"], "")
    assert layer_choice.preset_of(["v_proj", "q_proj"], STARTER) == "attention_qv"
    assert layer_choice.preset_of(list(STARTER.target_names), STARTER) == "all_linear"
    assert layer_choice.preset_of(["up_proj"], STARTER) == "own"


def test_one_s_own_choice_leaves_the_checkboxes_alone() -> None:
    assert all(
        "__type__" in update and "value" not in update
        for update in layer_choice.of_preset("own", STARTER)
    )


@pytest.mark.parametrize(
    ("first", "last", "line"),
    [(0, 29, ""), (0, 11, "0-11"), (7, 7, "7"), (20, 10, "10-20"), (-3, 99, "")],
)
def test_the_range_is_written_as_a_line(first: int, last: int, line: str) -> None:
    assert layer_choice.line_of(first, last, STARTER) == line


@pytest.mark.parametrize(
    ("line", "ends"), [("", (0, 29)), ("3-5", (3, 5)), ("1,9", (1, 9)), ("7", (7, 7))]
)
def test_a_line_moves_the_range(line: str, ends: tuple[int, int]) -> None:
    assert tuple(update.value for update in layer_choice.ends_of(line, STARTER)) == ends


@pytest.mark.parametrize("line", ["x", "30", None])
def test_a_line_that_is_no_range_of_this_model_leaves_the_sliders(line: Any) -> None:
    assert all("value" not in update for update in layer_choice.ends_of(line, STARTER))


def test_another_model_brings_its_own_names(
    built: Built,
) -> None:
    _, choice = built
    info = replace(STARTER, modules=STARTER.modules[4:], layers=12)
    updates = layer_choice.for_model(info, KOREAN)
    assert len(updates) == len(choice.of_model)
    assert [value for _, value in updates[0].choices] == ["all_linear", "own"]
    assert updates[1].value == ["gate_proj", "up_proj", "down_proj"]
    assert updates[3].maximum == 11


def test_problems_come_before_warnings() -> None:
    wrong = AdapterSpec(target_modules=("nope",), r=250, lora_alpha=1)
    assert "nope" in layer_choice.said_of(STARTER, wrong, VOICE)
    assert "lora_alpha/r" not in layer_choice.said_of(STARTER, wrong, VOICE)
    odd = AdapterSpec(r=250, lora_alpha=1)
    assert "ls-say warn" in layer_choice.said_of(STARTER, odd, VOICE)
    assert layer_choice.said_of(STARTER, AdapterSpec(), VOICE) == ""


def test_a_module_trained_whole_says_what_it_adds_to_the_file() -> None:
    # The starter's head is its embedding; the file holds both.
    assert layer_choice.whole_choices(STARTER) == [
        ("embed_tokens · 226 MB", "embed_tokens"),
        ("lm_head · 226 MB", "lm_head"),
    ]
    untied = replace(STARTER, tied_embeddings=False)
    assert layer_choice.whole_choices(untied)[1] == ("lm_head · 113 MB", "lm_head")


# The training card


def judged(*changes: str, memory: int = 64 * 2**30) -> str:
    """Return what the training card says of a recipe on a processor with so much memory."""
    machine = Hardware(
        device="cpu", device_name="one", cores=2, memory_total_bytes=memory,
        memory_free_bytes=memory,
    )  # fmt: skip
    outlook = look_ahead(Recipe().changed(changes), STARTER, machine)
    return training_card.said_of(outlook, VOICE)


def test_rate_and_batch_are_judged_beside_their_controls() -> None:
    assert judged() == ""
    assert "ls-say warn" in judged("training.learning_rate=0.01")
    assert "0.01" in judged("training.learning_rate=0.01")
    tight = judged("training.per_device_train_batch_size=64", memory=4 * 2**30)
    assert "ls-say bad" in tight
    assert "Will not fit" in tight


def test_a_training_setting_out_of_range_is_said_on_its_card() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().changed(["training.learning_rate=7", "adapter.lora_alpha=0"])
    said = training_card.said_of_error(caught.value, VOICE)
    assert "learning_rate" in said
    assert "lora_alpha" not in said
    assert "lora_alpha" in layer_choice.said_of_error(caught.value, VOICE)
