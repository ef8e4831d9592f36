"""The recipe: what it accepts, what it refuses and in which words, how a file gives it back."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from lora_studio.errors import RecipeError
from lora_studio.recipe import BOUNDS, Recipe

ISSUE = """\
version: 1
model: {source: starter}            # starter | Hub repo id | folder
precision: auto                     # auto | nf4 | int8 | bf16 | fp16 | fp32
data: {files: [rows.jsonl], format: auto, max_length: 512, eval_fraction: 0.05}
adapter: {r: 16, lora_alpha: 32, lora_dropout: 0.0, bias: none, target_modules: all-linear,
          use_rslora: false}
training: {num_train_epochs: 1, max_steps: null, learning_rate: 2.0e-4,
           per_device_train_batch_size: 4, gradient_accumulation_steps: 1, warmup_ratio: 0.03,
           lr_scheduler_type: cosine, eval_steps: null}
seed: 42
"""


def problems_of(text: str, *settings: str) -> list[tuple[str, str | None]]:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text).changed(settings)
    return [(problem.key, problem.values.get("name")) for problem in caught.value.problems]


def test_the_recipe_of_the_readme_is_the_default_one() -> None:
    assert Recipe.from_yaml(ISSUE) == Recipe().with_files(["rows.jsonl"])


def test_an_empty_mapping_is_the_default_recipe() -> None:
    assert Recipe.from_yaml("{}") == Recipe()


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"name": "1e5", "prompts": ["가", "b: c", "- d"], "data": {"files": ["a b.txt", "#x"]}},
        {"adapter": {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}},
        {"training": {"learning_rate": 1e-8, "max_steps": 7, "warmup_ratio": 1}},
        {"precision": "nf4", "seed": 2**32 - 1, "model": {"source": "owner/name"}},
    ],
)
def test_a_recipe_comes_back_from_its_file(tree: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(tree)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_every_problem_is_named_at_once_and_in_the_order_of_the_file() -> None:
    text = """
    version: 2
    modle: {source: x}
    data: {format: cvs, eval_fraction: 0.9}
    adapter: {r: 0, bias: some, rank: 4}
    training: {learning_rate: -1, max_steps: ten}
    """
    assert problems_of(text) == [
        ("recipe.unknown", "modle"),
        ("recipe.wrong_type", "data.format"),
        ("recipe.unknown", "adapter.rank"),
        ("recipe.wrong_type", "adapter.bias"),
        ("recipe.wrong_type", "training.max_steps"),
        ("recipe.version", None),
        ("recipe.out_of_range", "data.eval_fraction"),
        ("recipe.out_of_range", "adapter.r"),
        ("recipe.out_of_range", "training.learning_rate"),
    ]


def test_a_problem_says_the_value_and_what_is_possible() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml("adapter: {r: 0, bias: some}")
    assert str(caught.value).splitlines() == [
        "The recipe cannot be used yet:",
        "adapter.bias is 'some'. It takes: none | all | lora_only.",
        "adapter.r is 0. Choose a value from 1 to 256.",
    ]
    assert "1부터 256" in caught.value.say("ko")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1,\nb: }", 2),
        ("", 1),
        ("just text", 1),
        ("- a list", 1),
        ("name: 2024-13-45", 1),
        ("[" * 1000, 1),
        ("a: !!python/object:os.system {}", 1),
    ],
)
def test_what_is_not_a_recipe_file_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text)
    (problem,) = caught.value.problems
    assert (problem.key, problem.values) == ("recipe.not_yaml", {"line": line})


def test_a_small_file_that_stands_for_a_huge_tree_costs_nothing() -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    text = "\n".join(["a0: &a0 [x]", *levels, "name: *a29"])
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text)
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("word", ["2e-4", "2.0e-4", "0.0002", "'2e-4'"])
def test_a_learning_rate_may_be_written_as_people_write_it(word: str) -> None:
    recipe = Recipe.from_yaml(f"training: {{learning_rate: {word}}}")
    assert recipe.training.learning_rate == pytest.approx(2e-4)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
def test_what_is_no_finite_number_is_out_of_range(value: str) -> None:
    found = problems_of(f"training: {{learning_rate: {value}}}")
    assert found == [("recipe.out_of_range", "training.learning_rate")]


@pytest.mark.parametrize("value", ["true", "1.5", "[1]", "{}", "null", "1" + "0" * 400 + ".5"])
def test_a_rank_is_a_whole_number(value: str) -> None:
    assert problems_of(f"adapter: {{r: {value}}}") == [("recipe.wrong_type", "adapter.r")]


def test_a_number_too_large_for_a_float_is_refused_like_any_other() -> None:
    huge = "1" + "0" * 400
    assert problems_of(f"adapter: {{r: {huge}}}") == [("recipe.out_of_range", "adapter.r")]
    found = problems_of(f"training: {{learning_rate: {huge}}}")
    assert found == [("recipe.wrong_type", "training.learning_rate")]


@pytest.mark.parametrize("path", BOUNDS)
def test_both_ends_of_a_range_are_in_it_and_beyond_is_not(path: str) -> None:
    def at(value: float) -> Recipe:
        tree: dict[str, Any] = {}
        *parents, last = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
        return Recipe.from_dict(tree)

    low, high = BOUNDS[path]
    assert at(low).value(path) == low
    assert at(high).value(path) == high
    for beyond in (low - 1, high + 1):
        with pytest.raises(RecipeError, match=path):
            at(beyond)


def test_settings_change_a_recipe_by_their_dotted_names() -> None:
    settings = [
        "adapter.r=8",
        "training.learning_rate=5e-4",
        "adapter.target_modules=[q_proj, v_proj]",
        "training.max_steps=null",
        "name=two words",
        "precision=fp32",
    ]
    recipe = Recipe.from_yaml("training: {max_steps: 3}").changed(settings)
    assert recipe.adapter.r == 8
    assert recipe.training.learning_rate == pytest.approx(5e-4)
    assert recipe.adapter.target_modules == ("q_proj", "v_proj")
    assert recipe.training.max_steps is None
    assert (recipe.name, recipe.precision) == ("two words", "fp32")


def test_a_text_in_quotes_stays_a_text_where_a_text_is_wanted() -> None:
    assert Recipe().changed(['name="7"']).name == "7"


def test_all_settings_that_are_none_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().changed(["adapter.r", "name=[1", "name.first=x", "adapter.r=8"])
    assert [problem.values["setting"] for problem in caught.value.problems] == [
        "adapter.r", "name=[1", "name.first=x",
    ]  # fmt: skip


def test_an_unknown_setting_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"adapter\.rank is not a setting.*lora_alpha"):
        Recipe().changed(["adapter.rank=8"])


@pytest.mark.parametrize("modules", [[], ""])
def test_empty_target_modules_are_refused(modules: Any) -> None:
    with pytest.raises(RecipeError, match="No target modules"):
        Recipe.from_dict({"adapter": {"target_modules": modules}})


def test_every_field_says_in_its_docstring_what_it_is() -> None:
    source = Path(__import__("lora_studio.recipe").recipe.__file__).read_text(encoding="utf-8")
    pending = [Recipe]
    while pending:
        kind = pending.pop()
        hints = get_type_hints(kind)
        for entry in fields(kind):
            if is_dataclass(hints[entry.name]):
                pending.append(hints[entry.name])
                continue
            after = source.split(f"\n    {entry.name}: ", 1)[1].splitlines()[1]
            assert after.strip().startswith('"""'), entry.name


