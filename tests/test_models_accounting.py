"""Our counts against PEFT's own, on real models."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.errors import RecipeError
from lora_studio.models.accounting import count, fan_in_fan_out, target_modules
from lora_studio.models.description import ModelInfo, ModuleGroup
from lora_studio.recipe import AdapterSpec

# peft 0.21 asks transformers 5.23 for a property by its old name; goes with peft's next release.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

TARGETS = {
    "tiny_llama": ["all-linear", ("q_proj", "v_proj"), ("down_proj",)],
    "tiny_gpt2": ["all-linear", ("c_attn",), ("c_proj",), ("c_attn", "c_fc")],
}


def described(*groups: ModuleGroup) -> ModelInfo:
    return ModelInfo(
        source="owner/name",
        architecture="LlamaForCausalLM",
        parameters=sum(group.count * group.d_in * group.d_out + group.bias for group in groups),
        layers=1,
        context_length=128,
        hidden_size=groups[0].d_in,
        vocab_size=400,
        chat_template=True,
        modules=groups,
        biases=sum(group.bias for group in groups),
        size_bytes=0,
    )


def adapted(folder: Path, info: ModelInfo, adapter: AdapterSpec):
    from peft import LoraConfig, get_peft_model

    from lora_studio.models.loading import load_model

    names = target_modules(info, adapter)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        bias=adapter.bias,
        target_modules=names,
        fan_in_fan_out=fan_in_fan_out(info, names),
    )
    return get_peft_model(load_model(folder, "fp32", "cpu"), config)


@pytest.mark.parametrize(
    ("model", "targets"), [(model, names) for model, sets in TARGETS.items() for names in sets]
)
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("r", [1, 8])
def test_counts_are_those_of_peft(request, model, targets, bias, r):
    from lora_studio.models.inspection import inspect_model

    folder = request.getfixturevalue(model)
    info = inspect_model(folder, "tiny")
    adapter = AdapterSpec(r=r, bias=bias, target_modules=targets)

    counted = count(info, adapter)

    theirs = adapted(folder, info, adapter).get_nb_trainable_parameters()
    assert (counted.trainable, counted.total) == theirs
    assert counted.percent == pytest.approx(100 * theirs[0] / theirs[1])


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_file_size_is_predicted_within_five_percent(request, tmp_path, model, bias):
    from lora_studio.models.inspection import inspect_model

    folder = request.getfixturevalue(model)
    info = inspect_model(folder, "tiny")
    adapter = AdapterSpec(r=64, bias=bias)

    adapted(folder, info, adapter).save_pretrained(tmp_path)

    saved = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert count(info, adapter).adapter_bytes == pytest.approx(saved, rel=0.05)


def test_one_square_layer_of_1024_takes_16384_at_rank_8():
    info = described(ModuleGroup(name="q_proj", count=1, d_in=1024, d_out=1024))
    module = count(info, AdapterSpec(r=8)).per_module[0]
    assert (module.full, module.adapter) == (1_048_576, 16_384)


def test_one_square_layer_of_12888_takes_51552_at_rank_2():
    info = described(ModuleGroup(name="q_proj", count=1, d_in=12888, d_out=12888))
    assert count(info, AdapterSpec(r=2)).trainable == 51_552


def test_an_unknown_target_is_named_together_with_the_known_ones():
    info = described(
        ModuleGroup(name="q_proj", count=2, d_in=8, d_out=8),
        ModuleGroup(name="o_proj", count=2, d_in=8, d_out=8),
    )
    with pytest.raises(RecipeError, match=r"c_attn.*q_proj, o_proj"):
        count(info, AdapterSpec(target_modules=("q_proj", "c_attn")))


def test_targets_keep_the_order_of_the_model():
    info = described(
        ModuleGroup(name="q_proj", count=2, d_in=8, d_out=8),
        ModuleGroup(name="o_proj", count=2, d_in=8, d_out=8),
    )
    assert target_modules(info, AdapterSpec(target_modules=("o_proj", "q_proj"))) == [
        "q_proj",
        "o_proj",
    ]


def test_a_description_survives_json():
    import json

    info = described(ModuleGroup(name="c_attn", count=2, d_in=8, d_out=24, kind="Conv1D", bias=48))
    assert ModelInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


def test_description_and_accounting_do_not_import_torch():
    import subprocess
    import sys

    code = (
        "import lora_studio.models.accounting, lora_studio.models.sources, lora_studio.hardware,"
        "sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
