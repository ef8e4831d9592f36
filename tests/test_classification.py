"""A text classification from labelled rows to the adapter, held against plain arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from trainings import Build, Run, gradients, recipe_over, runs_in, wake, without_dropout
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lora_studio.errors import DatasetError, RecipeError
from lora_studio.models.loading import load_classifier
from lora_studio.recipe import Recipe
from lora_studio.runs.history import History
from lora_studio.settings import Settings

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
pytestmark = [
    pytest.mark.usefixtures("one_thread", "rehearsing"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

NAMES = ["food", "sport", "weather"]
PLACES = [*"ABCDEFGH", "Zizzi", "The Mill", "Loch Fyne"]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Thirty texts of uneven lengths in three classes, one class after the other."""
    words = {"weather": "rain and wind", "food": "an English coffee shop", "sport": "a quick fox"}
    rows = [
        {"text": f"{' '.join(PLACES[at : at + 1 + at % 4])}: {words[label]}", "label": label}
        for label in ("weather", "food", "sport")
        for at in range(10)
    ]
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def build(settings: Settings, labelled: Path, tiny_llama: Path, tmp_path: Path) -> Iterator[Build]:
    """Build a run over the thirty texts; settings are given as on the command line."""
    with runs_in(tmp_path / "runs", settings) as start:

        def make(*changes: str, model: Path = tiny_llama, **about: Any) -> Run:
            recipe = recipe_over(labelled, model, "data.format=classification", *changes)
            return start(replace(recipe, **about))

        yield make


