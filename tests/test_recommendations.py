"""What is recommended for a goal: in bounds, sourced, and steady as data and machine change."""

from __future__ import annotations

import itertools
import string
from dataclasses import replace

import pytest

from lora_studio.hardware import Gpu, Hardware
from lora_studio.models.description import ModelInfo, ModuleGroup
from lora_studio.recipe import BOUNDS, AdapterSpec, Recipe, TrainingSpec
from lora_studio.recommendations import table
from lora_studio.recommendations.choosing import recommend
from lora_studio.recommendations.recommendation import DataFacts, differing, warnings
from lora_studio.wording import LANGUAGES, say
from lora_studio.wording import table as strings

GIB = 2**30
CPU = Hardware(
    device="cpu",
    device_name="CPU",
    cores=2,
    memory_total_bytes=24 * GIB,
    memory_free_bytes=19 * GIB,
)
MACHINES = [
    CPU,
    replace(CPU, memory_free_bytes=GIB),
    replace(CPU, has_bf16=True),
    replace(CPU, device="mps", has_bf16=True),
    *(
        replace(
            CPU,
            device="cuda",
            has_bf16=capability >= 8,
            gpus=(
                Gpu(
                    name="GPU",
                    total_bytes=gib * GIB,
                    free_bytes=gib * GIB,
                    compute_capability=capability,
                ),
            ),
        )
        for gib, capability in [(4, 5.2), (8, 7.5), (24, 8.9), (139, 9.0)]
    ),
]
ROWS = [1, 2, 7, 19, 20, 63, 64, 255, 256, 999, 1000, 1200, 2047, 2048, 19_999, 20_000, 10**6]


def group(name: str, d_in: int, d_out: int) -> ModuleGroup:
    return ModuleGroup(
        name=name, path=f"layers.{{}}.{name}", indices=("0-29",), count=30, d_in=d_in, d_out=d_out
    )


def model(parameters: float = 135e6, width: int = 576, context: int | None = 2048) -> ModelInfo:
    return ModelInfo(
        source="owner/name",
        architecture="LlamaForCausalLM",
        parameters=int(parameters),
        layers=30,
        context_length=context,
        hidden_size=width,
        intermediate_size=3 * width,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=49_152,
        tied_embeddings=True,
        chat_template=True,
        modules=(
            group("q_proj", width, width),
            group("down_proj", 3 * width, width),
        ),
        biases=0,
        bias_tensors=0,
        size_bytes=0,
    )


def chats(rows: int, length: int = 90) -> DataFacts:
    return DataFacts(
        rows=rows,
        tokens=rows * length,
        trained_tokens=rows * length // 2,
        is_text=False,
        lengths=((length, rows),),
    )


def text(rows: int) -> DataFacts:
    return DataFacts(rows=rows, tokens=rows * 500, trained_tokens=rows * 500, is_text=True)


def labelled(rows: int, length: int = 90) -> DataFacts:
    return replace(chats(rows, length), trained_tokens=rows, labels=3)


def values(goal: table.GoalName = "style", data: DataFacts | None = None, **where):
    info, hardware = where.get("info", model()), where.get("hardware", CPU)
    found = recommend(goal, data or chats(1200), info, hardware)
    return {path.rpartition(".")[2]: entry.value for path, entry in found.values.items()}


def steps(goal: table.GoalName, rows: int) -> float:
    chosen = values(goal, chats(rows))
    per_step = chosen["per_device_train_batch_size"] * chosen["gradient_accumulation_steps"]
    learned = rows * (1 - chosen["eval_fraction"])
    return chosen["max_steps"] or chosen["num_train_epochs"] * learned / per_step


