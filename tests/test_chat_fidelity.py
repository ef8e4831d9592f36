"""The base pane is the untouched model, whatever was done to the engine before or beside it."""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from answering import ASK, answer, make_adapter, peft_logits, untouched_logits
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Pane, Sampling
from lora_studio.errors import AdapterError
from lora_studio.models.fingerprint import weights_fingerprint

# See test_chat_engine.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]

PRECISIONS = ("fp32", "bf16", "nf4", "int8")
BASE = Pane(messages=ASK)
ONE = Pane(adapter="one", messages=ASK)
PANES = [
    BASE,
    ONE,
    Pane(adapter="one", strength=0.4, messages=ASK),
    Pane(mixture={"one": 0.7, "two": -1.5}, messages=ASK),
]


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "one": make_adapter(tiny_llama, folder / "one", seed=1),
        "two": make_adapter(tiny_llama, folder / "two", seed=2, r=8),
        "dora": make_adapter(tiny_llama, folder / "dora", seed=3, use_dora=True),
        "head": make_adapter(tiny_llama, folder / "head", seed=4, modules_to_save=["lm_head"]),
    }


def loaded(base: Path, adapters: dict[str, str], precision: str = "fp32") -> Engine:
    engine = Engine()
    engine.load(str(base), precision, "cpu", adapters)
    return engine