def test_the_data_section_names_what_does_not_fit() -> None:
    text = """
data:
  columns: {question: 질문, antwort: Antwort}
  encoding: latin-99
  checks: {duplicates: fix}
"""
    assert [key for key, _ in problems_of(text)] == [
        "recipe.wrong_type",
        "recipe.unknown_part",
        "recipe.unknown_encoding",
    ]
    assert problems_of("data: {columns: [a]}") == [("recipe.wrong_type", "data.columns")]


def test_a_mapping_of_columns_survives_the_file() -> None:
    recipe = Recipe.from_yaml("data: {columns: {question: 질문, answer: 답}}")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.data.columns == {"question": "질문", "answer": "답"}


# The adapter section


@pytest.mark.parametrize("targets", [".*q_proj", r".*\.(0|1)\..*(q|v)_proj", "all-linear"])
def test_target_modules_may_be_an_expression(targets: str) -> None:
    recipe = Recipe.from_dict({"adapter": {"target_modules": targets}})
    assert recipe.adapter.target_modules == targets
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("adapter", "key"),
    [
        ({"target_modules": "(q_proj"}, "recipe.not_a_pattern"),
        ({"target_modules": "(.*)*x"}, "recipe.pattern_too_open"),
        ({"target_modules": ".*.*.*.*x"}, "recipe.pattern_too_open"),
        ({"target_modules": ""}, "recipe.no_target_modules"),
        ({"target_modules": []}, "recipe.no_target_modules"),
        ({"rank_pattern": {"q[": 4}}, "recipe.not_a_pattern"),
        ({"rank_pattern": {"q_proj": 0}}, "recipe.out_of_range"),
        ({"rank_pattern": {"q_proj": 257}}, "recipe.out_of_range"),
        ({"alpha_pattern": {"q_proj": 1025}}, "recipe.out_of_range"),
        ({"rank_pattern": {"q_proj": "many"}}, "recipe.wrong_type"),
        ({"layers_to_transform": [0, -1]}, "recipe.negative_layer"),
        ({"layers_to_transform": [0, 1.5]}, "recipe.wrong_type"),
        ({"layers_to_transform": "0-3"}, "recipe.wrong_type"),
        ({"lora_alpha": 0}, "recipe.out_of_range"),
    ],
)
def test_what_no_model_could_have_is_refused(adapter: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"adapter": adapter})
    assert [problem.key for problem in caught.value.problems] == [key]
    assert caught.value.say("ko")


def test_a_slow_expression_is_refused_before_it_is_searched_with() -> None:
    with pytest.raises(RecipeError, match="repeats too much"):
        Recipe.from_dict({"adapter": {"rank_pattern": {"(a+)+b": 4}}})
    Recipe.from_dict({"adapter": {"rank_pattern": {r"model\.layers\.\d+\.*": 4}}})
