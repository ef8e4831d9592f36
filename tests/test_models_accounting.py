"""Our counts against PEFT's own, on real models of every usual build."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lora_studio.errors import RecipeError
from lora_studio.models.accounting import (
    count,
    fan_in_fan_out,
    keeps_tied,
    peft_targets,
    presets,
    problems,
    target_modules,
    warnings,
)
from lora_studio.models.description import ModelInfo, ModuleGroup, numbers_in, ranges
from lora_studio.recipe import AdapterSpec

pytestmark = [
    # peft 0.21 asks transformers 5.23 for a property by its old name; goes with peft's next release
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # GPT-2's wte is trained apart from the head, which PEFT cannot tie by that name.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
BUILDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "gpt2": {"vocab_size": 300, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {},
    "gemma3_text": {},
    "phi": {},
    "phi3": {},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 24, **EXPERTS},
    "qwen3_moe": {"num_experts": 4, "mlp_only_layers": [0], **EXPERTS},
    "olmoe": {"num_experts": 4, **EXPERTS},
    "gpt_oss": {"num_local_experts": 4, "layer_types": ["full_attention"] * 3},
}
CHOICES: dict[str, dict[str, Any]] = {
    "all": {},
    "all biases": {"bias": "all"},
    "biases of its layers": {"bias": "lora_only", "layers_to_transform": (1,)},
    "dora": {"use_dora": True, "r": 3},
    "some layers": {"layers_to_transform": (0, 2)},
    "ranks": {"rank_pattern": {"NAME": 2, r".*\.1\..*": 5}, "alpha_pattern": {"NAME": 4}},
    "expression": {"target_modules": r".*\.(0|2)\..*"},
    "expression in one layer": {"target_modules": r".*(attn|att).*", "layers_to_transform": (2,)},
    "one name": {"target_modules": ("NAME",), "bias": "all"},
    "one path": {"target_modules": ("PATH",), "layers_to_transform": (1,)},
    "embedding": {"modules_to_save": ("EMBEDDING",), "bias": "all"},
    "head": {"modules_to_save": ("HEAD",), "target_modules": ("NAME",), "bias": "all"},
    "both": {"modules_to_save": ("EMBEDDING", "HEAD"), "bias": "lora_only"},
    "everything": {
        "r": 7, "use_dora": True, "bias": "all", "layers_to_transform": (1, 2),
        "rank_pattern": {"NAME": 9}, "modules_to_save": ("HEAD",),
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=BUILDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model's configuration and our description of it."""
    from transformers import AutoConfig

    from lora_studio.models.inspection import inspect_model

    settings = BUILDS[request.param]
    sizes = {} if request.param == "gpt2" else SIZES
    config = AutoConfig.for_model(request.param, **sizes, **settings)
    folder = tmp_path_factory.mktemp("built")
    config.save_pretrained(folder)
    return config, inspect_model(folder, request.param)


def chosen(info: ModelInfo, settings: dict[str, Any]) -> AdapterSpec:
    """Fill in the names of a model's own modules."""
    by_role = {module.role: module.name for module in info.whole_modules}
    names = {
        "NAME": info.modules[0].name,
        "PATH": info.modules[-1].paths[-1],
        "EMBEDDING": by_role["input"],
        "HEAD": by_role["output"],
    }

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {names.get(key, key): item for key, item in value.items()}
        return tuple(map(fill, value)) if isinstance(value, tuple) else names.get(value, value)

    return AdapterSpec(**{"r": 4} | {key: fill(value) for key, value in settings.items()})


def adapted(model: Any, info: ModelInfo, adapter: AdapterSpec, task_type: str = "CAUSAL_LM") -> Any:
    from peft import LoraConfig, get_peft_model

    names = peft_targets(info, adapter)
    config = LoraConfig(
        task_type=task_type,
        r=adapter.r,
        bias=adapter.bias,
        target_modules=names,
        layers_to_transform=list(adapter.layers_to_transform) or None,
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern=dict(adapter.alpha_pattern),
        modules_to_save=list(adapter.modules_to_save) or None,
        ensure_weight_tying=keeps_tied(info, adapter),
        use_dora=adapter.use_dora,
        fan_in_fan_out=fan_in_fan_out(info, names),
    )
    return get_peft_model(model, config)


