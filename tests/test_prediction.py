"""What is predicted of a run, against what torch keeps and what a run does."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_studio.cases.machine import Machine
from lora_studio.errors import RunError
from lora_studio.hardware import Hardware
from lora_studio.models.accounting import count
from lora_studio.models.description import ModelInfo
from lora_studio.prediction import calibration, memory
from lora_studio.prediction.estimate import Estimate, estimate
from lora_studio.prediction.fixes import fixes, fixes_after_failure
from lora_studio.prediction.memory import PARTS, Place, predict
from lora_studio.prediction.time import pass_flop, run_seconds, step_seconds
from lora_studio.prediction.workload import Workload
from lora_studio.recipe import Recipe
from lora_studio.runs.events import EventWriter, read_events
from lora_studio.runs.folder import create
from lora_studio.runs.process import ALLOCATION
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.ui import prediction_bar
from lora_studio.ui.language import Voice
from lora_studio.wording import ASSETS

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

GB = 1_000_000_000
CPU = Place(device="cpu", precision="fp32", free=64 * GB, total=64 * GB)


@pytest.fixture(scope="module")
def starter() -> ModelInfo:
    return ModelInfo.from_dict(json.loads((ASSETS / "starter.json").read_text(encoding="utf-8")))


def recipe(*changes: str) -> Recipe:
    return Recipe().changed(changes)


# Memory


def kept_per_token(
    folder: Path, adapter: dict[str, Any], *, rows: int, length: int, quick: bool
) -> float:
    """Return the bytes a token that one forward pass keeps for the decoder's blocks alone.

    Quick is as a training does it, rows end to end and layers fused; else the library's way.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from lora_studio.training.documents import Documents, attend_by_document
    from lora_studio.training.fused import fuse

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    targets = [name for name, module in model.named_modules() if "Linear" in type(module).__name__
               or "Conv1D" in type(module).__name__]  # fmt: skip
    names = {name.rpartition(".")[2] for name in targets} - {"lm_head"}
    config = {"target_modules": sorted(names), "fan_in_fan_out": "c_attn" in names} | adapter
    model = get_peft_model(model, LoraConfig(**config)).train()
    model.enable_input_require_grads()  # else the first block keeps less than the others
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(3, 400, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0 if rows > 1 else 1
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if quick:
        attend_by_document(model)
        fuse(model)
        places = torch.arange(length).repeat(rows)[None]
        documents = Documents((length,) * rows)
        batch = {"input_ids": ids.view(1, -1), "position_ids": places, "documents": documents}
    decoder = model.base_model.model.base_model
    blocks = getattr(decoder, "layers", None) or decoder.h
    inside = {"now": False}

    def enter(_: Any, __: Any, given: dict[str, Any]) -> None:
        inside["now"] = True
        # All blocks share what turns queries and keys.
        weights.update(
            part.untyped_storage().data_ptr() for part in given.get("position_embeddings") or ()
        )

    for block in blocks:
        block.register_forward_pre_hook(enter, with_kwargs=True)
        block.register_forward_hook(lambda *_: inside.update(now=False))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: keep(tensor) if inside["now"] else tensor, lambda tensor: tensor
    ):
        decoder(**batch, use_cache=False)
    return sum(storage.nbytes() for storage in seen.values()) / (rows * length)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(
    ("model", "adapter", "rows", "within"),
    [
        ("tiny_llama", {}, 2, 0.02),
        ("tiny_llama", {}, 1, 0.02),
        ("tiny_llama", {"target_modules": ["q_proj", "v_proj"]}, 2, 0.02),
        ("tiny_llama", {"lora_dropout": 0.1}, 2, 0.02),
        ("tiny_gpt2", {}, 2, 0.02),
    ],
)
def test_activations_are_what_autograd_keeps(
    model: str,
    adapter: dict[str, Any],
    rows: int,
    within: float,
    quick: bool,  # noqa: FBT001 - a case of the test
    request: pytest.FixtureRequest,
) -> None:
    from lora_studio.models.inspection import inspect_model

    folder = request.getfixturevalue(model)
    info = inspect_model(folder, str(folder))
    length = 48
    kept = kept_per_token(folder, {"r": 8} | adapter, rows=rows, length=length, quick=quick)
    spec = replace(Recipe().adapter, r=8, **{k: tuple(v) if isinstance(v, list) else v
                                             for k, v in adapter.items()})  # fmt: skip
    work = Workload(
        rows=rows,
        length=length,
        labelled=1,
        accumulation=1,
        padded_length=length,
        train_rows=None,
        packed=quick,
        fused=quick,
    )
    chosen = list(memory.selected(info, spec))
    predicted = info.layers * memory._layer(info, CPU, work) + memory._adapted(
        spec, CPU, work, chosen
    )
    assert predicted == pytest.approx(kept, rel=within)