def untouched(engine: Engine) -> bool:
    """Tell whether no layer holds a forward, a hook or an adapter of an answer that is over."""
    modules = list(engine.model.modules())
    return not any(
        module._forward_pre_hooks
        or module._forward_hooks
        or (isinstance(module, LoraLayer) and ("forward" in vars(module) or module.active_adapters))
        for module in modules
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_after_answers_strengths_mixtures_and_a_switch(tiny_llama, adapters, precision) -> None:
    truth = untouched_logits(tiny_llama, precision=precision)
    alone = [name for name in ("dora", "head") if (name, precision) != ("dora", "int8")]
    usable = {name: adapters[name] for name in ("one", "two", *alone)}
    engine = loaded(tiny_llama, usable, precision)
    assert engine.logits(BASE) == truth
    answer(engine, PANES, max_new_tokens=4)
    assert engine.logits(BASE) == truth
    for who in alone:
        answer(engine, [BASE, Pane(adapter=who, strength=0.5, messages=ASK)], max_new_tokens=2)
        assert engine.logits(BASE) == truth
    for name in ("two", "one"):
        engine.load(str(tiny_llama), precision, "cpu", {name: adapters[name]})
        engine.logits(Pane(adapter=name, messages=ASK))
        assert engine.logits(BASE) == truth
    assert untouched(engine)


def test_dora_on_an_int8_base_is_refused_and_the_base_is_as_it_was(tiny_llama, adapters) -> None:
    """It would measure weights that bitsandbytes has moved away, and break the base's layers."""
    engine = loaded(tiny_llama, {}, "int8")
    before = engine.logits(BASE)
    with pytest.raises(AdapterError) as caught:
        engine.load(str(tiny_llama), "int8", "cpu", {"dora": adapters["dora"]})
    assert caught.value.key == "chat.dora_in_int8"
    assert engine.logits(BASE) == before


def test_after_an_adapter_in_layers_that_peft_alone_computes(tiny_llama, tmp_path) -> None:
    about = {"target_modules": [], "target_parameters": ["up_proj.weight"]}
    truth = untouched_logits(tiny_llama)
    engine = loaded(tiny_llama, {"one": make_adapter(tiny_llama, tmp_path, seed=5, **about)})
    assert answer(engine, [BASE, ONE], max_new_tokens=2)[2]["mode"] == "sequential"
    assert engine.logits(ONE) != truth
    assert untouched(engine)
    assert engine.logits(BASE) == truth


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
@pytest.mark.parametrize("who", ["one", "dora", "head"])
def test_after_an_exception_inside_generate(
    tiny_llama, adapters, precision, who, monkeypatch
) -> None:
    truth = untouched_logits(tiny_llama, precision=precision)
    engine = loaded(tiny_llama, adapters, precision)
    pane = Pane(adapter=who, strength=1.5, messages=ASK)
    before = engine.logits(pane)
    calls = itertools.count()
    norm = type(engine.model.model.norm).forward

    def broken(hidden):
        if next(calls) == 2:
            raise RuntimeError("broken midway")
        return norm(engine.model.model.norm, hidden)

    with monkeypatch.context() as patch:
        patch.setattr(engine.model.model.norm, "forward", broken)
        with pytest.raises(RuntimeError, match="broken midway"):
            answer(engine, [BASE, pane])
    assert untouched(engine)
    assert engine.logits(BASE) == truth
    assert engine.logits(pane) == before


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_after_a_stop_and_after_closing_early(tiny_llama, adapters, precision) -> None:
    truth = untouched_logits(tiny_llama, precision=precision)
    engine = loaded(tiny_llama, adapters, precision)
    for end in (engine.stop, None):
        events = engine.generate(PANES, Sampling(max_new_tokens=300))
        for event in events:
            if "text" in event:
                if end is None:
                    break
                end()
        events.close()
        assert engine.logits(BASE) == truth
    assert untouched(engine)


def test_after_four_people_at_once_and_to_each_of_them(tiny_llama, adapters) -> None:
    truth = untouched_logits(tiny_llama)
    engine = loaded(tiny_llama, adapters)
    asked = [
        [BASE, ONE],
        [BASE, Pane(adapter="dora", messages=ASK)],
        [Pane(mixture={"one": 1, "two": 1}, messages=ASK), BASE],
        [Pane(adapter="head", strength=0.5, messages=ASK), BASE],
    ]
    alone = [answer(engine, panes, max_new_tokens=8)[0] for panes in asked]
    with ThreadPoolExecutor(4) as people:
        found = list(
            people.map(lambda panes: answer(engine, panes, max_new_tokens=8)[0], asked * 2)
        )
    assert found == alone * 2
    assert engine.logits(BASE) == truth
    assert untouched(engine)


def test_after_a_training_on_the_same_files(tiny_llama, tmp_path) -> None:
    """A training writes its adapter beside the base, and never into it."""
    from peft import LoraConfig, get_peft_model

    truth = untouched_logits(tiny_llama)
    fingerprint = weights_fingerprint(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    wrapped = get_peft_model(model, config)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1)
    ids = torch.randint(5, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        wrapped(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.save_pretrained(tmp_path / "trained", save_embedding_layers=False)
    engine = loaded(tiny_llama, {"trained": str(tmp_path / "trained")})
    assert weights_fingerprint(tiny_llama) == fingerprint
    trained = Pane(adapter="trained", messages=ASK)
    expected = peft_logits(tiny_llama, tmp_path / "trained")
    assert engine.logits(trained) == pytest.approx(expected, abs=1e-4)
    answer(engine, [BASE, trained], max_new_tokens=4)
    assert engine.logits(BASE) == truth


def test_the_base_beside_a_broken_adapter_of_one_batch_is_still_the_base(
    tiny_llama, adapters
) -> None:
    engine = loaded(tiny_llama, adapters)
    alone = answer(engine, [BASE])[0][0]
    for name, parameter in engine.model.named_parameters():
        if "lora_B" in name and "adapter0" in name:
            parameter.data.fill_(float("nan"))
    assert answer(engine, [ONE, BASE, ONE])[0][1] == alone


def test_a_base_whose_weights_were_replaced_in_its_folder_is_loaded_anew(
    tiny_llama, adapters, tmp_path
) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    fingerprints = {"one": weights_fingerprint(base)}
    engine = loaded(base, {})
    assert engine.logits(BASE) == untouched_logits(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(base)
    with pytest.raises(AdapterError) as caught:
        engine.load(str(base), "fp32", "cpu", {"one": adapters["one"]}, fingerprints=fingerprints)
    assert caught.value.key == "chat.other_base"
    assert engine.logits(BASE) == untouched_logits(base) != untouched_logits(tiny_llama)


def test_an_adapter_of_other_weights_of_the_same_shape_is_refused_by_fingerprint(
    tiny_llama, adapters, tmp_path
) -> None:
    other = Path(shutil.copytree(tiny_llama, tmp_path / "other"))
    model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(other)
    fingerprints = {"one": weights_fingerprint(tiny_llama)}
    engine = Engine()
    one = {"one": adapters["one"]}
    engine.load(str(tiny_llama), "fp32", "cpu", one, fingerprints=fingerprints)
    engine.load(str(other), "fp32", "cpu", {})
    before = engine.logits(BASE)
    with pytest.raises(AdapterError) as caught:
        engine.load(str(other), "fp32", "cpu", one, fingerprints=fingerprints)
    assert caught.value.key == "chat.other_base"
    assert caught.value.values["trained_on"] == str(tiny_llama)
    assert engine.logits(BASE) == before
    engine.load(str(other), "fp32", "cpu", {}, fingerprints=fingerprints)
    engine.load(str(tiny_llama), "fp32", "cpu", one, fingerprints=fingerprints)
    engine.logits(ONE)