@pytest.mark.parametrize("choice", CHOICES)
def test_counts_are_those_of_peft_and_the_file_is_as_large(
    built: Any, choice: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    config, info = built
    adapter = chosen(info, CHOICES[choice])

    counted = count(info, adapter)
    model = adapted(AutoModelForCausalLM.from_config(config), info, adapter)

    theirs = model.get_nb_trainable_parameters()
    assert (counted.trainable, counted.total) == theirs
    assert counted.percent == pytest.approx(100 * theirs[0] / theirs[1])
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    saved = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert counted.adapter_bytes == pytest.approx(saved, rel=0.02)


@pytest.mark.parametrize("choice", ["all", "all biases", "dora", "ranks", "one path", "embedding"])
def test_counts_of_a_classifier_are_those_of_peft_and_the_file_is_as_large(
    built: Any, choice: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    config, info = built
    assert info.can_classify is (config.model_type != "olmoe")
    if not info.can_classify:
        return
    adapter = chosen(info, CHOICES[choice])
    config.num_labels = 3

    counted = count(info, adapter, 3)
    whole = AutoModelForSequenceClassification.from_config(config)
    model = adapted(whole, info.as_classifier(3), adapter, "SEQ_CLS")

    assert (counted.trainable, counted.total) == model.get_nb_trainable_parameters()
    assert [module.name for module in counted.whole if module.role == "output"] == ["score"]
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    saved = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert counted.adapter_bytes == pytest.approx(saved, rel=0.02)


def test_a_classifier_has_no_head_over_words_to_save(tiny_llama: Path) -> None:
    from lora_studio.models.inspection import inspect_model

    info = inspect_model(tiny_llama, "x")
    adapter = AdapterSpec(modules_to_save=("lm_head",))
    assert count(info, adapter).whole
    with pytest.raises(RecipeError, match="lm_head"):
        count(info, adapter, 2)
    assert [problem.key for problem in problems(info.as_classifier(2), adapter)] == [
        "model.unknown_saved"
    ]


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights:UserWarning")
def test_a_pissa_adapter_is_twice_as_large_once_it_is_converted(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    from lora_studio.models.inspection import inspect_model
    from lora_studio.models.loading import load_model

    config = LoraConfig(r=8, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa")
    model = get_peft_model(load_model(tiny_llama, "fp32", "cpu"), config)
    initial = tmp_path / "untrained"
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(initial)
    model.peft_config["default"].init_lora_weights = "pissa"
    model.save_pretrained(tmp_path, path_initial_model_for_weight_conversion=str(initial))

    names = ("q_proj", "down_proj")
    adapter = AdapterSpec(r=8, target_modules=names, init_lora_weights="pissa")
    counted = count(inspect_model(tiny_llama, "tiny"), adapter)
    saved = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert counted.adapter_bytes == pytest.approx(saved, rel=0.02)
    assert counted.trainable == model.get_nb_trainable_parameters()[0]


def described(*groups: ModuleGroup, **changes: Any) -> ModelInfo:
    settings: dict[str, Any] = {
        "source": "owner/name",
        "architecture": "LlamaForCausalLM",
        "parameters": sum(group.count * group.d_in * group.d_out + group.bias for group in groups),
        "layers": 2,
        "context_length": 128,
        "hidden_size": groups[0].d_in,
        "intermediate_size": 4 * groups[0].d_in,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": groups[0].d_in,
        "vocab_size": 400,
        "tied_embeddings": False,
        "chat_template": True,
        "modules": groups,
        "biases": sum(group.bias for group in groups),
        "bias_tensors": sum(group.count for group in groups if group.bias),
        "size_bytes": 0,
    }
    return ModelInfo(**settings | changes)


def group(name: str, d_in: int, d_out: int, count: int = 2, **settings: Any) -> ModuleGroup:
    return ModuleGroup(
        name=name, path=f"model.layers.{{}}.self_attn.{name}", indices=(ranges(range(count)),),
        count=count, d_in=d_in, d_out=d_out, **settings,
    )  # fmt: skip


QV = described(group("q_proj", 8, 8), group("v_proj", 8, 4))


def test_one_square_layer_of_1024_takes_16384_at_rank_8() -> None:
    module = count(described(group("q_proj", 1024, 1024, 1)), AdapterSpec(r=8)).per_module[0]
    assert (module.full, module.adapter) == (1_048_576, 16_384)
    assert module.saved_percent == pytest.approx(98.4, abs=0.05)


def test_one_square_layer_of_12888_takes_51552_at_rank_2() -> None:
    counted = count(described(group("q_proj", 12888, 12888, 1)), AdapterSpec(r=2))
    assert counted.trainable == 51_552
    assert counted.per_module[0].full == pytest.approx(166.1e6, rel=1e-3)


def test_an_adapter_larger_than_its_layer_saves_less_than_nothing() -> None:
    counted = count(QV, AdapterSpec(r=8))
    assert counted.per_module[0].saved_percent == -100


def test_a_70b_model_is_described_in_two_seconds_and_counted_at_every_move(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    from lora_studio.models.inspection import inspect_model

    LlamaConfig(
        vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8,
    ).save_pretrained(tmp_path)  # fmt: skip
    inspect_model(tmp_path, "warm")
    began = time.thread_time()
    info = inspect_model(tmp_path, "70b")
    assert time.thread_time() - began < 2
    assert info.parameters == 70_553_706_496
    assert len(json.dumps(info.to_dict())) < 4000

    for adapter in (
        AdapterSpec(r=16),
        AdapterSpec(rank_pattern={"q_proj": 8, r"model\.layers\.[0-7]\..*": 4}, use_dora=True),
        AdapterSpec(target_modules=r".*\.(q|v)_proj", layers_to_transform=tuple(range(40))),
    ):
        times = []
        for _ in range(5):
            began = time.thread_time()
            counted = count(info, adapter)
            times.append(time.thread_time() - began)
        assert min(times) < 0.005, (adapter, times)
    assert counted.per_module[0].count == 40
    assert count(info, AdapterSpec(r=16)).trainable == 207_093_760


def test_a_description_survives_json() -> None:
    info = described(
        ModuleGroup(
            name="up", path="h.{}.experts.{}.up", indices=("0-1,5", "0-3"), count=12, d_in=8,
            d_out=24, kind="Conv1D", bias=48,
        )
    )  # fmt: skip
    assert ModelInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert info.modules[0].paths[-1] == "h.5.experts.3.up"
    assert len(info.modules[0].paths) == 12


@pytest.mark.parametrize("numbers", [[0], [0, 1, 2], [3, 1, 7, 8], list(range(80))])
def test_ranges_give_back_their_numbers(numbers: list[int]) -> None:
    assert list(numbers_in(ranges(numbers))) == sorted(numbers)


# What the model does not have


def keys(found: list[Any]) -> list[str]:
    return [item.key for item in found]


def test_everything_unknown_is_named_at_once_and_with_what_there_is() -> None:
    adapter = AdapterSpec(
        target_modules=("q_proj", "c_attn"), layers_to_transform=(1, 2, 3, 9),
        modules_to_save=("wte",),
    )  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        count(QV, adapter)
    assert keys(caught.value.problems) == [
        "model.unknown_targets", "model.unknown_layers", "model.unknown_saved",
    ]  # fmt: skip
    assert "c_attn" in str(caught.value)
    assert "q_proj, v_proj" in str(caught.value)
    assert "layer 2-3,9" in str(caught.value)
    with pytest.raises(RecipeError):
        target_modules(QV, adapter)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"target_modules": "q_proj"}, "model.pattern_without_match"),
        ({"target_modules": "self_attn.*"}, "model.pattern_without_match"),
        ({"target_modules": r".*\.0\..*", "layers_to_transform": (1,)}, "model.nothing_in_layers"),
        ({"target_modules": ("proj",)}, "model.unknown_targets"),
        ({"target_modules": ("attn.q_proj",)}, "model.unknown_targets"),
        ({"layers_to_transform": (2,)}, "model.unknown_layers"),
    ],
)
def test_a_choice_that_finds_nothing_is_a_problem(settings: dict[str, Any], key: str) -> None:
    assert keys(problems(QV, AdapterSpec(**settings))) == [key]


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (("v_proj", "q_proj"), ["q_proj", "v_proj"]),
        (r".*q_proj", ["q_proj"]),
        (("self_attn.v_proj",), ["v_proj"]),
        (("model.layers.1.self_attn.q_proj",), ["q_proj"]),
    ],
)
def test_targets_are_told_by_their_names_in_the_order_of_the_model(
    targets: Any, names: list[str]
) -> None:
    assert target_modules(QV, AdapterSpec(target_modules=targets)) == names