def test_parts_are_named_and_add_up(starter: ModelInfo) -> None:
    found = predict(starter, recipe(), CPU)
    trained = count(starter, Recipe().adapter).trainable
    assert tuple(found.parts) == PARTS
    assert found.total == sum(found.parts.values())
    assert found.parts["weights"] == 4 * starter.parameters
    assert found.parts["adapters"] == found.parts["gradients"] == 4 * trained
    assert found.parts["optimizer"] == 8 * trained


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ("adapter.r=64", "optimizer"),
        ("training.per_device_train_batch_size=8", "activations"),
        ("data.max_length=1024", "logits"),
    ],
)
def test_more_of_a_setting_takes_more(starter: ModelInfo, more: str, part: str) -> None:
    before, after = (predict(starter, changed, CPU) for changed in (recipe(), recipe(more)))
    assert after.parts[part] > before.parts[part]
    assert after.total > before.total


def test_only_labelled_positions_have_logits_on_a_processor(starter: ModelInfo) -> None:
    report = {"tokens": 1000, "trained_tokens": 250, "tokens_longest": 100, "trained_rows": 20,
              "lengths": [(50, 20)]}  # fmt: skip
    asked = recipe("training.per_device_train_batch_size=2")
    found = predict(starter, asked, CPU, Workload.of(asked, report))
    # The scores, whose place their gradients take, and as many in float32 for the loss.
    assert found.parts["logits"] == 2 * 4 * 50 * starter.vocab_size
    longer = replace(Workload.of(asked, report), length=8000)
    many = predict(starter, asked, CPU, longer).parts["logits"]
    assert many == 4 * (4000 + 1024) * starter.vocab_size


def test_a_classifier_has_no_head_over_words_and_trains_its_own(starter: ModelInfo) -> None:
    untied = replace(
        starter, tied_embeddings=False,
        parameters=starter.parameters + starter.vocab_size * starter.hidden_size,
    )  # fmt: skip
    writes, sorts = (recipe(f"data.format={name}") for name in ("auto", "classification"))
    before, after = (predict(untied, asked, CPU) for asked in (writes, sorts))
    head = starter.vocab_size * starter.hidden_size
    assert before.parts["weights"] - after.parts["weights"] == 4 * (head - 2 * starter.hidden_size)
    assert after.parts["adapters"] - before.parts["adapters"] == 4 * 2 * starter.hidden_size
    assert after.parts["logits"] < before.parts["logits"] / 20
    report = {"tokens": 1000, "trained_tokens": 20, "tokens_longest": 100, "trained_rows": 20,
              "lengths": [(50, 20)], "labels": [["a", 4, 1]] * 5}  # fmt: skip
    work = Workload.of(sorts, report)
    assert work.labels == 5
    assert Workload.of(writes, report).labels is None
    counted = count(untied, sorts.adapter, 5)
    known = predict(untied, sorts, CPU, work)
    assert known.parts["optimizer"] == 2 * known.parts["gradients"] == 8 * counted.trainable


def test_smaller_formats_take_less_and_quantise_linear_layers_only(starter: ModelInfo) -> None:
    sizes = {
        name: predict(starter, recipe(), replace(CPU, precision=name)).parts["weights"]
        for name in ("fp32", "bf16", "int8", "nf4")
    }
    assert sizes["nf4"] < sizes["int8"] < sizes["bf16"] < sizes["fp32"]
    embedding = 4 * starter.vocab_size * starter.hidden_size
    assert sizes["nf4"] > embedding


