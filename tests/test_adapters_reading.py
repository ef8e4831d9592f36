"""Adapters of unknown origin: each that cannot be used is refused in words, and runs nothing."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from lora_studio.adapters import weights
from lora_studio.adapters.configuration import (
    CONFIG,
    FOREIGN,
    NOTES,
    SETTINGS,
    WEIGHTS,
)
from lora_studio.adapters.factors import Factors, factors_of
from lora_studio.adapters.reading import BaseLayout, read_adapter, read_config
from lora_studio.adapters.shrinking import shrink
from lora_studio.adapters.weights import read_tensors
from lora_studio.chat.engine import Engine
from lora_studio.errors import AdapterError

BASE_NAME = "somebody/tiny"
MODULES = {"q_proj": (32, 32), "v_proj": (32, 16)}
"""Inputs and outputs of what is adapted in conftest's tiny Llama."""
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def layout(tiny_llama: Path) -> BaseLayout:
    return BaseLayout.of(LlamaForCausalLM.from_pretrained(tiny_llama))


@pytest.fixture
def adapter(layout: BaseLayout, tmp_path: Path) -> Path:
    """An adapter as PEFT writes it, of rank 4."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    tensors = {}
    for name, module in layout.modules.items():
        if name.rpartition(".")[2] in MODULES:
            key = f"base_model.model.{name}.lora_"
            tensors[f"{key}A.weight"] = torch.randn(4, module.in_features)
            tensors[f"{key}B.weight"] = torch.randn(module.out_features, 4)
    save_file(tensors, folder / WEIGHTS)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
        "target_modules": sorted(MODULES), "base_model_name_or_path": BASE_NAME,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    return folder


def configure(adapter: Path, **settings: Any) -> None:
    file = adapter / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | settings), encoding="utf-8")


def read_factors(adapter: Path) -> list[Factors]:
    return factors_of(adapter, read_config(adapter), read_tensors(adapter))


def refused(ask: Callable[[], object], key: str) -> str:
    """Return the sentence of a refusal."""
    with pytest.raises(AdapterError) as caught:
        ask()
    assert caught.value.key == key
    return str(caught.value)


def first(tensors: Tensors, side: str = "A") -> str:
    return next(name for name in sorted(tensors) if f".lora_{side}." in name)


def missing(tensors: Tensors) -> None:
    del tensors[first(tensors, "B")]


def surplus(tensors: Tensors) -> None:
    name = first(tensors).replace("q_proj", "k_proj")
    tensors[name] = torch.zeros(4, 32)


def empty(tensors: Tensors) -> None:
    for side, shape in (("A", (0, 32)), ("B", (32, 0))):
        tensors[first(tensors, side)] = torch.zeros(shape)


def scalar(tensors: Tensors) -> None:
    tensors[first(tensors)] = torch.tensor(1.0)


def foreign(tensors: Tensors) -> None:
    tensors["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"] = torch.zeros(4, 32)


def not_a_number(tensors: Tensors) -> None:
    tensors[first(tensors)][1, 2] = float("nan")


def infinite(tensors: Tensors) -> None:
    name = first(tensors, "B")
    tensors[name] = torch.full_like(tensors[name], float("inf")).half()


def in_eight_bits(tensors: Tensors) -> None:
    name = first(tensors)
    tensors[name] = torch.full((4, 32), float("nan")).to(torch.float8_e4m3fn)


def with_imaginary_parts(tensors: Tensors) -> None:
    tensors[first(tensors)] = torch.zeros(4, 32, dtype=torch.complex64)


def whole_numbers(tensors: Tensors) -> None:
    tensors[first(tensors)] = torch.zeros(4, 32, dtype=torch.int32)


def test_an_adapter_that_is_whole_is_read(adapter: Path, layout: BaseLayout) -> None:
    assert len(read_adapter(adapter, layout).lora) == 2 * len(read_factors(adapter)) > 0


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (not_a_number, "adapters.not_finite", "earlier checkpoint"),
        (infinite, "adapters.not_finite", "earlier checkpoint"),
        (in_eight_bits, "adapters.not_finite", "earlier checkpoint"),
        (with_imaginary_parts, "adapters.odd_format", "complex64"),
        (whole_numbers, "adapters.odd_format", "int32"),
        (missing, "adapters.unusable", "missing tensors"),
        (surplus, "adapters.unusable", "unexpected tensors"),
        (empty, "adapters.unusable", "saved completely"),
        (scalar, "adapters.wrong_base", BASE_NAME),
        (foreign, "adapters.not_here", BASE_NAME),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be_used_are_refused_in_words(
    tiny_llama: Path, adapter: Path, change: Callable[[Tensors], None], key: str, words: str
) -> None:
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)
    engine = Engine()
    load = (str(tiny_llama), "fp32", "cpu", {"a": str(adapter)})
    assert words in refused(lambda: engine.load(*load), key)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"r": 0}, "r"),
        ({"r": -4}, "r"),
        ({"r": "many"}, "r"),
        ({"r": True}, "r"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern"),
        ({"rank_pattern": [4]}, "rank_pattern"),
        ({"rank_pattern": 5}, "rank_pattern"),
        ({"rank_pattern": True}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 10**400}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": [1]}}, "alpha_pattern"),
        ({"alpha_pattern": "high"}, "alpha_pattern"),
        ({"exclude_modules": 7}, "exclude_modules"),
        ({"layers_pattern": 3}, "layers_pattern"),
        ({"layers_pattern": [[]]}, "layers_pattern"),
        ({"layers_to_transform": "all"}, "layers_to_transform"),
        ({"layers_to_transform": [1.5]}, "layers_to_transform"),
        ({"target_modules": [1, 2]}, "target_modules"),
        ({"target_modules": {"q_proj": 1}}, "target_modules"),
        ({"target_parameters": "all"}, "target_parameters"),
        ({"modules_to_save": 5}, "modules_to_save"),
        ({"bias": {"all": True}}, "bias"),
        ({"bias": "some"}, "bias"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"use_dora": 1}, "use_dora"),
        ({"fan_in_fan_out": []}, "fan_in_fan_out"),
        ({"lora_dropout": 2}, "lora_dropout"),
        ({"lora_bias": "none"}, "lora_bias"),
        ({"init_lora_weights": {"pissa": 1}}, "init_lora_weights"),
        ({"task_type": ["CAUSAL_LM"]}, "task_type"),
        ({"base_model_name_or_path": ["a", "list"]}, "base_model_name_or_path"),
    ],
)
def test_settings_of_another_kind_are_named(
    adapter: Path, layout: BaseLayout, settings: dict[str, Any], name: str
) -> None:
    configure(adapter, **settings)
    for read in (lambda: read_adapter(adapter, layout), lambda: read_factors(adapter)):
        assert f"{name} in its" in refused(read, "adapters.odd_setting")


@pytest.mark.parametrize("name", ["r", "lora_alpha"])
def test_a_setting_that_is_needed_is_not_guessed(
    adapter: Path, layout: BaseLayout, name: str
) -> None:
    said = json.loads((adapter / CONFIG).read_text())
    del said[name]
    (adapter / CONFIG).write_text(json.dumps(said), encoding="utf-8")
    assert f"{name} in its" in refused(
        lambda: read_adapter(adapter, layout), "adapters.odd_setting"
    )


def test_weights_that_may_not_be_read_are_said_in_words(
    adapter: Path, layout: BaseLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(weights, "safe_open", denied)
    monkeypatch.setattr(weights.zipfile, "is_zipfile", denied)
    assert "Permission" in refused(lambda: read_adapter(adapter, layout), "adapters.unreadable")


def test_every_setting_of_peft_is_believed_refused_or_left_out() -> None:
    known = {one.name for one in dataclasses.fields(LoraConfig)}
    assert known == {*SETTINGS, *FOREIGN, *NOTES}
    assert not SETTINGS.keys() & {*FOREIGN, *NOTES}


def test_settings_of_a_later_peft_are_named_unless_they_are_off(
    adapter: Path, layout: BaseLayout
) -> None:
    configure(adapter, use_brand_new=False, brand_new_config=None, peft_version="99.0")
    assert read_adapter(adapter, layout).lora
    configure(adapter, use_brand_new=True, brand_new_size=16)
    sentence = refused(lambda: read_adapter(adapter, layout), "adapters.unknown_settings")
    assert "brand_new_size, use_brand_new" in sentence and "Upgrade PEFT" in sentence


@pytest.mark.parametrize(
    "settings",
    [
        {"base_model_name_or_path": "../../../etc"},
        {"base_model_name_or_path": None},
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "this"}},
        {"revision": "../../main"},
        {"corda_config": {"cache_file": "/etc/x"}, "eva_config": 5, "loftq_config": ["/etc"]},
        {"runtime_config": {"ephemeral_gpu_offload": True}},
    ],
)
def test_what_a_configuration_points_to_is_not_followed(
    tiny_llama: Path, adapter: Path, settings: dict[str, Any]
) -> None:
    configure(adapter, **settings)
    Engine().load(str(tiny_llama), "fp32", "cpu", {"a": str(adapter)})
    assert "this" not in sys.modules


def test_a_configuration_nested_without_end_is_refused(adapter: Path, layout: BaseLayout) -> None:
    (adapter / CONFIG).write_text("[" * 100_000, encoding="utf-8")
    assert "damaged" in refused(lambda: read_adapter(adapter, layout), "adapters.unreadable")


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_model.bin"])
@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_a_pickle_is_refused_and_not_run(
    adapter: Path, layout: BaseLayout, tmp_path: Path, name: str, by: str
) -> None:
    (adapter / WEIGHTS).unlink()
    trap = {"base_model.model.lora_A.weight": Trap(tmp_path / "sprung")}
    if by == "torch":
        torch.save(trap, adapter / name)
    else:
        (adapter / name).write_bytes(pickle.dumps(trap))
    key = "adapters.pickled" if name == WEIGHTS else "adapters.incomplete"
    for read in (
        lambda: read_adapter(adapter, layout),
        lambda: read_factors(adapter),
        lambda: shrink(adapter, tmp_path / "small", 2),
    ):
        assert "run code" in refused(read, key)
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "small").exists()