def test_an_expression_is_given_to_peft_as_paths() -> None:
    adapter = AdapterSpec(target_modules=".*q_proj", layers_to_transform=(1,))
    assert peft_targets(QV, adapter) == ["model.layers.1.self_attn.q_proj"]
    assert peft_targets(QV, AdapterSpec(target_modules=("v_proj",))) == ["v_proj"]


# What is worth a second look


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"r": 4, "lora_alpha": 4}, []),
        ({"r": 5, "lora_alpha": 5}, ["adapter.rank_beyond_layer"]),
        ({"r": 2, "lora_alpha": 2, "rank_pattern": {"v_proj": 5}}, ["adapter.rank_beyond_layer"]),
        ({"r": 2, "lora_alpha": 9}, ["adapter.odd_scaling"]),
        ({"r": 2, "lora_alpha": 9, "use_rslora": True}, []),
        ({"r": 2, "lora_alpha": 2, "bias": "all"}, ["adapter.no_biases"]),
        (
            {"r": 2, "lora_alpha": 2, "alpha_pattern": {"q": 1}},
            ["adapter.pattern_without_effect"],
        ),
    ],
)
def test_a_warning_says_what_is_odd(settings: dict[str, Any], expected: list[str]) -> None:
    found = warnings(QV, AdapterSpec(**settings))
    assert keys(found) == expected
    assert all(item.say("ko") != item.say("en") for item in found)


