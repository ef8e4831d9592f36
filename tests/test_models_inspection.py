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
    assert info.modules[0].path == "model.layers.{}.self_attn.q_proj"
    assert info.modules[0].indices == ("0-1",)
    assert [(m.name, m.path, m.role, m.rows, m.columns) for m in info.whole_modules] == [
        ("embed_tokens", "model.embed_tokens", "input", 400, 32),
        ("lm_head", "lm_head", "output", 400, 32),
    ]


def test_blocks_that_differ_are_groups_of_their_own() -> None:
    from torch import nn

    from lora_studio.models.inspection import module_groups

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks = [nn.Module() for _ in range(4)]
            for number, block in enumerate(blocks):
                experts = [nn.Linear(2, 3) for _ in range(2 + number // 2)]
                block.experts = nn.ModuleList(experts)
            self.net = nn.Module()
            self.net.blocks = nn.ModuleList(blocks)
            self.final = nn.Linear(3, 1, bias=False)

        def get_output_embeddings(self) -> None:
            return None

    net = Net()
    groups = module_groups(net)
    assert [(g.indices, g.count, g.bias) for g in groups] == [
        (("0-1", "0-1"), 4, 12),
        (("2-3", "0-2"), 6, 18),
        ((), 1, 0),
    ]
    expected = {path for path, module in net.named_modules() if isinstance(module, nn.Linear)}
    assert {path for group in groups for path in group.paths} == expected


def test_experts_kept_as_one_block_and_what_peft_takes_for_them_are_no_targets(tmp_path) -> None:
    from transformers import Qwen3MoeConfig

    from lora_studio.models.inspection import inspect_model

    Qwen3MoeConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=24, mlp_only_layers=[0], decoder_sparse_step=1,
    ).save_pretrained(tmp_path)  # fmt: skip
    info = inspect_model(tmp_path, "moe")

    assert info.target_names == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert info.expert_parameters == 4 * (2 * 24 * 32 + 32 * 24)


def test_gpt2_has_two_groups_named_c_proj_which_their_place_tells_apart(tiny_gpt2):
    from lora_studio.models.inspection import inspect_model

    info = inspect_model(tiny_gpt2, "gpt2")

    assert groups_of(info) == [
        ("c_attn", 2, 32, 96, "Conv1D", 192),
        ("c_proj", 2, 32, 32, "Conv1D", 64),
        ("c_fc", 2, 32, 128, "Conv1D", 256),
        ("c_proj", 2, 128, 32, "Conv1D", 64),
    ]
    assert info.target_names == ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")
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
