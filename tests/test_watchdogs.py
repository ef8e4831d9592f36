"""What goes wrong in a training, made to happen, and the plain words that are said of it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainings import Build, Run, recipe_over, runs_in

from lora_studio.cases.machine import Machine
from lora_studio.cases.retrying import Retrying
from lora_studio.cli.main import main
from lora_studio.cli.showing import DONE
from lora_studio.errors import RecipeError, RunError, StudioError, from_dict
from lora_studio.recipe import Recipe
from lora_studio.runs import process
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import create
from lora_studio.runs.history import SILENT_S, SILENT_TIMES, History
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.training import watchdogs
from lora_studio.training.failures import asked_for
from lora_studio.training.remedies import MOST_REMEDIES, Remedies
from lora_studio.training.session import Session
from lora_studio.training.shrinking import smaller
from lora_studio.training.watchdogs import BROKEN_STEPS, Pace, is_rising
from lora_studio.ui import concerns
from lora_studio.ui.language import Voice
from lora_studio.ui.live import state
from lora_studio.wording import table

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
pytestmark = [
    pytest.mark.usefixtures("one_thread", "rehearsing"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

TOO_MUCH_BYTES = 2**46
"""More than any machine here lends: the allocator refuses it, as it would a batch."""


def warnings(run: Run) -> list[str]:
    return [event["cause"]["key"] for event in run.events("warning")]


def weights(run: Run) -> dict[str, torch.Tensor]:
    trained = (pair for pair in run.model.named_parameters() if pair[1].requires_grad)
    return {name: weight.detach().clone() for name, weight in trained}


def is_training(run: Run) -> bool:
    """Return whether the rehearsal is over."""
    return bool(run.events("rehearsed"))


def before(run: Run, meddle: Callable[[dict[str, Any]], None]) -> None:
    """Have something happen before each forward and backward pass of a step."""
    pass_on = run.trainer.training_step

    def meddled(model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        meddle(inputs)
        return pass_on(model, inputs, *rest, **more)

    run.trainer.training_step = meddled


def poison(run: Run, steps: set[int]) -> None:
    """Let the model's scores be no numbers in some steps, counted from 1."""

    def spoil(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        is_hit = run.model.training and run.session.steps + 1 in steps and is_training(run)
        return output * math.nan if is_hit else output

    run.model.get_output_embeddings().register_forward_hook(spoil)


@pytest.fixture
def build(settings: Settings, pairs: Path, tiny_llama: Path, tmp_path: Path) -> Iterator[Build]:
    """Build a run over the twenty pairs; settings are given as on the command line."""
    with runs_in(tmp_path / "runs", settings) as start:

        def make(*changes: str) -> Run:
            run = start(recipe_over(pairs, tiny_llama, "training.max_steps=5", *changes))
            run.reporter._questions = {}  # answering takes longer than learning here
            return run

        yield make


# Numbers that are none


def test_a_step_whose_loss_is_no_number_is_not_applied_and_the_run_goes_on(build: Build) -> None:
    run = build("data.eval_fraction=0")
    poison(run, {3})
    seen: list[dict[str, torch.Tensor]] = []
    before(run, lambda _: seen.append(weights(run)))
    run.session.train()
    _, _, second, third, fourth, *_ = seen  # the first was the rehearsal's
    assert all(torch.equal(third[name], fourth[name]) for name in third)
    assert any(not torch.equal(second[name], third[name]) for name in third)
    assert run.losses()[2] is None
    assert all(math.isfinite(loss) for loss in [*run.losses()[:2], *run.losses()[3:]])
    assert warnings(run) == ["training.step_skipped"]
    assert run.events("warning")[0]["step"] == 3


def test_numbers_that_do_not_come_back_end_the_run_with_what_was_sound(build: Build) -> None:
    run = build("training.max_steps=9", "training.eval_steps=2")
    poison(run, {4, 5, 6, 7})
    with pytest.raises(RunError) as caught:
        run.session.train()
    error = caught.value
    assert error.key == "training.diverged_kept"
    assert (error.values["step"], error.values["kept"]) == (3 + BROKEN_STEPS, 4)
    # Step 4 was not applied, and an evaluation has found the weights of step 3 sound.
    assert "by step 4 is kept" in str(error)
    assert run.folder.newest_adapter() == run.folder.checkpoint(4)
    assert [event["step"] for event in run.events("step")] == [1, 2, 3, 4, 5, 6]
    (lower,) = error.values["remedies"]
    changed = run.folder.read_recipe().changed(lower["changes"])
    assert changed.training.learning_rate == pytest.approx(0.001)


def test_a_checkpoint_of_weights_that_give_no_numbers_is_not_kept(build: Build) -> None:
    run = build(
        "training.max_steps=9", "training.save_steps=1", "data.eval_fraction=0",
        "training.save_total_limit=5",
    )  # fmt: skip

    def break_weights(_: Any) -> None:
        if run.session.steps == 3:
            run.model.get_input_embeddings().weight.data.fill_(math.nan)

    before(run, break_weights)
    with pytest.raises(RunError) as caught:
        run.session.train()
    assert caught.value.values["kept"] == 2
    assert run.folder.checkpoint_steps() == [1, 2]
    assert run.folder.newest_adapter() == run.folder.checkpoint(2)


def test_a_run_without_one_sound_step_says_that_nothing_is_kept(build: Build) -> None:
    run = build("data.eval_fraction=0", "training.learning_rate=0.5")
    poison(run, set(range(1, 9)))
    with pytest.raises(RunError, match="no checkpoint from before") as caught:
        run.session.train()
    assert "0.5" in str(caught.value)
    assert run.folder.newest_adapter() is None


def test_a_gradient_that_is_no_number_is_seen_where_the_loss_is_one(build: Build) -> None:
    run = build("data.eval_fraction=0")
    weight = next(one for one in run.model.parameters() if one.requires_grad)
    weight.register_hook(
        lambda grad: grad * math.inf if is_training(run) and run.session.steps == 1 else grad
    )
    run.session.train()
    assert warnings(run) == ["training.step_skipped"]
    assert all(math.isfinite(loss) for loss in run.losses())
    assert all(weight.isfinite().all() for weight in weights(run).values())


def test_sixteen_bits_are_asked_to_become_thirty_two_where_that_fits(build: Build) -> None:
    remedies = build().session._remedies
    assert remedies is not None
    kinds = [found["kind"] for found in replace(remedies, precision="bf16").steadier()]
    assert kinds == ["rate", "format"]
    cramped = replace(remedies.hardware, memory_free_bytes=1)
    kept = replace(remedies, precision="bf16", hardware=cramped).steadier()
    assert [found["kind"] for found in kept] == ["rate"]


# Nothing is learned, or the wrong thing


def test_a_loss_of_exactly_zero_is_told_of_once(build: Build) -> None:
    run = build("data.eval_fraction=0")

    def leave_nothing(inputs: dict[str, Any]) -> None:
        for name in ("labels", "sources"):
            inputs[name] = inputs[name][:0]

    before(run, leave_nothing)
    run.session.train()
    assert set(run.losses()) == {0.0}
    assert warnings(run) == ["training.zero_loss"]


def test_a_gradient_of_zero_says_that_nothing_is_trained(build: Build) -> None:
    run = build("data.eval_fraction=0")
    for module in run.model.modules():
        if hasattr(module, "lora_A"):
            module.scaling = dict.fromkeys(module.scaling, 0.0)
    run.session.train()
    assert min(run.losses()) > 0
    assert {event["grad_norm"] for event in run.events("step")} == {0.0}
    (warning,) = run.events("warning")
    said = str(from_dict(warning["cause"]))
    assert said.startswith("Nothing is being trained")
    assert f"{sum(weight.numel() for weight in weights(run).values()):,}" in said


def test_a_held_out_loss_that_keeps_rising_is_called_overfitting(build: Build) -> None:
    run = build("training.max_steps=8", "training.eval_steps=1", "training.learning_rate=0.003")
    before(run, lambda inputs: inputs["labels"].fill_(7))
    run.session.train()
    losses = [event["loss"] for event in run.events("eval")]
    first = next(at for at in range(len(losses)) if is_rising(losses[: at + 1]))
    warning = run.events("warning")[0]
    assert warning["cause"]["key"] == "training.eval_rising"
    assert warning["step"] == first
    assert warning["cause"]["values"]["low"] == min(losses[: first + 1])
    assert "overfitting" in str(from_dict(warning["cause"]))


def test_a_training_that_goes_well_is_not_warned_of(build: Build) -> None:
    run = build("training.learning_rate=0.002")
    run.session.train()
    assert run.losses()[-1] < run.losses()[0]
    assert warnings(run) == []


@pytest.mark.parametrize(
    ("losses", "rises"),
    [
        ([3, 4, 5, 6], True),
        ([9, 3, 4, 5, 6], True),
        ([3, 4, 5], False),
        ([3, 4, 4, 5, 6], False),
        ([2, 3, 4, 5, 6], False),
        ([], False),
    ],
)
def test_three_rises_in_a_row_are_told_of_once(losses: list[float], *, rises: bool) -> None:
    assert is_rising(losses) is rises


# The machine


def test_a_step_that_takes_far_longer_than_usual_is_told_of(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build("training.max_steps=9", "data.eval_fraction=0")
    now = 0.0
    # A clock of its own: a machine that stands still makes any step a slow one.
    monkeypatch.setattr(watchdogs, "time", SimpleNamespace(monotonic=lambda: now))

    def take_time(_: Any) -> None:
        nonlocal now
        now += 1.5 if run.session.steps == 7 else 0.1

    before(run, take_time)
    run.session.train()
    (warning,) = run.events("warning")
    assert warning["cause"]["key"] == "training.slow_step"
    assert warning["step"] == 8
    assert warning["cause"]["values"]["times"] == pytest.approx(15)
    assert warning["cause"]["values"]["seconds"] == pytest.approx(1.5)


def test_a_step_over_more_text_may_take_longer() -> None:
    pace = Pace()
    assert [pace.judge(0.2, 100) for _ in range(6)] == [None] * 6
    assert pace.judge(4.0, 2000) is None
    assert pace.judge(4.0, 100) == pytest.approx(0.2)
    assert pace.judge(0.9, 1) is None, "too short for anybody to notice"


def test_a_disk_that_fills_up_is_told_of_once_until_there_is_room_again(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build("data.eval_fraction=0")
    monkeypatch.setattr(watchdogs, "LOOK_AT_DISK_S", 0.0)
    monkeypatch.setattr(watchdogs, "LEAST_FREE_BYTES", 10**18)

    def make_room(_: Any) -> None:
        monkeypatch.setattr(watchdogs, "LEAST_FREE_BYTES", 0 if run.session.steps == 2 else 10**18)

    before(run, make_room)
    run.session.train()
    assert warnings(run) == ["training.disk_low", "training.disk_low"]
    assert "GB are left" in str(from_dict(run.events("warning")[0]["cause"]))


def silent_for(tmp_path: Path, seconds: float, *, step_s: float = 1.0) -> History:
    """Return a run of a living process whose last of three steps is so old."""
    folder = create(tmp_path / "runs", Recipe())
    now = time.time()
    events = [{"time": now - seconds - 9 * step_s, "event": "stage", "stage": "train"}] + [
        {"time": now - seconds - back * step_s, "event": "step", "step": 3 - back, "loss": 1.0}
        for back in (2, 1, 0)
    ]
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    process.write_identity(folder.process, os.getpid())
    return History(folder).update()


def test_a_worker_that_lives_but_says_nothing_is_told_of(tmp_path: Path) -> None:
    (silent,) = silent_for(tmp_path, SILENT_S + 60).concerns
    assert silent.key == "run.silent"
    assert silent.values["minutes"] == 6
    assert silent_for(tmp_path, SILENT_S - 60).concerns == []


def test_a_worker_whose_steps_take_long_may_be_silent_for_as_long(tmp_path: Path) -> None:
    assert silent_for(tmp_path, SILENT_S + 60, step_s=60).concerns == []
    assert silent_for(tmp_path, SILENT_TIMES * 60 + 60, step_s=60).concerns


def test_of_a_long_run_it_is_told_as_soon(tmp_path: Path) -> None:
    """Its history holds one step of many, so that those it holds lie far apart."""
    history = silent_for(tmp_path, SILENT_S + 60)
    history.steps = [step | {"step": 64 * step["step"]} for step in history.steps]
    for step in history.steps:
        step["time"] = history.last_time - (history.steps[-1]["step"] - step["step"])
    assert [concern.key for concern in history.concerns] == ["run.silent"]


def test_a_run_that_is_over_is_not_called_silent(tmp_path: Path) -> None:
    history = silent_for(tmp_path, SILENT_S + 60)
    with EventWriter(history.folder.events) as events:
        events.write("warning", step=3, cause=RunError("training.zero_loss", step=3).to_dict())
        events.write("finished")
    assert [concern.key for concern in history.update().concerns] == ["training.zero_loss"]
    assert history.summary()["warnings"] == [str(history.concerns[0])]


# Memory


def no_room(*_: Any, **__: Any) -> None:
    torch.empty(TOO_MUCH_BYTES, dtype=torch.uint8)


def small_device(run: Run, rows: int, from_step: int = 1) -> None:
    """Let a batch of more rows than so many ask for more than there is, from a step on."""

    def allocate(_: Any) -> None:
        if run.trainer.args.per_device_train_batch_size > rows and (
            from_step == 1 or run.session.steps + 1 >= from_step
        ):
            no_room()

    before(run, allocate)


@pytest.mark.parametrize(
    ("stage", "step"), [("train", 3), ("evaluate", 2), ("sample", 2), ("save", 5)]
)
def test_memory_that_runs_out_names_the_phase_the_size_and_what_would_fit(
    build: Build, stage: str, step: int
) -> None:
    run = build("training.eval_steps=2", "data.max_length=128")
    _exhaust(run, stage)
    with pytest.raises(RunError) as caught:
        run.session.train()
        run.writer.write("stage", stage="save")
        run.session.save(run.folder)
    error = caught.value
    assert error.key == f"training.out_of_memory_{stage}"
    assert error.values["step"] == step
    assert error.values["asked"] == "70368.7 GB"
    assert "70368.7 GB" in str(error)
    assert from_dict(error.to_dict()).say("ko") != str(error)
    remedies = error.values["remedies"]
    assert 0 < len(remedies) <= MOST_REMEDIES
    recipe = run.folder.read_recipe()
    for remedy in remedies:
        assert recipe.changed(remedy["changes"]) != recipe


def _exhaust(run: Run, stage: str) -> None:
    """Ask for too much in one stage, as the allocator of a full machine answers it."""
    if stage == "train":
        small_device(run, rows=0, from_step=3)
        return
    if stage == "save":
        run.trainer.checkpoints.take_best = lambda: None
        run.model.save_pretrained = no_room
        run.trainer.checkpoints.save = lambda: None
        return
    if stage == "sample":
        run.reporter._questions = {"Who?": "Who?"}
    asked = run.trainer.answers if stage == "sample" else run.trainer.prediction_step

    def late(*args: Any, **kwargs: Any) -> Any:
        return asked(*args, **kwargs) if run.session.steps < 2 else no_room()

    setattr(run.trainer, "answers" if stage == "sample" else "prediction_step", late)


def test_a_model_that_does_not_fit_is_told_of_as_loading(
    settings: Settings,
    pairs: Path,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lora_studio.models.loading.AutoModelForCausalLM.from_pretrained", no_room)
    folder = create(tmp_path / "runs", recipe_over(pairs, tiny_llama))
    with EventWriter(folder.events) as events:

        def stage(name: str, *_: Any) -> None:
            events.write("stage", stage=name)

        with pytest.raises(RunError) as caught:
            Session(folder.read_recipe(), settings, stage).build(folder, events)
    assert caught.value.key == "training.out_of_memory_load"
    assert caught.value.values["asked"] == "70368.7 GB"


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total", "2.7 GB"),
        ("MPS backend out of memory. Tried to allocate 457.03 MB on private pool.", "457.0 MB"),
        ("Unable to allocate 7.45 GiB for an array with shape (2, 3)", "8.0 GB"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes.",
         "9.0 GB"),
        ("", "–"),
    ],
)  # fmt: skip
def test_what_was_asked_for_is_read_from_what_libraries_say(said: str, size: str) -> None:
    assert asked_for(RuntimeError(said)) == size


def test_a_batch_that_does_not_fit_is_halved_and_the_same_is_learned(build: Build) -> None:
    changes = ("training.max_steps=6", "training.eval_steps=3")
    whole = build(*changes)
    whole.session.train()
    run = build(*changes, "training.auto_find_batch_size=true")
    small_device(run, rows=2)
    run.session.train()
    assert run.losses() == pytest.approx(whole.losses(), abs=1e-5)
    assert [event["step"] for event in run.events("eval")] == [0, 3, 6]
    (warning,) = run.events("warning")
    assert warning["cause"]["values"] == {"rows": 4, "fewer": 2, "passes": 2}
    assert "as many rows a step as before" in str(from_dict(warning["cause"]))


def test_memory_that_runs_out_later_loses_no_step(build: Build) -> None:
    changes = ("training.max_steps=6", "training.eval_steps=3", "adapter.lora_dropout=0")
    whole = build(*changes)
    whole.session.train()
    run = build(*changes, "training.auto_find_batch_size=true")
    small_device(run, rows=1, from_step=5)
    run.session.train()
    assert [event["step"] for event in run.events("step")] == [1, 2, 3, 4, 5, 6]
    assert run.losses() == pytest.approx(whole.losses(), abs=1e-5)
    halved = [event["cause"]["values"]["fewer"] for event in run.events("warning")]
    assert halved == [2, 1]
    assert {event["step"] for event in run.events("warning")} == {4}
    assert [event["step"] for event in run.events("eval")] == [0, 3, 6]


def test_memory_that_runs_out_in_an_evaluation_or_the_first_step_repeats_nothing(
    build: Build,
) -> None:
    run = build(
        "training.max_steps=2", "training.eval_steps=1", "training.auto_find_batch_size=true"
    )
    score = run.trainer.prediction_step

    def scored(*args: Any, **kwargs: Any) -> Any:
        return (
            no_room() if run.trainer.args.per_device_eval_batch_size > 2 else score(*args, **kwargs)
        )

    def fit(_: Any) -> None:
        if run.events("eval") and run.trainer.args.per_device_train_batch_size > 1:
            no_room()

    run.trainer.prediction_step = scored
    before(run, fit)
    run.session.train()
    assert [event["step"] for event in run.events("eval")] == [0, 1, 2]
    assert [event["step"] for event in run.events("step")] == [1, 2]
    assert [event["cause"]["values"]["fewer"] for event in run.events("warning")] == [2, 1]


def test_one_row_that_does_not_fit_ends_the_run_all_the_same(build: Build) -> None:
    run = build("training.auto_find_batch_size=true", "data.eval_fraction=0")
    small_device(run, rows=0)
    with pytest.raises(RunError) as caught:
        run.session.train()
    assert caught.value.key == "training.out_of_memory_in_rehearsal"
    assert caught.value.values["batch"] == 1
    assert warnings(run) == ["training.batch_halved"] * 2


def test_without_the_wish_a_batch_stays_as_it_was_asked_for(build: Build) -> None:
    run = build()
    small_device(run, rows=2)
    with pytest.raises(RunError, match="longest batch"):
        run.session.train()
    assert warnings(run) == []


@pytest.mark.parametrize(
    ("before", "after"), [((8, 1), (4, 2)), ((6, 2), (3, 4)), ((3, 1), (1, 3)), ((15, 2), (5, 6))]
)
def test_rows_per_step_stay_the_same(before: tuple[int, int], after: tuple[int, int]) -> None:
    assert smaller(*before) == after


# Another try


REMEDY = {
    "kind": "batch", "old": "4×1", "new": "2×2", "saved": 5_000_000,
    "changes": [
        "training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=2",
    ],
}  # fmt: skip


@pytest.fixture
def studio(settings: Settings) -> Studio:
    return Studio(settings, Machine.open(settings, isolated=False))


def ended(studio: Studio, pairs: Path, *, with_words: bool = True, source: str = "starter") -> str:
    """Return the id of a run that ended without memory, with or without a last word."""
    recipe = Recipe.from_dict({"model": {"source": source}, "data": {"files": [str(pairs)]}})
    folder = create(studio.settings.runs, recipe)
    cause = RunError("training.disk_full")
    cause.values["remedies"] = [REMEDY]
    with EventWriter(folder.events) as events:
        events.write("stage", stage="load")
        if with_words:
            events.write("failed", cause=cause.to_dict())
    if not with_words:
        process.write_identity(folder.process, 2**22 + 1)  # beyond the largest pid
    return folder.id


def click(**sent: Any) -> SimpleNamespace:
    return SimpleNamespace(**sent)


def test_one_click_trains_again_with_what_would_fit(
    studio: Studio, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(studio, pairs)
    tried: list[Recipe] = []
    submit = "lora_studio.cases.training.Training.submit"
    monkeypatch.setattr(submit, lambda _, recipe, token: tried.append(recipe) or "next-1")
    shown = concerns.shown(studio, studio.runs.history(run), Voice(None))
    assert shown["retry"] == ["Batch 2×2 instead of 4×1: saves 5 MB"]
    assert concerns.retried(studio, click(run=run, remedy=0)) == "next-1"
    (recipe,) = tried
    assert recipe == studio.runs.history(run).folder.read_recipe().changed(REMEDY["changes"])
    assert recipe.training.gradient_accumulation_steps == 2


@pytest.mark.parametrize("sent", [{}, {"run": 3, "remedy": 0}, {"run": "x"}, {"remedy": 0}])
def test_a_click_beside_the_buttons_starts_nothing(studio: Studio, sent: dict[str, Any]) -> None:
    assert concerns.retried(studio, click(**sent)) is None


@pytest.mark.parametrize("number", [-1, 1, 99])
def test_only_what_was_proposed_can_be_clicked(studio: Studio, pairs: Path, number: int) -> None:
    with pytest.raises(RunError, match="no such suggestion"):
        concerns.retried(studio, click(run=ended(studio, pairs), remedy=number))
    with pytest.raises(RunError, match="no run called"):
        concerns.retried(studio, click(run="../etc", remedy=number))


def test_a_run_that_goes_on_is_not_tried_again(studio: Studio, tmp_path: Path) -> None:
    studio.settings.runs.parent.mkdir(parents=True, exist_ok=True)
    folder = create(studio.settings.runs, Recipe())
    folder.events.write_text(json.dumps({"time": time.time(), "event": "stage"}) + "\n")
    process.write_identity(folder.process, os.getpid())
    with pytest.raises(RunError, match="has not ended yet"):
        studio.retrying.retry(folder.id, ["training.max_steps=2"])


def test_another_try_refuses_what_is_no_setting(studio: Studio, pairs: Path) -> None:
    with pytest.raises(RecipeError):
        studio.retrying.retry(ended(studio, pairs), ["training.nose=2"])


def test_a_worker_that_left_no_word_is_answered_by_the_prediction(
    studio: Studio, pairs: Path
) -> None:
    run = ended(studio, pairs, with_words=False)
    assert studio.runs.history(run).status == "lost"
    remedies = studio.retrying.remedies(run)
    assert 0 < len(remedies) <= MOST_REMEDIES
    assert remedies[0]["kind"] == "batch"
    unknown = ended(studio, pairs, with_words=False, source="owner/never-seen")
    assert studio.retrying.remedies(unknown) == []


def test_a_page_that_asks_again_and_again_is_answered_without_a_new_prediction(
    studio: Studio, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = studio.runs.history(ended(studio, pairs, with_words=False))
    predicted: list[Recipe] = []
    real = Remedies.less_memory
    monkeypatch.setattr(
        Remedies, "less_memory", lambda one: predicted.append(one.recipe) or real(one)
    )
    shown = [concerns.shown(studio, history, Voice(None)) for _ in range(3)]
    assert len(predicted) == 1
    assert shown[0]["retry"]
    assert shown == [shown[0]] * 3
    shorter = history.folder.read_recipe().changed(["data.max_length=128"])
    history.folder.recipe.write_text(shorter.to_yaml(), encoding="utf-8")
    os.utime(history.folder.recipe, ns=(1, 1))
    assert concerns.shown(studio, history, Voice(None)) != shown[0]
    history.folder.data.mkdir()
    (history.folder.data / "report.json").write_text('{"torn', encoding="utf-8")
    concerns.shown(studio, history, Voice(None))
    assert len(predicted) == 3


def test_a_lost_run_of_a_later_version_is_shown_and_not_tried_again(
    studio: Studio, pairs: Path
) -> None:
    """Its worker was killed before its first event."""
    history = studio.runs.history(ended(studio, pairs, with_words=False))
    history.folder.recipe.write_text("version: 99\n", encoding="utf-8")
    history.folder.events.unlink()
    again = History(history.folder).update()
    assert state(again, Voice(None))["status"] == "lost"
    assert concerns.shown(studio, again, Voice(None)) == {"concerns": [], "retry": []}


def test_the_command_line_says_how_to_try_again(
    settings: Settings, studio: Studio, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(settings.home))
    run = ended(studio, pairs)
    assert main(["show", run]) == DONE
    line = f"retry {run} " + " ".join(f"--set {change}" for change in REMEDY["changes"])
    assert line in capsys.readouterr().err
    tried: list[Any] = []
    monkeypatch.setattr(Retrying, "retry", lambda _, *asked: tried.append(asked) or "next-1")
    monkeypatch.setattr(
        "lora_studio.cli.training._until_over", lambda _, run: tried.append(run) or DONE
    )
    assert main(line.split()) == DONE
    assert tried == [(run, REMEDY["changes"]), "next-1"]


@pytest.mark.parametrize(
    "kind", ["batch", "checkpointing", "precision", "length", "rank", "all", "rate", "format"]
)
def test_every_remedy_has_words_for_its_button(kind: str) -> None:
    assert f"page.fix_{kind}" in table()
    assert concerns.label(REMEDY | {"kind": kind}, Voice(None))


def test_the_page_shows_the_latest_warnings_and_no_button_while_it_trains(
    studio: Studio,
) -> None:
    folder = create(studio.settings.runs, Recipe())
    with EventWriter(folder.events) as events:
        for step in range(1, 7):
            cause = StudioError("training.zero_loss", step=step)
            events.write("warning", step=step, cause=cause.to_dict())
    process.write_identity(folder.process, os.getpid())
    shown = concerns.shown(studio, studio.runs.history(folder.id), Voice(None))
    assert len(shown["concerns"]) == concerns.MOST_SAID
    assert "step 6" in shown["concerns"][-1]
    assert shown["retry"] == []