def test_the_warning_about_a_module_trained_whole_says_its_size(tiny_llama: Path) -> None:
    from lora_studio.models.inspection import inspect_model

    info = inspect_model(tiny_llama, "tiny")
    adapter = AdapterSpec(r=8, lora_alpha=8, modules_to_save=("embed_tokens",))
    (warning,) = warnings(info, adapter)
    assert warning.values["parameters"] == 400 * 32
    assert "0.0512 MB" in str(warning)


# Presets


def test_presets_are_the_models_own_names(built: Any) -> None:
    config, info = built
    found = presets(info)
    assert found["all_linear"] == info.target_names
    assert found["attention_qv"] == {
        "gpt2": ("c_attn",), "phi3": ("qkv_proj",), "gpt_neox": ("query_key_value",),
    }.get(config.model_type, ("q_proj", "v_proj"))  # fmt: skip
    places = {path for item in info.modules for path in item.paths}
    attention = AdapterSpec(target_modules=found["attention"])
    for path in peft_targets(info, AdapterSpec(target_modules=r".*")):
        is_attention = "attn" in path or "attention" in path
        assert path in places
        assert is_attention == any(path.endswith(f".{name}") for name in attention.target_modules)


def test_only_what_a_model_has_is_offered() -> None:
    info = described(
        ModuleGroup(name="fc", path="net.{}.fc", indices=("0-1",), count=2, d_in=8, d_out=8)
    )
    assert presets(info) == {"all_linear": ("fc",)}


def test_description_and_accounting_do_not_import_torch() -> None:
    code = (
        "import lora_studio.models.accounting, lora_studio.models.sources, lora_studio.hardware,"
        "sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