def test_activations_are_recomputed_only_where_it_would_not_fit(starter: ModelInfo) -> None:
    free = predict(starter, recipe(), CPU)
    assert not free.checkpointing
    narrow = predict(starter, recipe(), replace(CPU, free=free.needed - GB))
    assert narrow.checkpointing
    assert narrow.total < free.total
    kept = recipe("training.activation_checkpointing=false")
    assert not predict(starter, kept, replace(CPU, free=GB)).checkpointing


def test_blocks_below_the_first_adapter_keep_nothing(starter: ModelInfo) -> None:
    upper = recipe("adapter.layers_to_transform=[28, 29]")
    found, every = predict(starter, upper, CPU), predict(starter, recipe(), CPU)
    assert found.parts["activations"] < every.parts["activations"] / 10


def test_verdicts_leave_room_for_the_error_of_the_prediction(starter: ModelInfo) -> None:
    found = predict(starter, recipe(), CPU)
    assert found.verdict(round(found.needed * 1.11)) == "fits"
    assert found.verdict(round(found.needed * 1.05)) == "tight"
    assert found.verdict(found.needed - 1) == "will_not_fit"


def test_a_slider_of_a_large_model_is_answered_in_milliseconds(starter: ModelInfo) -> None:
    groups = tuple(
        replace(group, count=80, indices=("0-79",), d_in=8192, d_out=28672)
        for group in starter.modules
    )
    large = replace(starter, modules=groups, layers=80, hidden_size=8192, source="70B")
    predict(large, recipe(), CPU)
    start = time.process_time()
    for _ in range(20):
        predict(large, recipe(), CPU)
    assert (time.process_time() - start) / 20 < 0.02


def test_a_run_holds_on_to_freed_memory_only_where_there_is_plenty(starter: ModelInfo) -> None:
    found = predict(starter, recipe(), CPU)
    assert found.has_room(64 * GB)
    assert not found.has_room(round(found.needed * 1.2))


@pytest.mark.parametrize(("free", "told"), [(64 * GB, {}), (2 * GB, ALLOCATION)])
def test_a_worker_short_of_memory_is_told_to_give_back_every_byte(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, free: int, told: dict[str, str]
) -> None:
    machine = Machine.open(settings, isolated=False)
    on_cpu = replace(machine.hardware, device="cpu", gpus=())
    monkeypatch.setattr("lora_studio.cases.machine.free_memory", lambda: free)
    studio = Studio(settings, replace(machine, hardware=on_cpu))
    found = studio.planning.outlook(recipe("precision=fp32")).estimate
    assert studio.workers.allocation(found) == told


# Fixes


def test_what_fits_needs_no_change(starter: ModelInfo) -> None:
    assert fixes(starter, recipe(), CPU) == []


def test_each_change_makes_it_fit_alone_and_says_what_it_saves(starter: ModelInfo) -> None:
    asked = recipe("training.activation_checkpointing=false", "data.max_length=1024")
    before = predict(starter, asked, CPU)
    place = replace(CPU, free=round(before.needed * 0.7))
    found = fixes(starter, asked, place, precisions=("nf4", "int8", "fp32"))
    kinds = [fix.kind for fix in found]
    assert kinds[:2] == ["batch", "checkpointing"]
    assert "length" in kinds
    for fix in found:
        changed = asked.changed(fix.changes)
        assert fix.memory.verdict(place.free) != "will_not_fit"
        assert fix.saved == before.total - fix.memory.total > 0
        assert changed != asked
    batch = asked.changed(found[0].changes).training
    assert batch.per_device_train_batch_size * batch.gradient_accumulation_steps == 4


def test_several_changes_are_offered_together_where_none_is_enough(starter: ModelInfo) -> None:
    asked = recipe("training.per_device_train_batch_size=8", "data.max_length=2048")
    place = replace(CPU, free=1_100_000_000)
    (fix,) = fixes(starter, asked, place, precisions=("nf4",))
    assert fix.kind == "all"
    assert fix.memory.needed <= place.free
    assert len(fix.changes) > 2
    assert fixes(starter, asked, replace(CPU, free=100_000_000)) == []


def test_what_was_seen_not_to_fit_is_answered_whatever_was_predicted(starter: ModelInfo) -> None:
    found = fixes_after_failure(starter, recipe(), CPU)
    assert found
    before = predict(starter, recipe(), CPU)
    assert all(fix.memory.total < before.total for fix in found)


# Time


