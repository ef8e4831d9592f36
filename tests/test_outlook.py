"""What is said of a run before it starts, to the page and to a start alike."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from lora_studio.hardware import Hardware
from lora_studio.models.description import ModelInfo
from lora_studio.outlook import look_ahead
from lora_studio.recipe import Recipe
from lora_studio.ui import method_choice, parameter_table, sum_card
from lora_studio.ui.language import Voice
from lora_studio.wording import ASSETS

GIB = 2**30
REPORT = {
    "trained_rows": 400, "eval_rows": 20, "tokens": 40_000, "trained_tokens": 20_000,
    "tokens_longest": 120, "lengths": [[100, 400], [120, 20]],
}  # fmt: skip


@pytest.fixture(scope="module")
def info() -> ModelInfo:
    return ModelInfo.from_dict(json.loads((ASSETS / "starter.json").read_text(encoding="utf-8")))


def machine(free: int = 16 * GIB) -> Hardware:
    return Hardware(
        device="cpu", device_name="a CPU", cores=2,
        memory_total_bytes=16 * GIB, memory_free_bytes=free,
    )  # fmt: skip


def recipe(*settings: str) -> Recipe:
    return Recipe().changed(settings)


class Click(gr.EventData):
    """An event as a browser sends it."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def test_a_recipe_that_can_be_trained_has_an_estimate_and_no_problem(info: ModelInfo) -> None:
    outlook = look_ahead(Recipe(), info, machine(), REPORT, rate=1e11)
    assert not outlook.problems
    assert not outlook.fixes
    assert outlook.precision == "fp32"
    assert outlook.estimate is not None
    assert outlook.estimate.steps == 100
    assert outlook.estimate.seconds
    assert outlook.estimate.parameters.trainable == 4_884_480


def test_every_problem_is_named_at_once(info: ModelInfo) -> None:
    wrong = recipe(
        "precision=fp16", "adapter.target_modules=[nothing]", "adapter.layers_to_transform=[99]",
        "adapter.init_lora_weights=loftq",
    )  # fmt: skip
    outlook = look_ahead(wrong, info, machine(), REPORT)
    assert {problem.key for problem in outlook.problems} >= {
        "hardware.fp16_not_on_cpu", "model.unknown_targets", "model.unknown_layers",
        "methods.loftq_needs_nf4",
    }  # fmt: skip
    assert outlook.estimate is None


def test_a_model_nobody_looked_at_has_no_estimate_but_its_methods_clash() -> None:
    outlook = look_ahead(recipe("adapter.init_lora_weights=loftq"), None, machine())
    assert [problem.key for problem in outlook.problems] == ["methods.loftq_needs_nf4"]
    assert outlook.estimate is None


def test_steps_and_time_are_unknown_before_the_data_is(info: ModelInfo) -> None:
    estimate = look_ahead(Recipe(), info, machine(), rate=1e11).estimate
    assert estimate is not None
    assert estimate.steps is None
    assert estimate.seconds is None


def test_what_will_not_fit_comes_with_changes_that_make_it_fit(info: ModelInfo) -> None:
    large = recipe("data.max_length=4096", "training.per_device_train_batch_size=64")
    report = REPORT | {"tokens_longest": 4096, "lengths": [[4096, 420]], "tokens": 4096 * 420}
    small = machine(4 * GIB)
    outlook = look_ahead(large, info, small, report)
    assert outlook.estimate is not None
    assert outlook.estimate.verdict == "will_not_fit"
    assert outlook.fixes
    for fix in outlook.fixes:
        mended = look_ahead(large.changed(fix.changes), info, small, report)
        assert mended.estimate is not None
        assert mended.estimate.verdict != "will_not_fit"


def test_a_learning_rate_far_off_is_a_warning_not_a_problem(info: ModelInfo) -> None:
    outlook = look_ahead(recipe("training.learning_rate=0.5"), info, machine(), REPORT)
    assert [warning.key for warning in outlook.warnings] == ["recommendations.rate_high"]
    assert not outlook.problems


# Classification

LABELLED = REPORT | {
    "format": "classification", "trained_tokens": 400,
    "labels": [["bad", 100, 5], ["fair", 100, 5], ["good", 200, 10]],
}  # fmt: skip
SORTS = "data.format=classification"