@pytest.mark.parametrize("goal", table.GOAL_NAMES)
@pytest.mark.parametrize("hardware", MACHINES)
def test_every_goal_gives_a_recipe_without_problems_for_all_data(
    goal: table.GoalName, hardware: Hardware
) -> None:
    sizes = [chats(rows) for rows in ROWS] + [text(rows) for rows in ROWS]
    sizes += [chats(40, length) for length in (1, 500, 3000, 10**6)]
    models = [model(), model(8e9, 4096, 131_072), model(7e10, 8192, None), model(1e5, 4, 8)]
    for data, info in itertools.product(sizes, models):
        found = recommend(goal, data, info, hardware)
        recipe = found.applied(Recipe())
        assert not list(recipe.problems()), (data, info)
        assert differing(recipe, found) == []
    # The command line reads the same values from a file.
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_recommended_values_lie_within_the_bounds_of_the_recipe() -> None:
    for goal, rows in itertools.product(table.GOAL_NAMES, ROWS):
        for path, entry in recommend(goal, chats(rows), model(), CPU).values.items():
            if path in BOUNDS and entry.value is not None:
                low, high = BOUNDS[path]
                assert low <= entry.value <= high, (path, entry.value)


@pytest.mark.parametrize("hardware", MACHINES)
def test_every_value_says_why_in_both_languages_and_names_its_source(hardware: Hardware) -> None:
    sizes = [chats(rows, length) for rows in ROWS for length in (90, 4000)] + [text(400)]
    for goal, data in itertools.product(table.GOAL_NAMES, sizes):
        for path, entry in recommend(goal, data, model(8e9), hardware).values.items():
            for language in LANGUAGES:
                assert say(entry.reason_key, language, **entry.reason_values)
            assert entry.source.title, path
            assert entry.source is table.OWN or entry.source.url.startswith("https://"), path


@pytest.mark.parametrize("goal", table.GOAL_NAMES)
def test_more_rows_never_mean_more_passes_or_smaller_steps(goal: table.GoalName) -> None:
    found = [values(goal, chats(rows)) for rows in range(1, 6000, 7)]
    for less, more in itertools.pairwise(found):
        assert more["num_train_epochs"] <= less["num_train_epochs"]
        batch = "per_device_train_batch_size"
        accumulated = "gradient_accumulation_steps"
        assert more[batch] * more[accumulated] >= less[batch] * less[accumulated]
        assert more["r"] >= less["r"]
        assert more["lora_dropout"] <= less["lora_dropout"]


@pytest.mark.parametrize("goal", table.GOAL_NAMES)
@pytest.mark.parametrize("rows", [32, 64, 256, 1200, 5000, 10**6])
def test_there_are_steps_enough_for_an_effect_without_memorising(
    goal: table.GoalName, rows: int
) -> None:
    assert steps(goal, rows) >= 0.8 * 50
    assert values(goal, chats(rows))["num_train_epochs"] <= table.GOALS[goal].most_epochs


def test_twelve_hundred_rows_are_seen_three_times() -> None:
    entry = recommend("style", chats(1200), model(), CPU).values["training.num_train_epochs"]
    assert entry.value == 3
    assert "1,140 rows are few, so 3 passes" in say(entry.reason_key, **entry.reason_values)


def test_a_quick_try_is_short_whatever_the_data() -> None:
    assert all(steps("quick_try", rows) <= 60 for rows in ROWS)


def test_a_processor_is_not_sent_on_a_run_of_weeks_but_a_gpu_sees_every_row() -> None:
    assert values(data=chats(10**6))["max_steps"] == table.MOST_STEPS["cpu"]
    assert values(data=chats(10**6), hardware=MACHINES[-1])["max_steps"] is None


def test_the_length_covers_99_of_100_rows() -> None:
    lengths = ((100, 980), (200, 12), (900, 8))
    data = replace(chats(1000), lengths=lengths)
    assert values(data=data)["max_length"] == 200
    assert values(data=replace(data, lengths=((100, 980), (901, 20))))["max_length"] == 904


@pytest.mark.parametrize(("length", "context"), [(3000, 512), (10**5, 1024)])
def test_the_length_ends_at_the_models_context(length: int, context: int) -> None:
    found = values(data=chats(100, length), info=model(context=context))
    assert found["max_length"] == context


