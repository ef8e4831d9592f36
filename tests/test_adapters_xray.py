"""What an adapter changed, against ΔW itself, and the same adapter at a lower rank."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_studio.adapters.configuration import CONFIG, WEIGHTS
from lora_studio.adapters.shrinking import shrink
from lora_studio.adapters.xray import enough, xray
from lora_studio.errors import AdapterError
from lora_studio.library.shrunk import predicted_bytes, predicted_errors

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("tiny_llama", {"target_modules": "all-linear"}),
    "rsLoRA": ("tiny_llama", {"target_modules": ["q_proj"], "use_rslora": True}),
    "patterns": (
        "tiny_llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 2},
            "alpha_pattern": {"v_proj": 24},
        },
    ),
    "Conv1D": ("tiny_gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "embedding": ("tiny_llama", {"target_modules": ["embed_tokens", "o_proj"]}),
}


def made(base: Path, folder: Path, **about: Any) -> PeftModel:
    """An adapter of rank 6, saved, whose directions differ in size."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 6, "lora_alpha": 12, "task_type": "CAUSAL_LM"} | about
    wrapped = get_peft_model(model, LoraConfig(**config))
    for name, one in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(one, std=0.1)
        if "lora_A" in name or "lora_embedding_A" in name:
            one.data *= torch.logspace(0, -2, one.shape[0])[:, None]
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped.eval()


def changes(model: PeftModel) -> dict[str, torch.Tensor]:
    """ΔW of each module as PEFT merges it."""
    return {
        name.removeprefix("base_model.model."): part.get_delta_weight("default").detach()
        for name, part in model.named_modules()
        if isinstance(part, LoraLayer)
    }


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, PeftModel]:
    base, about = CASES[request.param]
    folder = request.getfixturevalue(base)
    return folder, tmp_path / "adapter", made(folder, tmp_path / "adapter", **about)


def test_it_says_of_each_module_what_its_change_says_itself(
    case: tuple[Path, Path, PeftModel],
) -> None:
    base, adapter, model = case
    weights = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = changes(model)
    found = xray(adapter, base)
    assert [one.name for one in found.modules] == sorted(expected)
    for one in found.modules:
        delta = expected[one.name]
        values = torch.linalg.svdvals(delta)[: one.rank]
        assert one.singular_values == pytest.approx(values.tolist(), rel=1e-4, abs=1e-7)
        assert one.norm == pytest.approx(delta.norm().item(), rel=1e-5)
        own = weights.get_submodule(one.name).weight.norm().item()
        assert one.relative_norm == pytest.approx(one.norm / own, rel=1e-5)
        kept = [float((values[:k] ** 2).sum() / (values**2).sum()) for k in range(one.rank + 1)]
        assert kept[one.effective_rank] >= 0.95 > kept[one.effective_rank - 1]
    assert found.rank == 6
    assert json.loads(json.dumps(found.to_dict()))["effective_rank"] == found.effective_rank


def test_an_adapter_that_learned_nothing_has_no_direction(tiny_llama: Path, tmp_path: Path) -> None:
    made(tiny_llama, tmp_path / "a", target_modules=["q_proj"])
    file = tmp_path / "a" / WEIGHTS
    tensors = {
        key: torch.zeros_like(one) if "lora_B" in key else one
        for key, one in load_file(file).items()
    }
    save_file(tensors, file)
    found = xray(tmp_path / "a", tiny_llama)
    assert found.effective_rank == 0
    assert {(one.effective_rank, one.relative_norm) for one in found.modules} == {(0, 0.0)}


@pytest.mark.parametrize(
    ("spectra", "rank"),
    [([], 0), ([[0.0, 0.0]], 0), ([[1.0, 0.0]], 1), ([[1.0, 1.0]], 2), ([[3.0], [1.0, 1.0]], 2),
     ([[10.0], [1.0, 0.1]], 1)],
)  # fmt: skip
def test_enough_is_counted_over_all_modules(spectra: list[list[float]], rank: int) -> None:
    assert enough(spectra) == rank


