"""Rows that are padded are learned beside others of their length, in an order that comes again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from trainings import Build, Run, recipe_over, runs_in

from lora_studio.recipe import Recipe
from lora_studio.settings import Settings
from lora_studio.training.grouping import grouped, lengths_of

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

SORTS = ("data.format=classification", "data.columns={text: question, label: label}")
STEP = 4


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Sixty texts from one word to thirty, each with an answer and one of two labels."""
    entries = [
        {"question": f"{n} " + "cafe " * (n * 7 % 30), "answer": f"no {n}", "label": f"l{n % 2}"}
        for n in range(60)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return file


@pytest.fixture
def build(settings: Settings, rows: Path, tiny_llama: Path, tmp_path: Path) -> Iterator[Build]:
    """Build a run over the uneven rows; settings are given as on the command line."""
    with runs_in(tmp_path / "runs", settings) as start:

        def make(*changes: str) -> Run:
            batches = (f"training.per_device_train_batch_size={STEP}", "training.max_steps=4")
            return start(recipe_over(rows, tiny_llama, *batches, *changes))

        yield make


def order(run: Run, epoch: float = 0) -> list[int]:
    run.trainer.state.epoch = epoch
    return list(run.trainer._get_train_sampler())


def padding(lengths: torch.Tensor, places: list[int]) -> float:
    """The share of what is computed that is padding."""
    batches = lengths[torch.tensor(places)].split(STEP)
    return 1 - int(lengths.sum()) / sum(int(batch.max()) * len(batch) for batch in batches)


@pytest.mark.parametrize("count", [3, 4, 40, 43, 1000])
def test_every_row_comes_once_and_steps_are_of_rows_about_equally_long(count: int) -> None:
    lengths = torch.randint(1, 200, (count,), generator=torch.Generator().manual_seed(1))
    places = grouped(lengths, together=STEP, seed=7)
    assert sorted(places) == list(range(count))
    if count < 40:
        return
    assert padding(lengths, places) < padding(lengths, list(range(count))) / 3
    steps = lengths[torch.tensor(places[: count - count % STEP])].view(-1, STEP).float().mean(1)
    # The length of a step says nothing about when it is learned.
    halves = steps[: len(steps) // 2].mean() / steps[len(steps) // 2 :].mean()
    assert 0.5 < halves < 2


def test_an_epochs_order_comes_again_and_the_next_is_another() -> None:
    lengths = torch.arange(50) % 9
    first = grouped(lengths, together=STEP, seed=7)
    assert grouped(lengths, together=STEP, seed=7) == first
    assert grouped(lengths, together=STEP, seed=8) != first


@pytest.mark.parametrize("changes", [SORTS, ("training.packing=false",)], ids=["sorts", "padded"])
def test_rows_that_are_padded_are_learned_by_length(build: Build, changes: tuple[str, ...]) -> None:
    run = build(*changes)
    lengths = lengths_of(run.trainer.train_dataset)
    assert lengths.tolist() == [len(row["input_ids"]) for row in run.trainer.train_dataset]
    assert order(run) == grouped(lengths, together=STEP, seed=42)
    assert order(run, 1.25) == grouped(lengths, together=STEP, seed=43)
    run.session.train()
    assert len(run.losses()) == 4
    (started,) = run.events("started")
    assert started["engine"]["grouped"] is True
    # What the trainer says it has learned is what stands in that order.
    learned = lengths[torch.tensor(order(run)[: 4 * STEP])].sum()
    assert run.events("step")[-1]["tokens_seen"] == learned


@pytest.mark.parametrize(
    "changes", [(), (*SORTS, "training.train_sampling_strategy=random")], ids=["packed", "random"]
)
def test_rows_without_padding_and_those_of_who_does_not_want_it_come_as_they_come(
    build: Build, changes: tuple[str, ...]
) -> None:
    run = build(*changes)
    assert order(run) != grouped(lengths_of(run.trainer.train_dataset), together=STEP, seed=42)
    (started,) = run.events("started")
    assert started["engine"]["grouped"] is False


def test_the_rows_of_a_step_do_not_depend_on_how_many_go_at_a_time(build: Build) -> None:
    whole = build(*SORTS)
    parts = build(
        *SORTS,
        "training.per_device_train_batch_size=1",
        f"training.gradient_accumulation_steps={STEP}",
    )
    assert order(parts) == order(whole)


def test_a_model_that_cannot_pack_is_learned_by_length(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(
        LlamaForCausalLM, "_can_set_attn_implementation", classmethod(lambda _: False)
    )
    (started,) = build().events("started")
    assert started["engine"]["packing"] is False
    assert started["engine"]["grouped"] is True


def test_a_strategy_that_does_not_exist_is_refused() -> None:
    from lora_studio.errors import RecipeError

    with pytest.raises(RecipeError, match="train_sampling_strategy"):
        Recipe.from_dict({"training": {"train_sampling_strategy": "by_colour"}})