def test_longer_rows_never_shorten_the_length_and_never_widen_a_pass() -> None:
    found = [values(data=chats(3000, length)) for length in range(1, 4000, 13)]
    for less, more in itertools.pairwise(found):
        assert more["max_length"] >= less["max_length"]
        assert more["per_device_train_batch_size"] <= less["per_device_train_batch_size"]


def test_short_rows_are_gathered_until_a_processor_has_enough_to_do() -> None:
    short = values(data=chats(2000, 30))
    assert short["per_device_train_batch_size"] == 16
    assert values(data=chats(2000, 30), hardware=MACHINES[-1])["per_device_train_batch_size"] == 8


def test_much_text_takes_a_higher_rank_and_no_rank_is_wider_than_a_layer() -> None:
    assert values("style", chats(100))["r"] == 16
    assert values("style", chats(10**6))["r"] > 16
    assert values("style", chats(10**6), info=model(1e5, 4))["r"] == 4


# Classification


def test_only_classification_reads_the_rows_as_texts_with_labels() -> None:
    for goal in table.GOAL_NAMES:
        found = recommend(goal, labelled(400), model(), CPU)
        sorts = goal == "classification"
        assert ("data.format" in found.values) == sorts
        assert found.applied(Recipe()).task_type == ("SEQ_CLS" if sorts else "CAUSAL_LM")
    reason = found.values["data.format"]
    assert "3 classes" in say(reason.reason_key, **reason.reason_values)


def test_rows_read_otherwise_differ_from_the_recommendation_for_classification() -> None:
    found = recommend("classification", labelled(400), model(), CPU)
    other = found.applied(Recipe()).changed(["data.format=text"])
    assert differing(other, found) == ["data.format"]


@pytest.mark.parametrize("rows", [20, 400, 5_000, 50_000])
def test_more_rows_are_held_out_where_right_answers_are_counted(rows: int) -> None:
    counted = values("classification", labelled(rows))["eval_fraction"]
    assert counted >= 2 * values("style", chats(rows))["eval_fraction"]
    assert counted <= 0.2


def test_few_labelled_rows_are_all_learned_from() -> None:
    assert values("classification", labelled(19))["eval_fraction"] == 0


def test_labels_take_the_least_rank_however_many_there_are() -> None:
    assert values("classification", labelled(10))["r"] == 8
    assert values("classification", labelled(10**7))["r"] == 8
    assert values("classification", labelled(10**7), info=model(1e5, 4))["r"] == 4


def test_the_classes_of_a_report_are_counted() -> None:
    report = {
        "trained_rows": 80, "eval_rows": 20, "tokens": 8_000, "trained_tokens": 80,
        "lengths": [[100, 100]], "labels": [["bad", 40, 10], ["good", 40, 10]],
    }  # fmt: skip
    facts = DataFacts.from_report(report)
    assert (facts.labels, facts.rows, facts.trained_tokens) == (2, 100, 100)
    assert DataFacts.from_report(report | {"labels": []}).labels == 0


@pytest.mark.parametrize(
    ("parameters", "rate"), [(135e6, 5e-4), (1.7e9, 5e-4), (8e9, 2e-4), (70e9, 1e-4)]
)
def test_the_learning_rate_falls_with_the_models_size_only(parameters: float, rate: float) -> None:
    for goal, rows in itertools.product(table.GOAL_NAMES, (10, 10**5)):
        assert values(goal, chats(rows), info=model(parameters))["learning_rate"] == rate


@pytest.mark.parametrize(
    ("machine", "parameters", "precision"),
    [
        (CPU, 135e6, "auto"),
        (CPU, 7e9, "nf4"),
        (MACHINES[-1], 135e6, "bf16"),
        (MACHINES[-1], 70e9, "auto"),
        (MACHINES[6], 8e9, "auto"),
    ],
)
def test_the_precision_follows_from_what_fits(
    machine: Hardware, parameters: float, precision: str
) -> None:
    assert values(info=model(parameters), hardware=machine)["precision"] == precision