def test_a_smaller_adapter_is_the_nearest_of_its_rank(
    case: tuple[Path, Path, PeftModel], tmp_path: Path
) -> None:
    base, adapter, model = case
    before = changes(model)
    found = shrink(adapter, tmp_path / "small", 3)
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "small"
    )
    after = changes(loaded)
    assert after.keys() == before.keys()
    lost = whole = 0.0
    for name, delta in before.items():
        values = torch.linalg.svdvals(delta)
        gone = (delta - after[name]).norm().item()
        assert gone == pytest.approx(values[3:].norm().item(), rel=1e-3, abs=1e-6)

        lost, whole = lost + gone**2, whole + delta.norm().item() ** 2
    assert found.error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert found.predicted == pytest.approx(found.error, rel=1e-3)
    assert found.rank == 3
    assert found.bytes == (tmp_path / "small" / WEIGHTS).stat().st_size
    assert found.bytes < (adapter / WEIGHTS).stat().st_size
    assert max(one.rank for one in xray(tmp_path / "small", base).modules) == 3


def test_what_stands_beside_the_matrices_stays(tiny_gpt2: Path, tmp_path: Path) -> None:
    changes = {"fan_in_fan_out": True, "bias": "lora_only"}
    made(tiny_gpt2, tmp_path / "a", target_modules=["c_attn"], **changes)
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (tmp_path / "a" / "optimizer.pt").write_bytes(b"0")
    shrink(tmp_path / "a", tmp_path / "b", 2)
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in "ab")
    biases = [key for key in one if key.endswith(".bias")]
    assert biases and all(torch.equal(one[key], other[key]) for key in biases)
    assert (tmp_path / "b" / "chat_template.jinja").is_file()
    assert not (tmp_path / "b" / "optimizer.pt").exists()