def test_arithmetic_is_counted_by_hand(starter: ModelInfo) -> None:
    work = Workload(
        rows=2,
        length=100,
        labelled=0.5,
        accumulation=1,
        padded_length=100,
        train_rows=10,
    )
    counted = count(starter, Recipe().adapter)
    body, head = 106_168_320, 49152 * 576
    flop = pass_flop(starter, counted, work, tokens=200, checkpointing=False)
    attention = 6 * 100 * 576 * 30
    expected = 200 * (4 * body + 4 * head * 0.5 + 6 * counted.trainable + attention)
    assert flop == pytest.approx(expected)
    again = pass_flop(starter, counted, work, tokens=200, checkpointing=True)
    assert again - flop == pytest.approx(200 * 2 * body)


def test_the_time_of_a_classifier_has_no_product_with_the_vocabulary(starter: ModelInfo) -> None:
    flop = []
    for name in ("auto", "classification"):
        asked = recipe(f"data.format={name}")
        work = replace(Workload.of(asked), labelled=1.0)
        counted = count(starter, asked.adapter, work.labels)
        flop.append(pass_flop(starter, counted, work, tokens=100, checkpointing=False))
    head = 4 * starter.vocab_size * starter.hidden_size
    expected = 100 * (head - 6 * 2 * starter.hidden_size)
    assert flop[0] - flop[1] == pytest.approx(expected)


def test_twice_the_rate_is_half_the_time_and_evaluations_come_on_top(starter: ModelInfo) -> None:
    work = Workload.of(recipe())
    about: dict[str, Any] = {"device": "cpu", "precision": "fp32", "checkpointing": False}
    counted = count(starter, Recipe().adapter)
    slow, fast = (step_seconds(starter, counted, work, rate=r, **about) for r in (4e10, 8e10))
    assert slow == pytest.approx(2 * fast)
    plain = run_seconds(fast, steps=10, evaluations=0, eval_rows=8, work=work)
    assert plain == pytest.approx(10 * fast)
    assert run_seconds(fast, steps=10, evaluations=2, eval_rows=8, work=work) > plain


def test_the_longest_of_a_batch_is_what_chance_makes_it() -> None:
    report = {"tokens": 40, "trained_tokens": 40, "tokens_longest": 30, "trained_rows": 2,
              "lengths": [(10, 1), (30, 1)], "shared_tokens": 5}  # fmt: skip
    changes = ("training.per_device_train_batch_size=2", "training.packing=false")
    by_length = recipe(*changes)
    assert Workload.of(by_length, report).padded_length == 20
    asked = by_length.changed(["training.train_sampling_strategy=random"])
    # Of two rows, both are short in one case of four.
    assert Workload.of(asked, report).padded_length == pytest.approx(10 / 4 + 30 * 3 / 4)
    short = asked.changed(["data.max_length=20"])
    assert Workload.of(short, report).padded_length == pytest.approx(10 / 4 + 20 * 3 / 4)


def test_rows_end_to_end_have_no_padding_and_one_beginning() -> None:
    report = {"tokens": 40, "trained_tokens": 20, "tokens_longest": 30, "trained_rows": 2,
              "lengths": [(10, 1), (30, 1)], "shared_tokens": 5}  # fmt: skip
    asked = recipe("training.per_device_train_batch_size=4")
    work = Workload.of(asked, report)
    assert work.usual_tokens == 4 * 20 - 3 * 5
    assert work.tokens == 4 * 30 - 3 * 5
    assert work.scored == 4 * 30 / 2
    dropped = Workload.of(asked.changed(["adapter.lora_dropout=0.1"]), report)
    assert dropped.usual_tokens == 4 * 20
    sorted_texts = Workload.of(asked.changed(["data.format=classification"]), report)
    assert not sorted_texts.packed and not sorted_texts.shared


def test_what_others_use_of_the_processor_is_taken_out_of_a_calibration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def used(total: float, busy: float, own: float) -> None:
        found = (total, busy, own)
        monkeypatch.setattr(calibration.Others, "_used", staticmethod(lambda: found))

    monkeypatch.setattr(calibration, "usable_cores", lambda: 2)
    monkeypatch.setattr(calibration.psutil, "cpu_count", lambda: 2)
    used(100.0, 50.0, 10.0)
    others = calibration.Others()
    used(102.0, 52.0, 11.0)
    assert others.share() == pytest.approx(0.5)
    used(100.0, 50.0, 10.0)
    assert others.share() == 0
    # In a container, most of what the whole machine does is no concern of ours.
    used(102.0, 52.0, 11.0)
    monkeypatch.setattr(calibration.psutil, "cpu_count", lambda: 64)
    assert others.share() == 0