# The loss


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_the_loss_and_its_gradients_are_those_of_the_library(
    build: Build, model: str, request: pytest.FixtureRequest
) -> None:
    run = build(model=request.getfixturevalue(model))
    wake(run.model)
    without_dropout(run.model)
    batch = run.batch(slice(0, 5))
    assert len({int(row.sum()) for row in batch["attention_mask"]}) > 1, "rows are to be uneven"
    ours = run.trainer.compute_loss(run.model, dict(batch))
    ours_gradients = gradients(run.model, ours)
    theirs = run.model(**batch).loss
    theirs_gradients = gradients(run.model, theirs)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert ours_gradients.keys() == theirs_gradients.keys()
    assert any("score" in name for name in ours_gradients)
    for name, gradient in theirs_gradients.items():
        torch.testing.assert_close(ours_gradients[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_a_padded_row_has_the_scores_it_has_alone(
    build: Build, model: str, request: pytest.FixtureRequest
) -> None:
    run = build(model=request.getfixturevalue(model))
    wake(run.model)
    run.model.eval()
    with torch.no_grad():
        batch = run.batch(slice(0, 8))
        assert (batch["attention_mask"] == 0).any()
        together = run.model(**batch).logits
        alone = [run.model(**run.batch(slice(at, at + 1))).logits for at in range(8)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_a_batch_of_four_is_four_batches_of_one(build: Build) -> None:
    curves = []
    for batch, parts in ((4, 1), (1, 4), (2, 2)):
        run = build(
            f"training.per_device_train_batch_size={batch}",
            f"training.gradient_accumulation_steps={parts}",
            "training.max_steps=null",
            "data.eval_fraction=0",
        )
        run.reporter._questions = {}
        run.session.train()
        curves.append(run.losses())
    assert len(curves[0]) == 8, "the last step is to have fewer rows"
    assert curves[1] == pytest.approx(curves[0], abs=2e-4)
    assert curves[2] == pytest.approx(curves[0], abs=2e-4)


def test_one_recipe_and_seed_give_one_curve_whether_activations_are_kept_or_not(
    build: Build,
) -> None:
    curves = []
    for kept, seed in ((False, 1), (False, 1), (True, 1), (False, 2)):
        run = build(
            f"seed={seed}", "adapter.lora_dropout=0.1", "data.eval_fraction=0",
            f"training.activation_checkpointing={str(kept).lower()}",
        )  # fmt: skip
        run.reporter._questions = {}
        run.session.train()
        curves.append(run.losses())
    assert curves[0] == curves[1]
    assert curves[2] == pytest.approx(curves[0], abs=1e-5)
    assert curves[0] != curves[3]


# What is measured


def test_an_evaluation_counts_rows_whatever_the_batches_are(build: Build) -> None:
    run = build("training.per_device_train_batch_size=4")
    wake(run.model)
    measured = run.trainer.evaluate()
    run.model.eval()
    with torch.no_grad():
        batch = run.batch(slice(0, 6), "eval_dataset")
        logits = run.model(**batch).logits
    true, predicted = batch["labels"], logits.argmax(-1)
    assert len(run.trainer.eval_dataset) == 6, "the last batch is to be smaller"
    assert measured["eval_loss"] == pytest.approx(
        functional.cross_entropy(logits, true).item(), abs=1e-5
    )
    right = (true == predicted).float().mean().item()
    (event,) = run.events("eval")
    assert event["loss"] == pytest.approx(measured["eval_loss"])
    assert event["accuracy"] == pytest.approx(right)
    assert "perplexity" not in event
    counts = [[0] * 3 for _ in range(3)]
    for one, other in zip(true.tolist(), predicted.tolist(), strict=True):
        counts[one][other] += 1
    assert event["confusion"] == counts
    f1 = [
        2 * counts[at][at] / (sum(counts[at]) + sum(row[at] for row in counts))
        for at in range(3)
        if sum(counts[at]) + sum(row[at] for row in counts)
    ]
    assert event["f1"] == pytest.approx(sum(f1) / len(f1))


def test_held_out_rows_are_of_every_class(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_studio.training import plan

    monkeypatch.setitem(plan.EVAL_ROWS, "cpu", 1)
    monkeypatch.setitem(plan.EVAL_ROWS, "cuda", 1)
    run = build("data.eval_fraction=0.4")
    assert len(run.trainer.eval_dataset) == plan.SORTED_TIMES
    assert set(run.trainer.eval_dataset["labels"]) == {0, 1, 2}


def test_a_run_tells_all_it_does_and_learns_the_classes(build: Build) -> None:
    asked = ("a quick fox", "an English coffee shop " * 400)
    run = build("training.max_steps=20", "training.eval_steps=10", prompts=asked)
    run.session.train()
    (started,) = run.events("started")
    assert (started["task_type"], started["labels"]) == ("SEQ_CLS", NAMES)
    trained = sum(one.numel() for one in run.model.parameters() if one.requires_grad)
    assert started["trainable_parameters"] == trained
    assert len(run.events("rehearsed")) == 1
    assert [event["step"] for event in run.events("eval")] == [0, 10, 20]
    first, *_, last = run.events("eval")
    assert last["accuracy"] > first["accuracy"]
    assert last["accuracy"] == 1
    assert last["confusion"] == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]
    samples = run.events("sample")
    assert [event["prompt"] for event in samples] == [*asked] * 3
    said = [event["answer"].partition(" (") for event in samples[-2:]]
    assert [label for label, *_ in said] == ["sport", "food"]
    assert all(rest.endswith(" %)") for *_, rest in said)
    assert run.events("step")[-1]["tokens_seen"] > 0
    summary = History(run.folder).update().summary()
    assert summary["eval_accuracies"] == [event["accuracy"] for event in run.events("eval")]
    assert summary["eval_f1s"][-1] == 1


def test_prompts_of_the_data_are_held_out_texts(build: Build) -> None:
    run = build("training.max_steps=1")
    run.session.train()
    samples = run.events("sample")
    assert samples
    assert all(event["answer"].split(" (")[0] in NAMES for event in samples)


# What is saved


@pytest.mark.parametrize(("model", "precision"), [("tiny_llama", "nf4"), ("tiny_gpt2", "fp32")])
def test_the_model_card_says_how_to_load_it_and_that_works(
    build: Build, model: str, precision: str, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(model)
    run = build(f"precision={precision}", "training.max_steps=20", model=source)
    run.session.train()
    adapter = run.session.save(run.folder)
    config = AutoConfig.from_pretrained(adapter)
    assert config.id2label == dict(enumerate(NAMES))
    assert not hasattr(config, "quantization_config")
    assert config.architectures[0].endswith("ForSequenceClassification")
    assert (run.folder.checkpoints / "checkpoint-20" / "config.json").is_file()
    card = (adapter / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "to sort texts into 3 classes" in card
    assert "food, sport, weather" in card
    assert "accuracy, first and last | 0." in card
    code = card.partition("```python\n")[2].partition("```")[0]
    code = code.replace("path/to/this/folder", str(adapter)).replace("A text.", "a quick fox")
    found: dict[str, Any] = {}
    exec(code.replace("print(", "answer = ("), found)
    assert found["answer"] == "sport"
    batch = run.batch(slice(0, 1))
    run.model.eval()
    with torch.no_grad():
        live, loaded = (one(**batch).logits for one in (run.model, found["model"]))
    tolerance = 0.3 if precision == "nf4" else 1e-5  # the card loads it unquantised
    torch.testing.assert_close(loaded, live, atol=tolerance, rtol=0)


def test_the_bases_head_can_be_drawn_again_from_the_recipe(build: Build, tiny_llama: Path) -> None:
    run = build("seed=5", "training.max_steps=2")
    run.session.train()
    adapter = run.session.save(run.folder)
    recipe = Recipe.from_yaml((adapter / "recipe.yaml").read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(adapter)
    labels = [config.id2label[at] for at in range(config.num_labels)]
    base = load_classifier(tiny_llama, "fp32", "cpu", labels=labels, seed=recipe.seed)
    wrapped = run.model.get_base_model().score
    assert torch.equal(base.score.weight, wrapped.original_module.weight)
    trained = wrapped.modules_to_save["default"].weight
    assert not torch.equal(base.score.weight, trained)
    again = PeftModel.from_pretrained(base, adapter)
    assert torch.equal(again.get_base_model().score.modules_to_save["default"].weight, trained)


def test_an_adapter_at_its_start_changes_nothing(build: Build, tiny_llama: Path) -> None:
    run = build()
    run.model.eval()
    batch = run.batch(slice(0, 3))
    base = load_classifier(tiny_llama, "fp32", "cpu", labels=NAMES, seed=42)
    with torch.no_grad():
        torch.testing.assert_close(run.model(**batch).logits, base(**batch).logits)


# What cannot work


def test_a_model_without_a_head_over_classes_is_refused(
    build: Build, tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    folder = tmp_path / "olmoe"
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    config = OlmoeConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_experts=2, num_experts_per_tok=1,
        pad_token_id=0, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    OlmoeForCausalLM(config).save_pretrained(folder)
    with pytest.raises(RecipeError, match="OlmoeForCausalLM") as caught:
        build(model=folder)
    assert [problem.key for problem in caught.value.problems] == ["model.cannot_classify"]


def test_the_head_over_words_cannot_be_trained_where_there_is_none(build: Build) -> None:
    with pytest.raises(RecipeError, match="lm_head"):
        build("adapter.modules_to_save=[lm_head]")


def test_a_class_alone_is_no_classification(build: Build, labelled: Path) -> None:
    row = json.dumps({"text": "rain and wind", "label": "weather"})
    labelled.write_text("\n".join([row] * 12), encoding="utf-8")
    with pytest.raises(DatasetError, match="weather"):
        build()


def test_the_library_has_the_class_of_model_that_is_trained(build: Build) -> None:
    base = build().model.get_base_model()
    assert type(base) in AutoModelForSequenceClassification._model_mapping.values()
