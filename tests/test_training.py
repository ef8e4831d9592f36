"""What the field takes for granted of a training, held against the library's own arithmetic."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch.nn import functional
from trainings import Build, Run, gradients, recipe_over, runs_in, wake, without_dropout
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_studio.data.encoding import IGNORE_INDEX
from lora_studio.errors import RecipeError, RunError, StudioError
from lora_studio.models.loading import load_model
from lora_studio.recipe import Recipe
from lora_studio.runs.events import read_events
from lora_studio.settings import Settings
from lora_studio.training.documents import as_it_comes
from lora_studio.training.failures import explain
from lora_studio.training.fused import separate
from lora_studio.training.plan import evaluates_every, total_steps

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
pytestmark = [
    pytest.mark.usefixtures("one_thread", "rehearsing"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]


@pytest.fixture
def build(settings: Settings, pairs: Path, tiny_llama: Path, tmp_path: Path) -> Iterator[Build]:
    """Build a run over the twenty uneven pairs; settings are given as on the command line."""
    with runs_in(tmp_path / "runs", settings) as start:

        def make(*changes: str, model: Path = tiny_llama, data: Path = pairs, **about: Any) -> Run:
            run = start(replace(recipe_over(data, model, *changes), **about))
            if not about:  # answering takes longer than learning here
                run.reporter._questions = {}
            return run

        yield make


def padded(run: Run, rows: slice) -> dict[str, torch.Tensor]:
    """Return training rows as a library would stack them, labels for each position."""
    data = [run.trainer.train_dataset[at] for at in range(rows.start, rows.stop)]
    stack = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    ids = [torch.tensor(row["input_ids"]) for row in data]
    labels = [torch.tensor(row["labels"]) for row in data]
    return {
        "input_ids": stack(ids),
        "attention_mask": stack([torch.ones_like(row) for row in ids]),
        "labels": stack(labels, padding_value=IGNORE_INDEX),
    }


# The loss


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_our_loss_and_its_gradients_are_those_of_the_library(
    build: Build, model: str, request: pytest.FixtureRequest
) -> None:
    run = build(model=request.getfixturevalue(model))
    wake(run.model)
    without_dropout(run.model)
    batch = run.batch(slice(0, 5))
    assert len(set(batch["documents"].lengths)) > 1, "rows are to be uneven"
    ours = run.trainer.compute_loss(run.model, batch)
    ours_gradients = gradients(run.model, ours)
    separate(run.model)
    with as_it_comes(run.model):
        theirs = run.model(**padded(run, slice(0, 5))).loss
        theirs_gradients = gradients(run.model, theirs)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert ours_gradients.keys() == theirs_gradients.keys() != set()
    for name, gradient in theirs_gradients.items():
        torch.testing.assert_close(ours_gradients[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_batch_in_parts_adds_up_to_the_whole(build: Build) -> None:
    run = build()
    wake(run.model)
    run.model.train()
    whole = run.batch(slice(0, 6))
    count = torch.tensor(len(whole["labels"]))
    parts = [run.batch(slice(0, 1)), run.batch(slice(1, 4)), run.batch(slice(4, 6))]
    loss = run.trainer.compute_loss(run.model, dict(whole), num_items_in_batch=count)
    summed = sum(
        run.trainer.compute_loss(run.model, dict(part), num_items_in_batch=count) for part in parts
    )
    assert isinstance(summed, torch.Tensor)
    assert summed.item() == pytest.approx(loss.item(), abs=1e-6)


def test_a_masked_token_is_never_an_answer(build: Build) -> None:
    """The states at positions before a masked token get no gradient, those before others do."""
    run = build("training.packing=false")
    run.model.train()
    batch = run.batch(slice(0, 3))
    seen: list[torch.Tensor] = []

    def keep(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        inputs[0].retain_grad()
        seen.append(inputs[0])

    wake(run.model)
    # Registered before the loss's own hook, so that it sees every position.
    hook = run.model.get_output_embeddings().register_forward_pre_hook(keep)
    run.trainer.compute_loss(run.model, batch).backward()
    hook.remove()
    gradient = seen[0].grad
    assert gradient is not None
    scored = padded(run, slice(0, 3))["labels"][:, 1:] != IGNORE_INDEX
    touched = gradient.abs().sum(-1) > 0
    assert torch.equal(touched[:, :-1], scored)
    assert not touched[:, -1].any()


def test_what_stands_in_the_padding_does_not_matter(build: Build) -> None:
    run = build("training.packing=false")
    wake(run.model)
    batch = run.batch(slice(0, 4))
    expected = run.trainer.compute_loss(run.model, batch).item()
    other = dict(batch)
    other["input_ids"] = torch.where(
        batch["attention_mask"].bool(), batch["input_ids"], torch.tensor(7)
    )
    assert not torch.equal(other["input_ids"], batch["input_ids"])
    assert run.trainer.compute_loss(run.model, other).item() == pytest.approx(expected, abs=1e-6)


def test_the_held_out_loss_is_the_mean_over_tokens(build: Build) -> None:
    run = build("training.per_device_train_batch_size=3")
    wake(run.model)
    measured = run.trainer.evaluate()["eval_loss"]
    total = count = 0.0
    run.model.eval()
    for at in range(len(run.trainer.eval_dataset)):
        row = run.trainer.data_collator([run.trainer.eval_dataset[at]])
        with torch.no_grad():
            logits = run.model(row["input_ids"]).logits[0, row["sources"]]
        total += float(functional.cross_entropy(logits, row["labels"], reduction="sum"))
        count += len(row["labels"])
    assert len(run.trainer.eval_dataset) == 4, "the last batch is to be smaller"
    assert measured == pytest.approx(total / count, abs=1e-5)
    (event,) = run.events("eval")
    assert event["loss"] == pytest.approx(measured)
    assert event["perplexity"] == pytest.approx(math.exp(measured))


# The curve


def test_one_recipe_and_seed_give_one_loss_curve_and_another_seed_another(build: Build) -> None:
    curves = []
    for seed in (1, 1, 2):
        run = build(f"seed={seed}", "adapter.lora_dropout=0.1")
        run.session.train()
        curves.append(run.losses())
    assert curves[0] == curves[1]
    assert len(curves[0]) == 4
    assert curves[0] != curves[2]


def test_a_batch_of_four_is_four_batches_of_one(build: Build) -> None:
    curves = []
    for batch, parts in ((4, 1), (1, 4), (2, 2)):
        run = build(
            f"training.per_device_train_batch_size={batch}",
            f"training.gradient_accumulation_steps={parts}",
            "training.max_steps=null",
            "training.num_train_epochs=2",
        )
        run.session.train()
        curves.append(run.losses())
    assert len(curves[0]) == 8
    assert curves[1] == pytest.approx(curves[0], abs=2e-4)
    assert curves[2] == pytest.approx(curves[0], abs=2e-4)


@pytest.mark.parametrize(
    ("rows", "batch", "parts", "epochs"),
    [(16, 4, 1, 1), (16, 3, 2, 1), (17, 4, 1, 0.4), (16, 5, 3, 2.5), (4, 4, 8, 1)],
)
def test_the_number_of_steps_is_the_one_that_the_trainer_takes(
    build: Build, rows: int, batch: int, parts: int, epochs: float, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"p{at}", "completion": "c"}) for at in range(rows)]
    file.write_text("\n".join(lines), encoding="utf-8")
    run = build(
        f"training.per_device_train_batch_size={batch}",
        f"training.gradient_accumulation_steps={parts}",
        f"training.num_train_epochs={epochs}",
        "training.max_steps=null",
        "data.eval_fraction=0",
        data=file,
    )
    promised = total_steps(run.folder.read_recipe(), rows)
    loader = run.trainer.get_train_dataloader()
    assert run.trainer.set_initial_training_values(run.trainer.args, loader)[-1] == promised
    assert run.events("started")[0]["total_steps"] == promised


@pytest.mark.parametrize(
    ("ratio", "steps", "rates"),
    [
        (0, 2, [1, 1]),
        (0.5, 4, [0, 0.5, 1, 1]),
        (0.03, 4, [0, 1, 1, 1]),
        (1, 3, [0, 0.5, 1]),
        (0.03, 1, [1]),
    ],
)
def test_the_rate_rises_from_zero_as_in_transformers_but_never_to_the_very_end(
    build: Build, ratio: float, steps: int, rates: list[float]
) -> None:
    run = build(
        f"training.warmup_ratio={ratio}",
        f"training.max_steps={steps}",
        "training.lr_scheduler_type=constant_with_warmup",
        "training.learning_rate=1",
    )
    args = run.trainer.args
    run.trainer.create_optimizer_and_scheduler(steps)
    seen = []
    for _ in range(steps):
        seen.append(run.trainer.lr_scheduler.get_last_lr()[0])
        run.trainer.optimizer.step()
        run.trainer.lr_scheduler.step()
    assert seen == pytest.approx(rates)
    assert args.get_warmup_steps(steps) == min(math.ceil(steps * ratio), steps - 1)


# The adapter


def test_an_adapter_at_its_start_changes_nothing(build: Build, tiny_llama: Path) -> None:
    run = build()
    run.model.eval()
    ids = run.batch(slice(0, 1))["input_ids"]
    base = load_model(tiny_llama, "fp32", "cpu")
    with torch.no_grad():
        torch.testing.assert_close(run.model(ids).logits, base(ids).logits)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_what_is_saved_and_loaded_by_plain_peft_is_what_was_trained(
    build: Build, model: str, bias: str, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(model)
    run = build(f"adapter.bias={bias}", "training.learning_rate=0.05", model=source)
    run.session.train()
    adapter = run.session.save(run.folder)
    ids = run.batch(slice(0, 1))["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    untouched = base(ids).logits.detach()
    again = PeftModel.from_pretrained(base, adapter)
    run.model.eval()
    with torch.no_grad():
        live, loaded = run.model(ids).logits, again(ids).logits
    torch.testing.assert_close(loaded, live, atol=1e-5, rtol=1e-5)
    assert (live - untouched).abs().max() > 1e-3
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["fan_in_fan_out"] is (model == "tiny_gpt2")
    assert config["base_model_name_or_path"] == str(source)
    trained = {
        name for name, parameter in run.model.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }  # fmt: skip
    assert bool(trained) is (bias != "none" and model == "tiny_gpt2")
    assert all(name.endswith("bias") for name in trained)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_quantised_weights_train_on_a_processor_under_an_adapter_in_32_bit(
    build: Build, precision: str
) -> None:
    run = build(
        f"precision={precision}",
        "training.max_steps=12",
        "training.learning_rate=0.05",
        "adapter.lora_alpha=64",
        "data.eval_fraction=0",
    )
    adapter = {
        name: parameter.dtype
        for name, parameter in run.model.named_parameters()
        if parameter.requires_grad
    }
    assert set(adapter.values()) == {torch.float32}
    run.session.train()
    losses = run.losses()
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.1


def test_the_trained_parameters_are_as_many_as_announced(build: Build) -> None:
    run = build("adapter.target_modules=[q_proj, down_proj]", "adapter.use_rslora=true")
    (plan,) = run.events("started")
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert plan["trainable_parameters"] == trainable == 2 * 4 * ((32 + 32) + (64 + 32))
    assert plan["target_modules"] == ["q_proj", "down_proj"]
    scaling = {
        module.scaling["default"] for module in run.model.modules() if hasattr(module, "lora_A")
    }
    assert scaling == {8 / math.sqrt(4)}


# What a person sees


def test_the_last_step_is_measured_wherever_it_falls(build: Build) -> None:
    run = build("training.eval_steps=2", "training.max_steps=5")
    run.session.train()
    assert [event["step"] for event in run.events("eval")] == [0, 2, 4, 5]


@pytest.mark.parametrize(
    ("steps", "rows", "every"),
    [(10, 32, 10), (200, 32, 67), (400, 32, 80), (4000, 32, 800), (100, 0, 20), (1, 32, 1)],
)
def test_measurements_take_a_tenth_of_a_run_at_most(steps: int, rows: int, every: int) -> None:
    recipe = Recipe().changed(["training.per_device_train_batch_size=4"])
    assert evaluates_every(recipe, steps, device="cpu", rows=rows) == every
    between = math.ceil(steps / every) - 1
    if between:
        assert (between + 2) * (rows / 2 + 4) <= 0.1 * steps * 4
    asked = recipe.changed(["training.eval_steps=3"])
    assert evaluates_every(asked, steps, device="cpu", rows=rows) == 3


def test_a_run_tells_all_it_does(build: Build) -> None:
    run = build("training.eval_steps=2", prompts=("name : Zizzi | area : harbour", "Who?"))
    run.session.train()
    kinds = [event["event"] for event in read_events(run.folder.events)[0]]
    assert kinds[0] == "started"
    assert [event["step"] for event in run.events("step")] == [1, 2, 3, 4]
    assert [event["step"] for event in run.events("eval")] == [0, 2, 4]
    assert [(event["step"], event["prompt"]) for event in run.events("sample")] == [
        (step, prompt) for step in (0, 2, 4) for prompt in ("name : Zizzi | area : harbour", "Who?")
    ]
    last = run.events("step")[-1]
    assert last["epoch"] == pytest.approx(1)
    assert last["tokens_seen"] == sum(len(row["input_ids"]) for row in run.trainer.train_dataset)
    assert last["learning_rate"] > 0
    assert last["grad_norm"] > 0
    assert last["tokens_per_s"] > 0
    assert last["memory_bytes"] > 1e7
    assert last["seconds_left"] == 0
    assert run.folder.checkpoint_steps() == [2, 4]
    assert run.stages == ["tokenize", *["tokenize"] * run.stages[1:].count("tokenize"), "load"]


@pytest.mark.parametrize(
    "changes", [["training.eval_steps=2"], ["training.max_steps=1"], ["adapter.use_dora=true"]]
)
def test_what_a_run_starts_from_is_measured_later_and_is_the_same(
    build: Build, changes: list[str]
) -> None:
    found = []
    for beginning in ("before", "after"):
        run = build(*changes, "adapter.lora_dropout=0.2", prompts=("Who?", "Where?"))
        assert run.reporter._beginning == "after"
        run.reporter._beginning = beginning
        run.session.train()
        kinds = [one["event"] for one in read_events(run.folder.events)[0]]
        assert (kinds.index("step") < kinds.index("eval")) == (beginning == "after")
        evals = [(event["step"], pytest.approx(event["loss"])) for event in run.events("eval")]
        samples = [(event["step"], event["answer"]) for event in run.events("sample")]
        trained = [one.clone() for one in run.model.parameters() if one.requires_grad]
        found.append((evals, samples, run.losses(), run.trainer.state.best_global_step, trained))
    (*said_before, before), (*said_after, after) = found
    assert said_after == said_before
    assert said_after[0][0][0] == 0
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("change", ["adapter.bias=lora_only", "adapter.init_lora_weights=pissa"])
def test_a_start_that_changes_the_model_itself_is_measured_before(
    build: Build, change: str
) -> None:
    run = build(change)
    run.session.train()
    kinds = [event["event"] for event in read_events(run.folder.events)[0]]
    assert kinds.index("eval") < kinds.index("step")


def test_a_checkpoint_is_an_adapter_that_asks_the_hub_for_nothing(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft.utils.save_and_load as peft_saving

    run = build("training.max_steps=1", "adapter.target_modules=[q_proj]")
    run.model.peft_config["default"].base_model_name_or_path = "owner/name"
    monkeypatch.setattr(peft_saving, "check_file_exists_on_hf_hub", pytest.fail)
    run.session.train()
    place = run.folder.newest_adapter()
    assert place is not None
    names = {file.name for file in place.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert AutoTokenizer.from_pretrained(place).chat_template
    assert not names & {"training_args.bin", "adapter_model.bin"}


def test_plain_text_is_continued_and_not_asked(
    build: Build, tiny_gpt2: Path, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("\n\n".join(f"The keeper of light {n} walks." for n in range(30)), "utf-8")
    changes = ("data.max_length=24", "training.max_steps=1")
    run = build(*changes, model=tiny_gpt2, data=text, prompts=())
    run.session.train()
    prompts = {event["prompt"] for event in run.events("sample")}
    assert prompts
    assert run.reporter._questions == {prompt: prompt for prompt in prompts}
    assert run.events("started")[0]["format"] == "text"


def test_a_try_out_prompt_beyond_the_models_reach_is_left_out(build: Build) -> None:
    run = build(prompts=("fox " * 600, "Who?"))
    assert list(run.reporter._questions) == ["Who?"]


# What cannot work


def test_all_that_does_not_fit_the_data_or_the_model_is_said_at_once(
    build: Build, tmp_path: Path
) -> None:
    file = tmp_path / "long.jsonl"
    row = {"prompt": "fox " * 900, "completion": "dog " * 400}
    file.write_text("\n".join([json.dumps(row)] * 3), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        build("data.max_length=4096", data=file)
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["training.rows_under_batch", "training.over_context"]
    assert "at most 512" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "key", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "training.out_of_memory", "batch size 4"),
        (MemoryError(), "training.out_of_memory", "max length 512"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
         "training.out_of_memory", "r = 16"),
        (OSError(errno.ENOSPC, "No space left on device"), "training.disk_full", "Free some space"),
        (SafetensorError("I/O error: No space left on device (os error 28)"),
         "training.disk_full", "Free some space"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
         "training.disk_full", "Free some space"),
        (RuntimeError("shapes\nTraceback: x"), "training.unexpected", "RuntimeError: shapes."),
        (KeyError(), "training.unexpected", "KeyError: KeyError"),
        (RunError("training.disk_full"), "training.disk_full", "full"),
    ],
)  # fmt: skip
def test_an_exception_is_a_sentence(error: BaseException, key: str, words: str) -> None:
    found = explain(error, Recipe())
    assert isinstance(found, StudioError)
    assert found.key == key
    assert words in str(found)
    assert "\n" not in str(found)
    assert found.say("ko") != str(found)


# Stopping


class StopAfter:
    """A stop flag that appears after it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def exists(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_a_stop_does_not_wait_for_an_evaluation(build: Build) -> None:
    changes = ["training.per_device_train_batch_size=1", "data.eval_fraction=0.5"]
    run = build(*changes, "adapter.bias=lora_only")
    batches = 0
    score = run.trainer.compute_loss

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal batches
        batches += 1
        return score(*args, **kwargs)

    run.trainer.compute_loss = counted
    run.reporter._stop = StopAfter(3)  # type: ignore[assignment]
    run.session.train()
    assert batches == 1 + 3, "the rehearsal, and three of the evaluation"
    assert run.session.steps == 0
    assert not run.events("eval")
    assert not run.events("step")


def test_a_stop_gives_up_a_step_that_still_gathers_batches(build: Build) -> None:
    run = build(
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=4",
        "data.eval_fraction=0",
    )
    # One look at the step's beginning, one after each batch but the last, one at its end.
    run.reporter._stop = StopAfter(5 + 2)  # type: ignore[assignment]
    run.session.train()
    assert run.session.steps == 1
    assert len(run.events("step")) == 1


@pytest.mark.parametrize(("bias", "looks", "steps"), [("lora_only", 2, 0), ("none", 2 + 2, 1)])
def test_an_answer_cut_short_by_a_stop_is_not_shown(
    build: Build, bias: str, looks: int, steps: int
) -> None:
    run = build("data.eval_fraction=0", f"adapter.bias={bias}", prompts=("Who?",))
    run.reporter._stop = StopAfter(looks)  # type: ignore[assignment]
    run.session.train()
    assert {event["stage"] for event in run.events("stage")} >= {"sample"}
    assert not run.events("sample")
    assert run.session.steps == steps


def test_time_that_is_up_ends_a_run_and_keeps_what_it_has(build: Build) -> None:
    run = build("training.max_steps=50")
    run.reporter._max_training_s = 0
    run.session.train()
    assert run.reporter.timed_out
    assert run.session.steps == 1