def test_a_calibration_is_kept_by_device(tmp_path: Path) -> None:
    here = Hardware(
        device="cpu", device_name="one", cores=2, memory_total_bytes=1, memory_free_bytes=1
    )
    assert calibration.known(tmp_path, here, 4) is None
    calibration.keep(tmp_path, here, 4, 8e10)
    calibration.keep(tmp_path, here, 2, 1e10)
    assert calibration.known(tmp_path, here, 4) == 8e10
    assert calibration.known(tmp_path, replace(here, device_name="two"), 4) is None
    (tmp_path / "calibration.json").write_text("[broken", encoding="utf-8")
    assert calibration.known(tmp_path, here, 4) is None
    calibration.keep(tmp_path, here, 4, 7e10)
    assert calibration.known(tmp_path, here, 4) == 7e10


def test_a_measurement_on_a_busy_machine_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Hardware(
        device="cpu", device_name="one", cores=2, memory_total_bytes=1, memory_free_bytes=1
    )
    assert calibration.is_due(tmp_path, here, 4)
    calibration.keep(tmp_path, here, 4, 2e10)
    assert not calibration.is_due(tmp_path, here, 4)
    tomorrow = calibration.time.time() + calibration.VALID_S + 1
    monkeypatch.setattr(calibration.time, "time", lambda: tomorrow)
    assert calibration.is_due(tmp_path, here, 4)
    calibration.keep(tmp_path, here, 4, 8e10)
    calibration.keep(tmp_path, here, 4, 3e10)
    assert calibration.known(tmp_path, here, 4) == 8e10


def test_a_device_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MEASURE_S", 0.05)
    assert calibration.measure("cpu", 4) > 1e8


# The rehearsal


@pytest.fixture
def session(
    settings: Settings, pairs: Path, tiny_llama: Path, tmp_path: Path, rehearsing: None
) -> Iterator[Any]:
    """Build a session with dropout, whose random numbers a rehearsal could take away."""
    from lora_studio.training.session import Session

    writers = []

    def make(*changes: str) -> tuple[Any, Any]:
        asked = Recipe.from_dict(
            {
                "name": "test",
                "model": {"source": str(tiny_llama)},
                "precision": "fp32",
                "data": {"files": [str(pairs)], "eval_fraction": 0.0},
                "adapter": {"r": 4, "lora_dropout": 0.3},
                "training": {"max_steps": 3, "learning_rate": 0.01, "warmup_ratio": 0},
            }
        ).changed(changes)
        folder = create(tmp_path / "runs", asked)
        events = EventWriter(folder.events)
        writers.append(events)
        built = Session(asked, settings, lambda *_: None)
        built.build(folder, events)._questions = {}
        return built, folder

    yield make
    for writer in writers:
        writer.close()


def events_of(folder: Any, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder.events)[0] if event["event"] == kind]


