"""Every way of adapting that is offered for sorting texts: trained, saved, loaded, compared."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from trainings import runs_in

from lora_studio import hardware
from lora_studio.chat.engine import Engine
from lora_studio.errors import RecipeError
from lora_studio.methods import BIASES, METHODS, STARTS, offers, problems
from lora_studio.models.loading import load_classifier, load_tokenizer
from lora_studio.recipe import Recipe
from lora_studio.settings import Settings
from lora_studio.training import session as session_module
from tests.test_methods import (
    DEVICE,
    MODELS,
    PRECISIONS,
    TOLERANCE,
    Build,
    Run,
    assert_same,
    digest,
    many_small_runs,
    named,
    recipe_of,
    tensors,
    without_questions,
)

__all__ = ["many_small_runs"]

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

TOGETHER = [
    "",
    "rslora dora loraplus gaussian bias_all layers ranks alphas",
    "rslora dora loraplus eva bias_lora_only embedding layers ranks alphas",
    "rslora loraplus loftq bias_all embedding ranks alphas",
    "dora gaussian bias_lora_only embedding ranks",
    "loftq bias_lora_only layers",
    "eva bias_all",
]
NAMES = ["in town", "outside"]


def sorting(parts: Sequence[str], model: str = "tiny_llama") -> Recipe:
    """Return a recipe made of these parts that sorts texts."""
    return recipe_of(parts, model).changed(["data.format=classification"])


@cache
def is_offered(parts: tuple[str, ...], precision: str) -> bool:
    return not problems(sorting(parts), precision, DEVICE)


def cases(precision: str) -> Iterator[tuple[str, ...]]:
    """Yield what is offered of each group of parts."""
    for group in TOGETHER:
        parts: tuple[str, ...] = ()
        for part in group.split():
            parts = (*parts, part) if is_offered((*parts, part), precision) else parts
        yield parts


CASES = [
    (model, precision, parts)
    for model, precision in itertools.product(MODELS, PRECISIONS)
    for parts in dict.fromkeys(cases(precision))
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home and rows that all cases share, so that the rows are encoded once a model."""
    folder = tmp_path_factory.mktemp("shared")
    rows = [
        {"text": f"{name} {'is' * (at % 3)} near the {area}", "label": NAMES[at % 2]}
        for name in ["Cotto", "The Mill", "Zizzi", "Aromi", "The Vaults"]
        for at, area in enumerate(["riverside", "city centre", "old town", "harbour"])
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "labelled.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def build(
    shared: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Build]:
    machine = replace(hardware.probe(), has_bf16=True)
    monkeypatch.setattr(session_module, "probe", lambda: machine)
    settings = Settings(home=shared / "home", offline=True)
    with runs_in(tmp_path / "runs", settings) as start:

        def make(model: str, precision: str, parts: Sequence[str]) -> Run:
            source = request.getfixturevalue(model)
            about = [f"precision={precision}", f"model.source={source}", "data.eval_fraction=0"]
            recipe = sorting(parts, model).changed(about)
            return without_questions(start(recipe.with_files([str(shared / "labelled.jsonl")])))

        yield make


def base_of(run: Run) -> Any:
    return load_classifier(run.source, run.precision, DEVICE, labels=NAMES, seed=42)


def heard(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return a model's scores of the classes in float32, shape (C,)."""
    with torch.inference_mode():
        return model.eval()(ids.to(model.device)).logits[0].float().cpu()


@pytest.mark.parametrize(("model", "precision", "parts"), CASES, ids=named)
def test_what_is_offered_trains_saves_loads_and_compares(
    build: Build, model: str, precision: str, parts: tuple[str, ...]
) -> None:
    run = build(model, precision, parts)
    files, base = digest(run.source), base_of(run)
    untouched, plain = tensors(base), heard(base, run.ids)
    before = tensors(run.model, frozen=True)
    assert_same(before, untouched)
    run.session.train()
    assert run.session.steps == 2
    assert_same(before, tensors(run.model, frozen=True))
    adapter = run.session.save(run.folder)
    assert digest(run.source) == files

    # Loaded by plain PEFT on a fresh base; the last checkpoint holds the same.
    tolerance = TOLERANCE[precision]
    with run.session._trainer.accelerator.autocast():
        live = heard(run.model, run.ids)
    fresh = base_of(run)
    loaded_model = PeftModel.from_pretrained(fresh, adapter)
    with run.session._trainer.accelerator.autocast():
        loaded = heard(loaded_model, run.ids)
    torch.testing.assert_close(loaded, live, atol=tolerance, rtol=0)
    assert (live - plain).abs().max() > 1e-3
    saved, kept = (
        load_file(place / "adapter_model.safetensors")
        for place in (adapter, run.folder.checkpoints / "checkpoint-2")
    )
    assert_same(saved, kept)
    assert "base_model.model.score.weight" in saved

    # Compared: the base with its untrained head, and the adapter with its own, in any order.
    engine = Engine()
    engine.load(str(run.source), precision, DEVICE, {"mine": str(adapter)}, labels=NAMES, seed=42)
    text = load_tokenizer(run.source).decode(run.ids[0])
    for sides in ([None, "mine"], ["mine", None]):
        found = dict(zip(sides, engine.classify(text, sides), strict=True))
        for side, scores, within in ((None, plain, 1e-6), ("mine", live, tolerance)):
            given = torch.tensor(found[side])
            torch.testing.assert_close(given, scores.softmax(-1), atol=within, rtol=0)
    assert_same(untouched, tensors(engine.model))


def test_methods_are_offered_together_only_if_a_case_has_both() -> None:
    names = [*METHODS, "ranks", "alphas", "embedding", "layers"]
    untried = [
        (model, precision, pair)
        for model, precision in itertools.product(MODELS, PRECISIONS)
        for pair in itertools.combinations(names, 2)
        if not any(set(pair) <= set(group) for group in (STARTS, BIASES))
        and is_offered(pair, precision)
        and not any(
            set(pair) <= set(parts)
            for tried, at, parts in CASES
            if (tried, at) == (model, precision)
        )
    ]
    assert untried == []


def test_pissa_is_not_offered_beside_a_head_that_is_trained() -> None:
    reason = offers(sorting(()), "fp32", "cpu")["pissa"].reason
    assert reason is not None
    assert reason.key == "methods.pissa_saves_no_head"
    assert offers(recipe_of(()), "fp32", "cpu")["pissa"].is_offered
    assert "head" in str(reason)


def test_a_recipe_that_cannot_be_is_refused_before_the_model_is_loaded(build: Build) -> None:
    with pytest.raises(RecipeError) as caught:
        build("tiny_llama", "fp32", ("pissa",))
    assert [problem.key for problem in caught.value.problems] == ["methods.pissa_saves_no_head"]
