"""Class probabilities of base and adapters out of one loaded classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sorting import LABELS, SEED, make_sorter, write_run
from transformers import AutoTokenizer

from lora_studio.cases.machine import Machine
from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Pane, Sampling
from lora_studio.errors import AdapterError, StudioError
from lora_studio.models.loading import load_classifier
from lora_studio.settings import Settings
from lora_studio.studio import Studio

# See test_chat_engine.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]

TEXT = "A coffee shop near the city centre."


def make_writer(base: Path, folder: Path) -> str:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=False)
    return str(folder)


def truth(base: Path, folder: str | None = None, precision: str = "fp32") -> list[float]:
    """Return what transformers and PEFT themselves say."""
    model = load_classifier(base, precision, "cpu", labels=LABELS, seed=SEED)
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder).eval()
    ids = AutoTokenizer.from_pretrained(base)(TEXT, return_tensors="pt")
    with torch.inference_mode():
        return torch.softmax(model(ids["input_ids"]).logits[0].float(), -1).tolist()


def loaded(base: Path, adapters: dict[str, str], labels=LABELS, seed=SEED) -> Engine:
    engine = Engine()
    engine.load(str(base), "fp32", "cpu", adapters, labels=labels, seed=seed)
    return engine


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_each_side_says_what_transformers_and_peft_say(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = request.getfixturevalue(model)
    one, two = (make_sorter(base, tmp_path / str(seed), seed=seed) for seed in (1, 2))
    engine = loaded(base, {"one": one, "two": two})
    untouched = truth(base)
    found = engine.classify(TEXT, [None, "one", "two", None])
    tokens = AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]
    assert engine.classify(tokens, [None, "one", "two", None]) == found
    assert found[0] == pytest.approx(untouched, abs=1e-6)
    assert found[1] == pytest.approx(truth(base, one), abs=1e-5)
    assert found[2] == pytest.approx(truth(base, two), abs=1e-5)
    assert found[3] == found[0]
    assert found[1] != pytest.approx(found[0], abs=1e-2)
    assert all(sum(shares) == pytest.approx(1) for shares in found)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4"])
def test_a_dora_adapter_sorts_in_every_number_format(
    tiny_llama: Path, tmp_path: Path, precision: str
) -> None:
    folder = make_sorter(tiny_llama, tmp_path / "dora", seed=3, use_dora=True)
    engine = Engine()
    engine.load(str(tiny_llama), precision, "cpu", {"dora": folder}, labels=LABELS, seed=SEED)
    found = engine.classify(TEXT, [None, "dora"])
    near = 1e-5 if precision == "fp32" else 0.02
    assert found[0] == pytest.approx(truth(tiny_llama, precision=precision), abs=1e-6)
    assert found[1] == pytest.approx(truth(tiny_llama, folder, precision), abs=near)


def test_the_head_stands_in_for_its_adapter_only_also_after_an_exception(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = loaded(tiny_llama, {"one": make_sorter(tiny_llama, tmp_path / "one", seed=1)})
    head = engine.model.score.weight.detach().clone()
    before = engine.classify(TEXT, [None])
    with monkeypatch.context() as patch:
        patch.setattr(engine.model.score, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.classify(TEXT, ["one"])
    assert torch.equal(engine.model.score.weight, head)
    assert engine.classify(TEXT, [None]) == before


def test_another_seed_is_another_untrained_head_and_another_task_another_model(
    tiny_llama: Path,
) -> None:
    engine = loaded(tiny_llama, {})
    first, model = engine.classify(TEXT, [None]), engine.model
    engine.load(str(tiny_llama), "fp32", "cpu", {}, labels=LABELS, seed=SEED)
    assert engine.model is model
    engine.load(str(tiny_llama), "fp32", "cpu", {}, labels=LABELS, seed=SEED + 1)
    assert engine.classify(TEXT, [None]) != first
    engine.load(str(tiny_llama), "fp32", "cpu", {}, labels=LABELS[:2], seed=SEED)
    assert len(engine.classify(TEXT, [None])[0]) == 2
    engine.load(str(tiny_llama), "fp32", "cpu", {})
    assert len(engine.logits(Pane(text=TEXT))) == 400


def test_adapters_of_the_other_task_are_refused_and_leave_the_rest_as_it_was(
    tiny_llama: Path, tmp_path: Path
) -> None:
    sorter = make_sorter(tiny_llama, tmp_path / "sorter", seed=1)
    writer = make_writer(tiny_llama, tmp_path / "writer")
    engine = loaded(tiny_llama, {"sorter": sorter})
    before = engine.classify(TEXT, ["sorter"])
    with pytest.raises(AdapterError) as caught:
        engine.load(str(tiny_llama), "fp32", "cpu", {"w": writer}, labels=LABELS, seed=SEED)
    assert caught.value.key == "adapters.writes"
    assert engine.classify(TEXT, ["sorter"]) == before
    with pytest.raises(AdapterError) as caught:
        engine.load(str(tiny_llama), "fp32", "cpu", {"sorter": sorter})
    assert caught.value.key == "adapters.sorts"


def test_an_adapter_of_other_classes_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = make_sorter(tiny_llama, tmp_path / "two", seed=1, labels=("no", "yes"))
    with pytest.raises(AdapterError) as caught:
        loaded(tiny_llama, {"two": folder})
    assert caught.value.key == "adapters.wrong_base"
    assert (caught.value.values["found"], caught.value.values["expected"]) == ("2×32", "3×32")


@pytest.mark.parametrize(
    ("text", "adapters", "key"),
    [
        (" \n", [None], "chat.empty_prompt"),
        ("The quick brown fox. " * 300, [None], "chat.text_too_long"),
        (TEXT, [], "chat.no_panes"),
        (TEXT, ["nobody"], "chat.unknown_adapter"),
    ],
)
def test_what_cannot_be_sorted_is_a_sentence(tiny_llama: Path, text, adapters, key) -> None:
    with pytest.raises(StudioError) as caught:
        loaded(tiny_llama, {}).classify(text, adapters)
    assert caught.value.key == key


def test_a_classifier_writes_nothing_and_a_writer_has_no_classes(tiny_llama: Path) -> None:
    engine = Engine()
    with pytest.raises(StudioError) as caught:
        engine.classify(TEXT, [None])
    assert caught.value.key == "chat.not_loaded"
    engine.load(str(tiny_llama), "fp32", "cpu", {})
    with pytest.raises(StudioError) as caught:
        engine.classify(TEXT, [None])
    assert caught.value.key == "chat.no_classes"
    engine.load(str(tiny_llama), "fp32", "cpu", {}, labels=LABELS)
    with pytest.raises(StudioError) as caught:
        list(engine.generate([Pane(text=TEXT)], Sampling()))
    assert caught.value.key == "chat.only_classes"


def test_running_out_of_memory_is_a_sentence(tiny_llama: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    engine = loaded(tiny_llama, {})
    monkeypatch.setattr(engine.model.score, "forward", full)
    with pytest.raises(StudioError) as caught:
        engine.classify(TEXT, [None])
    assert caught.value.key == "chat.out_of_memory"


def test_the_studio_asks_both_sides_of_a_run_and_refuses_the_other_kind_of_question(
    tiny_llama: Path, settings: Settings
) -> None:
    run = write_run(settings.runs / "sort-1", str(tiny_llama))
    make_sorter(tiny_llama, run.adapter, seed=1)
    writer = write_run(settings.runs / "write-1", str(tiny_llama), labels=())
    make_writer(tiny_llama, writer.adapter)
    studio = Studio(settings, Machine.open(settings, isolated=False))
    *stages, found = studio.answers.classify("sort-1", TEXT)
    assert [event["stage"] for event in stages][-1] == "load"
    assert found["labels"] == list(LABELS)
    assert found["base"] == pytest.approx(truth(tiny_llama), abs=1e-6)
    assert found["adapter"] == pytest.approx(truth(tiny_llama, str(run.adapter)), abs=1e-5)
    with pytest.raises(StudioError) as caught:
        list(studio.answers.classify("write-1", TEXT))
    assert caught.value.key == "chat.no_classes"
    panes = [Pane(text=TEXT), Pane(adapter="sort-1", text=TEXT)]
    with pytest.raises(StudioError) as caught:
        list(studio.answers.ask("sort-1", panes, Sampling()))
    assert caught.value.key == "chat.only_classes"
    assert studio._machine.accelerator.holder() is None