# PEFT takes the bias of a B for a matrix that is not whole (peft 0.21.2, save_and_load.py).
@pytest.mark.filterwarnings("ignore:Adapter .* have invalid shape")
def test_the_bias_of_a_matrix_is_scaled_as_it_was(tiny_gpt2: Path, tmp_path: Path) -> None:
    about = {"fan_in_fan_out": True, "lora_bias": True, "alpha_pattern": {"c_proj": 24}}
    made(tiny_gpt2, tmp_path / "a", target_modules=["c_attn", "c_proj"], **about)
    file = tmp_path / "a" / WEIGHTS
    tensors = load_file(file)
    for key, one in tensors.items():
        if "lora_A" in key:
            one[1:] = 0  # in one direction alone, so that rank 1 loses nothing
        if key.endswith(".bias"):
            one.fill_(0.5)
    save_file(tensors, file)
    assert shrink(tmp_path / "a", tmp_path / "b", 1).error < 1e-6
    answers = []
    for name in "ab":
        base = AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, tmp_path / name).eval()
        with torch.no_grad():
            answers.append(model(torch.tensor([[1, 2, 3]])).logits)
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 6, 7])
def test_a_rank_that_makes_nothing_smaller_is_refused(
    tiny_llama: Path, tmp_path: Path, rank: int
) -> None:
    made(tiny_llama, tmp_path / "a", target_modules=["q_proj"])
    with pytest.raises(AdapterError, match="from 1 to less than 6"):
        shrink(tmp_path / "a", tmp_path / "b", rank)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("about", "key"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "adapters.dora_no_factors"),
        (
            {"target_modules": [], "target_parameters": ["up_proj.weight"]},
            "adapters.parameters_no_factors",
        ),
    ],
)
def test_a_change_that_is_no_product_is_refused_in_words(
    tiny_llama: Path, tmp_path: Path, about: dict[str, Any], key: str
) -> None:
    made(tiny_llama, tmp_path / "a", **about)
    for act in (
        lambda: xray(tmp_path / "a", tiny_llama),
        lambda: shrink(tmp_path / "a", tmp_path / "b", 2),
    ):
        with pytest.raises(AdapterError) as caught:
            act()
        assert caught.value.key == key
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_smaller_adapter_keeps_its_number_format_and_counts_its_rounding(
    tiny_llama: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    made(tiny_llama, tmp_path / "a", target_modules="all-linear", rank_pattern={"q_proj": 2})
    file = tmp_path / "a" / WEIGHTS
    save_file({key: one.to(dtype) for key, one in load_file(file).items()}, file)
    before = dense(tmp_path / "a")
    looked = xray(tmp_path / "a", tiny_llama).to_dict()
    found = shrink(tmp_path / "a", tmp_path / "b", 5)
    assert {one.dtype for one in load_file(tmp_path / "b" / WEIGHTS).values()} == {dtype}
    after = dense(tmp_path / "b")
    lost = sum((before[name] - after[name]).norm().item() ** 2 for name in before)
    whole = sum(one.norm().item() ** 2 for one in before.values())
    assert found.error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert found.error > found.predicted == pytest.approx(predicted_errors(looked["modules"])[5])
    low = "model.layers.0.self_attn.q_proj"
    assert (before[low] - after[low]).norm() > 0, "of rank 2, and rounded anew"
    assert found.bytes < file.stat().st_size
    promised = predicted_bytes(looked["modules"], 5, file.stat().st_size)
    assert found.bytes == pytest.approx(promised, rel=0.01)


def dense(folder: Path) -> dict[str, torch.Tensor]:
    """ΔW of each module, from the files alone."""
    config = json.loads((folder / CONFIG).read_text())
    tensors = load_file(folder / WEIGHTS)
    found = {}
    for key, a in tensors.items():
        if "lora_A" in key:
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            alphas = [alpha for part, alpha in config["alpha_pattern"].items()
                      if re.search(rf"({part})$", name)]  # fmt: skip
            scale = (alphas or [config["lora_alpha"]])[0] / a.shape[0]
            b = tensors[key.replace("lora_A", "lora_B")]
            found[name] = scale * b.double() @ a.double()
    return found


def test_what_is_trained_beside_lora_is_counted(tiny_gpt2: Path, tmp_path: Path) -> None:
    about = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    made(tiny_gpt2, tmp_path / "a", **about)
    assert xray(tmp_path / "a", tiny_gpt2).beside == 0
    made(tiny_gpt2, tmp_path / "b", bias="lora_only", modules_to_save=["ln_f"], **about)
    assert xray(tmp_path / "b", tiny_gpt2).beside == 0, "saved, but as they were"
    file = tmp_path / "b" / WEIGHTS
    tensors = load_file(file)
    for key in [key for key in tensors if ".h.0.attn.c_attn" in key and "lora_" not in key]:
        tensors[key] += 1
    tensors[next(key for key in tensors if key.endswith("ln_f.weight"))] *= 2
    save_file(tensors, file)
    assert xray(tmp_path / "b", tiny_gpt2).beside == 2


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda one: one.fill_(float("nan")), "adapters.not_finite"),
        (lambda one: one[:0].clone(), "adapters.no_product"),
        (lambda one: one[:3].clone(), "adapters.no_product"),
        (lambda _: None, "adapters.incomplete"),
    ],
)
def test_an_adapter_that_is_broken_is_named_with_its_module(
    tiny_llama: Path, tmp_path: Path, change: Any, key: str
) -> None:
    made(tiny_llama, tmp_path / "a", target_modules=["q_proj"])
    file = tmp_path / "a" / WEIGHTS
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "lora_A" in name)
    if key == "adapters.incomplete":
        del tensors[name.replace("lora_A", "lora_B")]
    else:
        tensors[name] = change(tensors[name])
    save_file(tensors, file)
    with pytest.raises(AdapterError) as caught:
        xray(tmp_path / "a", tiny_llama)
    assert caught.value.key == key
    assert "layers.0.self_attn.q_proj" in str(caught.value)


def test_another_kind_of_adapter_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    made(tiny_llama, tmp_path / "a", target_modules=["q_proj"])
    file = tmp_path / "a" / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(AdapterError, match="IA3"):
        xray(tmp_path / "a", tiny_llama)
