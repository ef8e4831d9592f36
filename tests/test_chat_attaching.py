"""Adapters put in beside others: filled into the same layers, or left to PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from answering import ASK, make_adapter, peft_logits, untouched_logits
from safetensors.torch import load_file, save_file

from lora_studio.chat import attaching, base
from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Pane
from lora_studio.errors import AdapterError, StudioError

# See test_chat_engine.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]

KINDS = {
    "another rank": {"r": 8},
    "rslora": {"r": 8, "use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6},
        "alpha_pattern": {"v_proj": 24},
    },
    "fewer layers": {"target_modules": ["v_proj"]},
    "some layers": {"layers_to_transform": [1]},
}


@pytest.fixture
def engine(tiny_llama: Path, tmp_path: Path) -> Engine:
    engine = Engine()
    first = make_adapter(tiny_llama, tmp_path / "first", seed=1)
    engine.load(str(tiny_llama), "fp32", "cpu", {"first": first})
    return engine


def load(engine: Engine, base: Path, **adapters: str) -> None:
    engine.load(str(base), "fp32", "cpu", adapters)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_filled_answers_as_peft_does(
    engine, tiny_llama, tmp_path, kind, monkeypatch
) -> None:
    def not_wanted(*_, **__):
        raise AssertionError("PEFT went through the model again")

    folder = make_adapter(tiny_llama, tmp_path / "second", seed=2, **KINDS[kind])
    first = engine.logits(Pane(adapter="first", messages=ASK))
    monkeypatch.setattr(attaching, "_inject", not_wanted)
    load(engine, tiny_llama, first=str(tmp_path / "first"), second=folder)
    expected = peft_logits(tiny_llama, folder)
    assert engine.logits(Pane(adapter="second", messages=ASK)) == pytest.approx(expected, abs=1e-5)
    assert engine.logits(Pane(adapter="first", messages=ASK)) == first
    load(engine, tiny_llama, second=folder)
    assert engine.logits(Pane(adapter="second", messages=ASK)) == pytest.approx(expected, abs=1e-5)
    load(engine, tiny_llama)
    assert not any("lora_" in name for name, _ in engine.model.named_parameters())
    assert engine.logits(Pane(messages=ASK)) == untouched_logits(tiny_llama)


@pytest.mark.parametrize(
    "kind", [{"target_modules": ["q_proj", "o_proj"]}, {"use_dora": True}, {"lora_bias": True}]
)
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
@pytest.mark.filterwarnings("ignore:Adapter .default..*have invalid shape")
def test_other_layers_and_kinds_are_left_to_peft(engine, tiny_llama, tmp_path, kind) -> None:
    folder = make_adapter(tiny_llama, tmp_path / "second", seed=2, **kind)
    load(engine, tiny_llama, first=str(tmp_path / "first"), second=folder)
    expected = peft_logits(tiny_llama, folder)
    assert engine.logits(Pane(adapter="second", messages=ASK)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("damage", ["fewer tensors", "more tensors", "another rank"])
def test_what_does_not_fit_its_configuration_is_refused_beside_a_good_one(
    engine, tiny_llama, tmp_path, damage
) -> None:
    folder = Path(make_adapter(tiny_llama, tmp_path / "second", seed=2))
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, settings = load_file(file), json.loads(config.read_text())
    if damage == "fewer tensors":
        tensors.pop(next(iter(tensors)))
    elif damage == "more tensors":
        settings["target_modules"] = ["q_proj"]
    else:
        settings["r"] = 9
    save_file(tensors, file)
    config.write_text(json.dumps(settings))
    first = engine.logits(Pane(adapter="first", messages=ASK))
    with pytest.raises(AdapterError):
        load(engine, tiny_llama, first=str(tmp_path / "first"), second=str(folder))
    assert engine.logits(Pane(adapter="first", messages=ASK)) == first
    assert engine.logits(Pane(messages=ASK)) == untouched_logits(tiny_llama)
    lora = [name for name, _ in engine.model.named_parameters() if "lora_" in name]
    assert all(".adapter0." in name for name in lora)


def test_where_memory_runs_out_nothing_of_the_adapter_stays(
    engine, tiny_llama, tmp_path, monkeypatch
) -> None:
    folder = make_adapter(tiny_llama, tmp_path / "second", seed=2)
    names = [name for name, _ in engine.model.named_parameters()]
    put_in = attaching.put_in

    def full(*about: object) -> None:
        put_in(*about)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(base, "put_in", full)
    with pytest.raises(StudioError) as caught:
        load(engine, tiny_llama, first=str(tmp_path / "first"), second=folder)
    assert caught.value.key == "chat.out_of_memory"
    assert [name for name, _ in engine.model.named_parameters()] == names


def test_a_tokenizer_that_cannot_be_read_leaves_nothing_in_the_model(tiny_gpt2, tmp_path) -> None:
    folders = {
        name: make_adapter(
            tiny_gpt2, tmp_path / name, seed=2, fan_in_fan_out=True, tokenizer=tiny_gpt2
        )
        for name in ("good", "torn")
    }
    engine = Engine()
    load(engine, tiny_gpt2)
    (tmp_path / "torn" / "tokenizer_config.json").write_text("{")
    with pytest.raises(StudioError):
        load(engine, tiny_gpt2, **folders)
    assert not any("lora_" in name for name, _ in engine.model.named_parameters())