def test_where_memory_is_plenty_nothing_is_rehearsed(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_studio.training.rehearsal import Rehearsal

    for times, rehearses in ((memory.PLENTY, True), (1.0, False)):
        monkeypatch.setattr(memory, "PLENTY", times)
        built, _ = session()
        assert isinstance(built._trainer.callback_handler.callbacks[0], Rehearsal) is rehearses


def test_a_rehearsal_leaves_the_losses_bit_for_bit_as_they_are(session: Any) -> None:
    from lora_studio.training.rehearsal import Rehearsal

    losses, tokens = [], []
    for rehearsed in (True, False):
        built, folder = session()
        callbacks = built._trainer.callback_handler.callbacks
        assert isinstance(callbacks[0], Rehearsal)
        if not rehearsed:
            callbacks.pop(0)
        built.train()
        assert len(events_of(folder, "rehearsed")) == int(rehearsed)
        steps = events_of(folder, "step")
        losses.append([(event["loss"], event["grad_norm"]) for event in steps])
        tokens.append([event["tokens_seen"] for event in steps])
    assert losses[0] == losses[1]
    assert tokens[0] == tokens[1]


def test_a_rehearsal_takes_the_longest_rows_and_says_what_they_took(session: Any) -> None:
    built, folder = session()
    lengths = sorted(len(row) for row in built._trainer.train_dataset["input_ids"])
    built.train()
    (event,) = events_of(folder, "rehearsed")
    assert event["rows"] == 4
    assert event["tokens"] == 4 * lengths[-1]
    assert event["peak_bytes"] > 0


def test_memory_that_runs_out_in_the_rehearsal_is_answered_with_settings(session: Any) -> None:
    built, folder = session("data.max_length=128")

    def no_room(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 GB")

    built._trainer.training_step = no_room
    with pytest.raises(RunError) as caught:
        built.train()
    assert caught.value.key == "training.out_of_memory_in_rehearsal"
    assert not events_of(folder, "step")
    offered = caught.value.values["remedies"]
    assert offered
    assert folder.read_recipe().changed(offered[0]["changes"]) != folder.read_recipe()


def test_another_failure_in_the_rehearsal_stays_what_it_is(session: Any) -> None:
    built, _ = session()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("sizes do not match")

    built._trainer.training_step = broken
    with pytest.raises(RuntimeError, match="sizes do not match"):
        built.train()


# The bar


def english() -> Voice:
    return Voice(None)


def whole(starter: ModelInfo, place: Place, *changes: str) -> Estimate:
    return estimate(starter, recipe(*changes), place, rate=8e10, steps=100)


def test_the_bar_names_every_part_with_its_share(starter: ModelInfo) -> None:
    found = whole(starter, replace(CPU, free=48 * GB))
    html = prediction_bar.memory(found, [], english())
    for name in PARTS:
        assert f'<i class="{name}" style="width:' in html
    assert "48 GB" in html
    assert "64 GB" in html
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", html)]
    expected = 100 * (16 * GB + found.memory.needed) / (64 * GB)
    assert sum(widths) == pytest.approx(expected, abs=0.1)
    assert "ls-say good" in html


def test_buttons_carry_changes_that_a_recipe_takes(starter: ModelInfo) -> None:
    asked = ("training.activation_checkpointing=false",)
    needed = predict(starter, recipe(*asked), CPU).needed
    place = replace(CPU, free=round(needed * 0.7), total=needed)
    offered = fixes(starter, recipe(*asked), place, precisions=("nf4",))
    html = prediction_bar.memory(whole(starter, place, *asked), offered, english())
    carried = [json.loads(unescape(data)) for data in re.findall(r'data-changes="([^"]*)"', html)]
    assert [tuple(changes) for changes in carried] == [fix.changes for fix in offered]
    assert len(carried) >= 2
    for changes in carried:
        assert prediction_bar.chosen(SimpleNamespace(changes=changes)) == tuple(changes)


@pytest.mark.parametrize("sent", [None, 3, ["seed=1"], [3], ["name=<b>"], "precision=nf4"])
def test_a_click_changes_nothing_that_no_button_offers(sent: Any) -> None:
    assert prediction_bar.chosen(SimpleNamespace(changes=sent)) == ()


def test_how_good_a_prediction_is_is_said_where_it_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(memory.ERRORS, "cpu", (1.6, 3.5))
    said = prediction_bar.quality("cpu", english())
    assert all(f"{percent:g} %" in said for percent in memory.ERRORS["cpu"])
    assert prediction_bar.quality("cuda", english()) == english()("memory_quality_unknown")


def test_time_is_said_once_it_is_known(starter: ModelInfo) -> None:
    assert "about" in prediction_bar.time(whole(starter, CPU), english())
    unknown = estimate(starter, recipe(), CPU)
    assert prediction_bar.time(unknown, english()) == english()("time_later")


def test_an_estimate_is_json_of_what_is_promised(starter: ModelInfo) -> None:
    found = whole(starter, CPU).to_dict()
    assert list(found) == [
        "trainable_parameters", "total_parameters", "adapter_bytes", "peak_memory_bytes",
        "parts", "seconds", "optimizer_steps", "fits",
    ]  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    assert found["fits"] is True
    assert found["peak_memory_bytes"] == sum(found["parts"].values())
