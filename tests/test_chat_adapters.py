"""Adapter folders that are refused before they touch the model, each with its reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lora_studio.adapters.reading import BaseLayout, read_adapter
from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Pane, Sampling
from lora_studio.errors import AdapterError

# See test_chat_engine.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]


def save_adapter(base: Path, folder: Path, *, embeddings: bool = False, **config) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"]} | config
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    wrapped.save_pretrained(folder, save_embedding_layers=embeddings)
    return folder


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Path:
    return save_adapter(tiny_llama, tmp_path / "adapter")


def refusal(base: Path, folder: Path) -> AdapterError:
    """Return the error of loading an adapter, and check that the base answers as before."""
    engine = Engine()
    engine.load(str(base), "fp32", "cpu", {})
    pane = Pane(text="The quick brown")
    before = engine.logits(pane)
    with pytest.raises(AdapterError) as caught:
        engine.load(str(base), "fp32", "cpu", {"a": str(folder)})
    assert engine.logits(pane) == before
    assert not any("lora_" in name for name, _ in engine.model.named_parameters())
    return caught.value


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_folder_that_lacks_a_file_is_refused_even_with_a_bin_file(tiny_llama, adapter, missing):
    (adapter / missing).unlink()
    torch.save({}, adapter / "adapter_model.bin")
    error = refusal(tiny_llama, adapter)
    assert (error.key, error.values["missing"]) == ("adapters.incomplete", missing)


@pytest.mark.parametrize("text", ["{", "[]", '{"peft_type": "LORA", "r": 8'])
def test_a_damaged_configuration_is_refused(tiny_llama, adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError):
        read_adapter(adapter, BaseLayout.of(LlamaForCausalLM.from_pretrained(tiny_llama)))


def test_half_copied_weights_are_refused(tiny_llama, adapter):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert refusal(tiny_llama, adapter).key == "adapters.unreadable"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"peft_type": "IA3"}, "adapters.kind"),
        ({"peft_type": None}, "adapters.kind"),
        ({"trainable_token_indices": [1, 2]}, "adapters.kind"),
        ({"init_lora_weights": "pissa"}, "adapters.rewrites_base"),
        ({"init_lora_weights": "olora"}, "adapters.rewrites_base"),
        ({"target_modules": ["q_proj", "o_proj"]}, "adapters.unusable"),
        ({"r": 8}, "adapters.unusable"),
        ({"target_modules": "("}, "adapters.unusable"),
        ({"target_modules": 7}, "adapters.odd_setting"),
        ({"layers_to_transform": "none"}, "adapters.odd_setting"),
    ],
)
def test_what_the_configuration_says_is_checked(tiny_llama, adapter, change, key):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert refusal(tiny_llama, adapter).key == key


def test_an_adapter_of_a_wider_base_is_refused_with_both_shapes(tiny_llama, tmp_path):
    config = LlamaConfig.from_pretrained(tiny_llama, hidden_size=64)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    error = refusal(tiny_llama, save_adapter(tmp_path / "wide", tmp_path / "a"))
    assert error.key == "adapters.wrong_base"
    assert (error.values["found"], error.values["expected"]) == ("4×64", "4×32")
    assert error.values["trained_on"].endswith("wide")


def test_an_adapter_of_another_family_is_refused_by_the_module_it_misses(tiny_gpt2, adapter):
    error = refusal(tiny_gpt2, adapter)
    assert error.key == "adapters.not_here"
    assert error.values["name"].endswith("self_attn.q_proj")


def test_an_adapter_of_a_deeper_base_is_refused(tiny_llama, tmp_path):
    config = LlamaConfig.from_pretrained(tiny_llama, num_hidden_layers=3)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "deep")
    error = refusal(tiny_llama, save_adapter(tmp_path / "deep", tmp_path / "a"))
    assert error.values["name"] == "model.layers.2.self_attn.q_proj"


def test_wrong_shapes_are_seen_on_a_quantised_base_too(tiny_llama, adapter):
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file(tensors | {key: torch.zeros(3, 4)}, file)
    engine = Engine()
    with pytest.raises(AdapterError, match="3×4"):
        engine.load(str(tiny_llama), "nf4", "cpu", {"a": str(adapter)})


def test_one_bad_adapter_leaves_the_good_ones_answering(tiny_llama, adapter, tmp_path):
    broken = Path(shutil.copytree(adapter, tmp_path / "broken"))
    (broken / "adapter_model.safetensors").unlink()
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", {"good": str(adapter)})
    good = Pane(adapter="good", text="The quick brown")
    before = engine.logits(good)
    with pytest.raises(AdapterError):
        engine.load(str(tiny_llama), "fp32", "cpu", {"good": str(adapter), "bad": str(broken)})
    assert engine.logits(good) == before


def test_a_bad_adapter_at_the_first_load_leaves_the_base_answering(tiny_gpt2, adapter):
    engine = Engine()
    with pytest.raises(AdapterError):
        engine.load(str(tiny_gpt2), "fp32", "cpu", {"a": str(adapter)})
    ask = Pane(messages=[{"role": "user", "content": "Where?"}])
    events = list(engine.generate([ask], Sampling(max_new_tokens=3)))
    assert events[-1]["tokens"] == 3


def test_untouched_embeddings_in_the_file_do_not_cost_the_common_batch(tiny_llama, tmp_path):
    adapter = save_adapter(tiny_llama, tmp_path / "a", embeddings=True)
    assert any("embed_tokens" in name for name in load_file(adapter / "adapter_model.safetensors"))
    weights = read_adapter(adapter, BaseLayout.of(LlamaForCausalLM.from_pretrained(tiny_llama)))
    assert weights.overrides == {}
    assert weights.alone is None


def test_sixteen_bit_adapters_and_embedding_targets_work(tiny_llama, tmp_path):
    folder = save_adapter(
        tiny_llama, tmp_path / "a", embeddings=True, target_modules=["embed_tokens", "q_proj"]
    )
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    engine = Engine()
    engine.load(str(tiny_llama), "fp32", "cpu", {"a": str(folder)})
    text = "The quick brown"
    assert engine.logits(Pane(adapter="a", text=text)) != engine.logits(Pane(text=text))
    lora = [parameter for name, parameter in engine.model.named_parameters() if "lora_" in name]
    assert {parameter.dtype for parameter in lora} == {torch.float32}
