"""What inspection reads from real models without their weights."""

from __future__ import annotations

import json
import shutil

import pytest

from lora_studio.errors import ModelError
from lora_studio.models.description import ModuleGroup


def groups_of(info):
    return [(g.name, g.count, g.d_in, g.d_out, g.kind, g.bias) for g in info.modules]


def test_a_llama_has_seven_groups_and_no_head(tiny_llama):
    from lora_studio.models.inspection import inspect_model

    info = inspect_model(tiny_llama, "starter")

    assert groups_of(info) == [
        ("q_proj", 2, 32, 32, "Linear", 0),
        ("k_proj", 2, 32, 16, "Linear", 0),
        ("v_proj", 2, 32, 16, "Linear", 0),
        ("o_proj", 2, 32, 32, "Linear", 0),
        ("gate_proj", 2, 32, 64, "Linear", 0),
        ("up_proj", 2, 32, 64, "Linear", 0),
        ("down_proj", 2, 64, 32, "Linear", 0),
    ]
    assert (info.source, info.architecture, info.layers) == ("starter", "LlamaForCausalLM", 2)
    assert (info.context_length, info.hidden_size, info.vocab_size) == (512, 32, 400)
    assert info.chat_template


def test_gpt2_has_two_groups_named_c_proj_and_only_one_target_of_that_name(tiny_gpt2):
    from lora_studio.models.inspection import inspect_model

    info = inspect_model(tiny_gpt2, "gpt2")

    assert groups_of(info) == [
        ("c_attn", 2, 32, 96, "Conv1D", 192),
        ("c_proj", 2, 32, 32, "Conv1D", 64),
        ("c_fc", 2, 32, 128, "Conv1D", 256),
        ("c_proj", 2, 128, 32, "Conv1D", 64),
    ]
    assert info.target_names == ("c_attn", "c_proj", "c_fc")
    assert not info.chat_template


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_parameters_and_biases_are_those_of_the_loaded_model(request, model):
    from lora_studio.models.inspection import inspect_model
    from lora_studio.models.loading import load_model

    folder = request.getfixturevalue(model)
    info = inspect_model(folder, "tiny")
    loaded = load_model(folder, "fp32", "cpu")

    assert info.parameters == sum(p.numel() for p in loaded.parameters())
    biases = [p.numel() for name, p in loaded.named_parameters() if name.endswith(".bias")]
    assert info.biases == sum(biases)


def test_weights_need_not_be_there(tiny_gpt2, tmp_path):
    from lora_studio.models.inspection import inspect_model

    folder = shutil.copytree(tiny_gpt2, tmp_path / "model", ignore=lambda *_: {"model.safetensors"})
    info = inspect_model(folder, "gpt2")

    assert info.size_bytes == 4 * info.parameters
    assert isinstance(info.modules[0], ModuleGroup)


def test_the_licence_is_read_from_the_model_card(tiny_llama, tmp_path):
    from lora_studio.models.inspection import inspect_model

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# Hi\n")

    assert inspect_model(folder, "x").licence == "apache-2.0"
    assert inspect_model(tiny_llama, "x").licence is None


def test_a_configuration_that_makes_no_sense_is_a_sentence(tiny_llama, tmp_path):
    from lora_studio.models.inspection import inspect_model

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-type"}))

    with pytest.raises(ModelError, match="could not be read"):
        inspect_model(folder, "x")