def test_what_is_recommended_is_recommended_again_once_it_is_set() -> None:
    """The report changes with the length and the share held out; the recommendation does not."""
    report = {
        "trained_rows": 950, "eval_rows": 50, "tokens": 95_000, "trained_tokens": 47_500,
        "lengths": [[100, 1000]],
    }  # fmt: skip
    again = report | {
        "trained_rows": 900, "eval_rows": 100, "tokens": 90_000, "trained_tokens": 45_000
    }  # fmt: skip
    first, second = DataFacts.from_report(report), DataFacts.from_report(again)
    assert first == second
    assert recommend("style", first, model(), CPU) == recommend("style", second, model(), CPU)


def test_the_settings_that_differ_are_named_in_order_and_put_back_one_by_one() -> None:
    found = recommend("style", chats(1200), model(), CPU)
    recipe = found.applied(Recipe())
    changed = replace(
        recipe,
        adapter=replace(recipe.adapter, r=3, target_modules=("q_proj",)),
        training=replace(recipe.training, max_steps=7),
    )
    assert differing(changed, found) == [
        "adapter.r", "adapter.target_modules", "training.max_steps"
    ]  # fmt: skip
    mended = found.applied(changed, "adapter.r")
    assert differing(mended, found) == ["adapter.target_modules", "training.max_steps"]
    assert mended.training.max_steps == 7


def test_naming_every_module_or_what_auto_means_is_no_difference() -> None:
    found = recommend("style", chats(1200), model(), CPU)
    recipe = replace(
        found.applied(Recipe()),
        precision="fp32",
        adapter=AdapterSpec(lora_dropout=0.05, target_modules=("down_proj", "q_proj")),
    )
    assert differing(recipe, found) == []


@pytest.mark.parametrize(
    ("rate", "keys"),
    [
        (5e-3, ["recommendations.rate_high"]),
        (0.5, ["recommendations.rate_high"]),
        (4.9e-3, []),
        (2e-4, []),
        (2e-5, ["recommendations.rate_low"]),
    ],
)
def test_a_learning_rate_ten_times_off_is_warned_of(rate: float, keys: list[str]) -> None:
    recipe = replace(Recipe(), training=TrainingSpec(learning_rate=rate))
    assert [warning.key for warning in warnings(recipe, model())] == keys


def test_the_warning_says_how_far_off_the_rate_is_and_what_to_use() -> None:
    recipe = replace(Recipe(), training=TrainingSpec(learning_rate=2e-3))
    (warning,) = warnings(recipe, model(8e9))
    assert "0.002" in warning.say("en")
    assert "10 times" in warning.say("en")
    assert "Use 0.0002" in warning.say("en")
    assert "10배" in warning.say("ko")


def test_a_large_batch_is_warned_of() -> None:
    training = TrainingSpec(per_device_train_batch_size=16, gradient_accumulation_steps=4)
    (warning,) = warnings(replace(Recipe(), training=training), model())
    assert warning.key == "recommendations.batch_large"
    halved = replace(training, gradient_accumulation_steps=2)
    assert not warnings(replace(Recipe(), training=halved), model())


def test_no_recommendation_earns_a_warning() -> None:
    for goal, rows, hardware in itertools.product(table.GOAL_NAMES, ROWS, MACHINES):
        recipe = recommend(goal, chats(rows), model(8e9), hardware).applied(Recipe())
        assert warnings(recipe, model(8e9)) == []


def test_every_reason_in_the_table_takes_plain_numbers() -> None:
    for key, sentences in strings().items():
        if key.startswith("recommendations."):
            for name, spec in [(n, s) for _, n, s, _ in string.Formatter().parse(sentences["ko"])]:
                assert name is None or spec in ("", ",", "g", ".2g", ".3g"), key