def trained(info: ModelInfo, *settings: str, report: dict[str, Any] | None = None) -> int:
    estimate = look_ahead(recipe(*settings), info, machine(), report).estimate
    assert estimate is not None
    return estimate.parameters.trainable


def test_a_head_over_the_datas_classes_is_trained_beside_the_adapter(info: ModelInfo) -> None:
    writes = trained(info, report=REPORT)
    assert trained(info, SORTS, report=LABELLED) == writes + 3 * info.hidden_size


def test_two_classes_are_counted_on_until_the_data_is_known(info: ModelInfo) -> None:
    assert trained(info, SORTS) == trained(info) + 2 * info.hidden_size


def test_a_model_that_cannot_classify_is_a_problem_only_where_it_is_to(info: ModelInfo) -> None:
    other = replace(info, can_classify=False, source="owner/name")
    outlook = look_ahead(recipe(SORTS), other, machine(), LABELLED)
    assert [problem.key for problem in outlook.problems] == ["model.cannot_classify"]
    assert "owner/name" in outlook.problems[0].say("en")
    assert outlook.estimate is None
    assert not look_ahead(Recipe(), other, machine(), REPORT).problems


def test_the_head_over_words_cannot_be_trained_where_there_is_none(info: ModelInfo) -> None:
    wrong = recipe(SORTS, "adapter.modules_to_save=[lm_head]")
    outlook = look_ahead(wrong, info, machine(), LABELLED)
    assert [problem.key for problem in outlook.problems] == ["model.unknown_saved"]
    assert not look_ahead(recipe("adapter.modules_to_save=[lm_head]"), info, machine()).problems


# On the page


def test_the_head_over_classes_has_its_row_in_the_table_of_what_is_trained(
    info: ModelInfo,
) -> None:
    estimate = look_ahead(recipe(SORTS), info, machine(), LABELLED).estimate
    assert estimate is not None
    html = parameter_table.table(estimate.parameters, Voice(None))
    assert "<code>score</code>" in html
    assert f"3 × {info.hidden_size}" in html
    assert "new head" in html


def test_the_sum_speaks_of_labels_where_texts_are_sorted(info: ModelInfo) -> None:
    asked = recipe(SORTS)
    outlook = look_ahead(asked, info, machine(), LABELLED)
    total, *_ = sum_card.shown(outlook, asked, LABELLED, "cpu", Voice(None))
    assert "learned labels" in total
    assert "learned tokens" not in total


def test_a_clicked_change_is_put_into_the_settings() -> None:
    fixed = sum_card.fixed(Recipe(), Click(changes=["data.max_length=128"]))
    assert fixed.data.max_length == 128


@pytest.mark.parametrize("changes", [None, 3, "data.max_length=1", {}])
def test_a_click_that_names_no_changes_changes_nothing(changes: object) -> None:
    assert sum_card.fixed(Recipe(), Click(changes=changes)) == Recipe()


def test_what_keeps_a_run_from_starting_is_said_and_the_button_is_off(info: ModelInfo) -> None:
    wrong = recipe("adapter.init_lora_weights=loftq")
    outlook = look_ahead(wrong, info, machine(), REPORT)
    *_, start, said = sum_card.shown(outlook, wrong, REPORT, "cpu", Voice(None))
    assert not start.interactive
    assert "LoftQ" in said


def test_methods_that_do_not_go_together_are_grey_with_the_reason(info: ModelInfo) -> None:
    dora = recipe("adapter.use_dora=true")
    offers = look_ahead(dora, info, machine(), REPORT).offers
    rslora, switched, start, bias, reasons = method_choice.shown(dora, offers, Voice(None))
    assert rslora.interactive
    assert switched.interactive  # it can be taken back
    names = [name for _, name in start.choices]
    assert "eva" in names
    assert not {"pissa", "loftq"} & set(names)
    assert [name for _, name in bias.choices] == ["none", "all", "lora_only"]
    assert "PiSSA" in reasons
    assert "LoftQ" in reasons
    int8 = recipe("precision=int8")
    offers = look_ahead(int8, info, machine(), REPORT).offers
    assert not method_choice.shown(int8, offers, Voice(None))[1].interactive
