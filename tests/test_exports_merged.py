"""A merged model says what base and adapter say, and is there whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Embedding, Linear
from peft.tuners.lora.layer import ParamWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lora_studio.adapters import archive
from lora_studio.adapters.archive import zip_adapter
from lora_studio.errors import AdapterError, StudioError
from lora_studio.exports import merged as merged_room
from lora_studio.exports import merging, whole
from lora_studio.exports.difference import compare, computing_in_float32, logits_of
from lora_studio.exports.shipping import ship
from lora_studio.files import size_of
from lora_studio.models.fingerprint import weights_fingerprint
from lora_studio.models.loading import load_classifier
from tests.conftest import CHATML, save_tokenizer
from tests.exporting import TOKENS, order, said_by, said_by_peft, save_adapter, silent

# See test_chat_engine.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    # The tests mean it: https://github.com/huggingface/peft/issues/2777
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    # PEFT takes a bias of LoRA's own for a torn tensor (save_and_load.py), and warns of merging it.
    pytest.mark.filterwarnings("ignore:Adapter .default.. .* LoRA tensor.s. have invalid shape"),
    pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed"),
    pytest.mark.usefixtures("one_thread"),
]

KINDS = {
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "dora": {"use_dora": True},
    "biases": {"target_modules": ["c_attn", "c_fc"], "bias": "all", "fan_in_fan_out": True},
    "own biases": {"target_modules": ["c_attn"], "lora_bias": True, "fan_in_fan_out": True},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "whole layers": {"modules_to_save": ["lm_head"]},
    "all": {"target_modules": "all-linear"},
}


@pytest.fixture
def tied(tmp_path: Path, tiny_llama: Path) -> Path:
    """A Llama whose head is its embedding."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "tied"))
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(tiny_llama, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_merged_says_what_peft_says_of_base_and_adapter(kind, tied, tiny_gpt2, tmp_path, settings):
    base = tiny_gpt2 if "biases" in kind else tied
    adapter = save_adapter(base, tmp_path / "adapter", **KINDS[kind])
    wanted = said_by_peft(base, adapter)

    done = ship(order(adapter, base, tmp_path / "out"), base, settings, silent)

    assert torch.allclose(said_by(tmp_path / "out"), wanted, atol=2e-4)
    assert not torch.allclose(said_by(base), wanted, atol=0.1)
    assert done.check["relative"] < 1e-5 < 0.1 < done.change["relative"]
    assert (done.dtype, done.path) == ("fp32", str(tmp_path / "out"))


def test_a_merged_classifier_finds_the_classes_that_the_adapter_finds(
    tiny_llama, tmp_path, settings
):
    labels = ("good", "bad", "odd")
    base = load_classifier(tiny_llama, "fp32", "cpu", labels=labels, seed=7)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"])
    torch.manual_seed(3)
    wrapped = get_peft_model(base, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with torch.no_grad():
        wanted = wrapped.eval()(TOKENS).logits

    asked = order(tmp_path / "adapter", tiny_llama, tmp_path / "out", labels=labels, seed=7)
    done = ship(asked, tiny_llama, settings, silent)

    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.allclose(again(TOKENS).logits, wanted, atol=1e-4)
    assert again.config.id2label == dict(enumerate(labels))
    assert done.check["relative"] < 1e-5 < 0.1 < done.change["relative"]


def test_a_head_that_was_the_embedding_stays_it_unless_only_one_of_them_changes(
    tied, tmp_path, settings
):
    for kind, is_tied in (("rslora", True), ("embeddings", False), ("whole layers", False)):
        adapter = save_adapter(tied, tmp_path / f"{kind}-adapter", **KINDS[kind])
        ship(order(adapter, tied, tmp_path / kind), tied, settings, silent)
        assert AutoConfig.from_pretrained(tmp_path / kind).tie_word_embeddings is is_tied


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 8), ("fp16", 11)])
def test_the_sum_is_rounded_once(dtype, bits, tiny_llama, tmp_path, settings):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter", std=0.01)
    ship(order(adapter, tiny_llama, tmp_path / "exact"), tiny_llama, settings, silent)

    ship(order(adapter, tiny_llama, tmp_path / "out", dtype=dtype), tiny_llama, settings, silent)

    exact, found = (load_file(tmp_path / name / "model.safetensors") for name in ("exact", "out"))
    for name, weight in exact.items():
        assert found[name].dtype == merged_room.DTYPES[dtype]
        assert torch.equal(found[name], weight.to(found[name].dtype)), name
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["dtype"]
        == {
            8: "bfloat16",
            11: "float16",
        }[bits]
    )


def test_a_base_in_16_bit_is_merged_without_16_bit_arithmetic(tiny_llama, tmp_path, settings):
    half = Path(shutil.copytree(tiny_llama, tmp_path / "half"))
    LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(half)
    adapter = save_adapter(half, tmp_path / "adapter", std=0.02)

    done = ship(order(adapter, half, tmp_path / "out"), half, settings, silent)

    assert done.dtype == "bf16"
    weight = "model.layers.0.self_attn.q_proj.weight"
    own = load_file(half / "model.safetensors")[weight].float()
    lora = load_file(adapter / "adapter_model.safetensors")
    a, b = (
        lora[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{one}.weight"] for one in "AB"
    )
    exact = (own + 2 * b @ a).to(torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[weight], exact)


def test_an_embedding_is_rounded_once_too(tiny_llama, tmp_path, settings):
    half = Path(shutil.copytree(tiny_llama, tmp_path / "half"))
    LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(half)
    about = {"target_modules": ["embed_tokens", "q_proj"]}
    adapter = save_adapter(half, tmp_path / "adapter", std=0.02, **about)

    ship(order(adapter, half, tmp_path / "out", dtype="fp16"), half, settings, silent)

    name = "model.embed_tokens.weight"
    own = load_file(half / "model.safetensors")[name].float()
    lora = load_file(adapter / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.model.embed_tokens.lora_embedding_{one}"] for one in "AB")
    exact = (own + 2 * (b @ a).T).to(torch.float16)
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name], exact)


def test_a_bias_where_the_base_has_none_is_refused_in_words(tiny_llama, tmp_path, settings):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter", lora_bias=True)
    with pytest.raises(AdapterError) as caught:
        ship(order(adapter, tiny_llama, tmp_path / "out"), tiny_llama, settings, silent)
    assert caught.value.key == "shipping.no_bias"
    assert caught.value.values["name"].endswith(("q_proj", "down_proj"))


def test_float32_is_put_back_even_where_the_model_fails(tiny_llama):
    model = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).eval()
    before = {name: one.data_ptr() for name, one in model.named_parameters()}
    with pytest.raises(IndexError), computing_in_float32(model):
        model(torch.tensor([[100_000]]))
    with torch.no_grad(), computing_in_float32(model):
        found = model(TOKENS).logits
    assert found.dtype == torch.float32
    assert {name: one.data_ptr() for name, one in model.named_parameters()} == before
    wide = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).float().eval()
    with torch.no_grad():
        assert torch.allclose(found, wide(TOKENS).logits, atol=1e-5)


def test_rows_of_uneven_length_are_compared_each_up_to_its_end(tiny_llama):
    model = LlamaForCausalLM.from_pretrained(tiny_llama).eval()
    rows = [[5, 9, 44], [5, 9, 44, 120, 7]]
    short, long = logits_of(model, rows)
    assert (len(short), len(long)) == (3, 5)
    assert torch.allclose(short, long[:3], atol=1e-5)
    same = compare([short], [short + 3])
    assert (same.relative, same.largest, same.same_first) == (pytest.approx(0, abs=1e-5), 3, 1)
    assert same.divergence == pytest.approx(0, abs=1e-6)


def test_the_folder_is_complete_for_other_programs(tiny_llama, tmp_path, settings):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = "{{ messages[0]['content'] }}<|im_end|>"
    tokenizer.save_pretrained(adapter)

    ship(order(adapter, tiny_llama, tmp_path / "out"), tiny_llama, settings, silent)

    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.chat_template == tokenizer.chat_template
    assert (
        json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2
    )
    said = (tmp_path / "out" / "README.md").read_text()
    assert "merged model against base + adapter" in said
    assert str(tmp_path) not in said


def test_a_merge_that_says_otherwise_is_refused_and_removed(
    tiny_llama, tmp_path, settings, monkeypatch
):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    real = merged_room.merge

    def wrong(*args):
        model = real(*args)
        model.model.layers[1].mlp.down_proj.weight.data *= 1.5
        return model

    monkeypatch.setattr(merged_room, "merge", wrong)
    with pytest.raises(StudioError) as caught:
        ship(order(adapter, tiny_llama, tmp_path / "out"), tiny_llama, settings, silent)
    assert caught.value.key == "shipping.says_otherwise"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize("stage", ["load", "merge", "save", "verify"])
def test_a_cancelled_export_leaves_nothing(stage, tiny_llama, tmp_path, settings):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")

    def cancel(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ship(order(adapter, tiny_llama, tmp_path / "out"), tiny_llama, settings, cancel)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["adapter"]


def test_what_is_there_is_not_overwritten_unless_it_is_an_earlier_export(
    tiny_llama, tmp_path, settings
):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(StudioError, match="is there already"):
        ship(order(adapter, tiny_llama, target), tiny_llama, settings, silent)
    assert (target / "mine.txt").read_text() == "mine"

    ship(order(adapter, tiny_llama, target, replaces=True), tiny_llama, settings, silent)
    assert not (target / "mine.txt").exists()
    assert (target / "model.safetensors").is_file()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["adapter", "out"]


def test_too_small_a_disk_or_memory_is_said_before_anything_is_written(
    tiny_llama, tmp_path, settings, monkeypatch
):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    monkeypatch.setattr(merged_room, "free_memory", lambda: 1000)
    with pytest.raises(StudioError) as caught:
        ship(order(adapter, tiny_llama, tmp_path / "out"), tiny_llama, settings, silent)
    assert caught.value.key == "shipping.no_memory"
    monkeypatch.setattr(whole, "SPARE_BYTES", 1 << 62)
    with pytest.raises(StudioError) as caught:
        ship(order(adapter, tiny_llama, tmp_path / "out"), tiny_llama, settings, silent)
    assert caught.value.key == "shipping.no_space"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["adapter"]


def test_an_adapter_with_numbers_that_are_none_is_refused(tiny_llama, tmp_path, settings):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    weights[next(iter(weights))][0, 0] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterError):
        ship(order(adapter, tiny_llama, tmp_path / "out"), tiny_llama, settings, silent)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_refused(tiny_llama, tmp_path, settings):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    right = weights_fingerprint(tiny_llama)
    with pytest.raises(AdapterError) as caught:
        ship(
            order(adapter, tiny_llama, tmp_path / "out", fingerprint="0" * 64),
            tiny_llama,
            settings,
            silent,
        )
    assert caught.value.key == "chat.other_base"
    done = ship(
        order(adapter, tiny_llama, tmp_path / "out", fingerprint=right, precision="nf4"),
        tiny_llama,
        settings,
        silent,
    )
    assert [note["key"] for note in done.notes] == ["shipping.full_precision"]


@pytest.mark.parametrize(
    ("std", "keys"), [(1e-4, ["drowned"]), (0.003, ["coarse_bf16"]), (0.1, [])]
)
def test_a_change_near_the_rounding_or_below_it_is_told_of(
    std, keys, tiny_llama, tmp_path, settings
):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter", std=std)
    done = ship(
        order(adapter, tiny_llama, tmp_path / "out", dtype="bf16"), tiny_llama, settings, silent
    )
    assert [note["key"] for note in done.notes] == [f"shipping.{key}" for key in keys], done


def test_a_zip_holds_the_adapter_and_nothing_a_training_goes_on_from(
    tiny_llama, tmp_path, settings
):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(adapter)
    own = {file.name for file in adapter.iterdir()}
    others = ("optimizer.pt", "rng_state_0.pth", "trained.safetensors", "manifest.json",
              "origin.json", "about.json", "trainer_state.json")  # fmt: skip
    for name in others:
        (adapter / name).write_text("state")

    done = ship(order(adapter, tiny_llama, tmp_path / "a.zip", "zip"), None, settings, silent)

    assert set(zipfile.ZipFile(done.path).namelist()) == own
    assert {"adapter_model.safetensors", "tokenizer.json", "README.md"} <= own
    with pytest.raises(StudioError, match="is there already"):
        ship(order(adapter, tiny_llama, tmp_path / "a.zip", "zip"), None, settings, silent)


def test_a_zip_that_fails_leaves_the_earlier_one(tiny_llama, tmp_path, monkeypatch):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    target = zip_adapter(adapter, tmp_path / "zips" / "a.zip")
    before = target.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    with pytest.raises(OSError, match="No space"):
        zip_adapter(adapter, target)
    assert target.read_bytes() == before
    assert [one.name for one in target.parent.iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("rslora", Linear), ("dora", Linear), ("biases", Linear), ("embeddings", Embedding)],
)
def test_a_merge_that_leaves_one_weak_layer_out_is_refused(
    kind, layer, tied, tiny_gpt2, tmp_path, settings, monkeypatch
):
    base = tiny_gpt2 if kind == "biases" else tied
    adapter = save_adapter(base, tmp_path / "adapter", std=0.02, **KINDS[kind])
    real, seen = layer.merge, []

    def first_forgotten(self, **asked):
        seen.append(self)
        if len(seen) > 1:
            real(self, **asked)

    monkeypatch.setattr(layer, "merge", first_forgotten)
    with pytest.raises(StudioError) as caught:
        ship(order(adapter, base, tmp_path / "out", dtype="bf16"), base, settings, silent)
    assert caught.value.key == "shipping.not_merged"
    assert caught.value.values["share"] == "100%"
    assert sorted(one.name for one in tmp_path.iterdir() if one.name != "tied") == ["adapter"]


@pytest.mark.parametrize("form", ["zip", "merged"])
def test_two_exports_to_one_place_do_not_meet(form, tiny_llama, tmp_path, settings):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    base = None if form == "zip" else tiny_llama
    target = tmp_path / "exports" / "out"
    heard: list[StudioError] = []

    def another(*_: object) -> None:
        if not heard:
            with pytest.raises(StudioError) as caught:
                ship(order(adapter, tiny_llama, target, form), base, settings, silent)
            heard.append(caught.value)

    ship(order(adapter, tiny_llama, target, form), base, settings, another)
    assert [error.key for error in heard] == ["shipping.being_exported"]
    assert [one.name for one in target.parent.iterdir()] == ["out"]


EXPORTER = """
import sys, time
from pathlib import Path
from lora_studio.exports.whole import written_whole
with written_whole(Path(sys.argv[1]), needed=0, replaces=True) as partial:
    partial.mkdir()
    (partial / "half").write_text("half")
    print("there", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_export_left_goes_and_one_that_goes_on_stays(tmp_path):
    folder = tmp_path / "exports"
    with subprocess.Popen(
        [sys.executable, "-c", EXPORTER, str(folder / "a")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        whole.sweep(folder)
        assert len(list(folder.glob(".a.exporting-*/a/half"))) == 1
        with (
            pytest.raises(StudioError) as caught,
            whole.written_whole(folder / "a", needed=0, replaces=True),
        ):
            pass
        assert caught.value.key == "shipping.being_exported"
        other.kill()
        other.wait()
    whole.sweep(folder)
    assert list(folder.iterdir()) == []


def test_an_export_waits_for_who_tidies_up_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "TIDIED_WITHIN_S", 120)
    is_there = threading.Event()

    def tidy() -> None:
        with whole._alone(tmp_path / "a"):
            is_there.set()
            time.sleep(0.3)

    tidying = threading.Thread(target=tidy)
    tidying.start()
    assert is_there.wait(60)
    with whole.written_whole(tmp_path / "a", needed=0) as partial:
        partial.touch()
    tidying.join()
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_an_earlier_export_that_was_moved_aside_when_the_process_died_comes_back(tmp_path):
    aside = tmp_path / ".a.exporting-x"
    (aside / whole.EARLIER).mkdir(parents=True)
    (aside / whole.EARLIER / "model").write_text("earlier")
    (aside / "a").mkdir()
    whole.sweep(tmp_path)
    assert (tmp_path / "a" / "model").read_text() == "earlier"
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_what_came_to_the_place_meanwhile_stays(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(StudioError) as caught, whole.written_whole(target, needed=0) as partial:
        partial.mkdir()
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    assert caught.value.key == "shipping.exists"
    assert (target / "mine.txt").read_text() == "mine"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_an_earlier_export_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path, monkeypatch
):
    target = tmp_path / "out"
    target.mkdir()
    (target / "model").write_text("earlier")
    real = Path.rename

    def refuse(self, to):
        if self.name == to.name == "out":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with (
        pytest.raises(StudioError) as caught,
        whole.written_whole(target, needed=0, replaces=True) as partial,
    ):
        partial.mkdir()
    assert caught.value.key == "shipping.not_written"
    assert (target / "model").read_text() == "earlier"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (SafetensorError("I/O error: Input/output error (os error 5)"), "not_written"),
    ],
)
def test_what_the_disk_says_is_a_sentence_whoever_wrote(error, key, tmp_path):
    with pytest.raises(StudioError) as caught, whole.written_whole(tmp_path / "out", needed=0):
        raise error
    assert caught.value.key == f"shipping.{key}"


def test_a_file_or_a_folder_is_measured_without_following_links(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"123")
    (tmp_path / "a" / "link").symlink_to("/")
    assert size_of(tmp_path / "a" / "b" / "file") == 3
    assert size_of(tmp_path) == 3 + len("/")
    assert size_of(tmp_path / "gone") == 0


def test_a_zip_that_cannot_be_written_is_a_sentence(tiny_llama, tmp_path, settings, monkeypatch):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    (tmp_path / "file").write_text("")
    with pytest.raises(StudioError) as caught:
        ship(order(adapter, tiny_llama, tmp_path / "file" / "a.zip", "zip"), None, settings, silent)
    assert caught.value.key == "shipping.not_written"

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    with pytest.raises(StudioError) as caught:
        ship(order(adapter, tiny_llama, tmp_path / "a.zip", "zip"), None, settings, silent)
    assert caught.value.key == "shipping.disk_full"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["adapter", "file"]


def test_a_zip_tells_how_far_it_is_and_is_cancelled_between_blocks(
    tiny_llama, tmp_path, settings, monkeypatch
):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter")
    monkeypatch.setattr(archive, "BLOCK_BYTES", 1000)
    told: list[tuple[int, int]] = []

    def third(stage: str, done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ship(order(adapter, tiny_llama, tmp_path / "a.zip", "zip"), None, settings, third)
    assert 0 < told[-1][0] < told[-1][1]
    assert [one.name for one in tmp_path.iterdir()] == ["adapter"]


def test_experts_are_merged_and_a_merge_without_them_is_refused(tmp_path, settings, monkeypatch):
    base = tmp_path / "experts"
    save_tokenizer(base, chat_template=CHATML)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, moe_intermediate_size=16,
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_experts=4, num_experts_per_tok=2, max_position_embeddings=512,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(base)
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    about = {"target_modules": ["q_proj"], "target_parameters": names, "lora_dropout": 0.0}
    adapter = save_adapter(base, tmp_path / "adapter", std=0.2, **about)

    done = ship(order(adapter, base, tmp_path / "out"), base, settings, silent)
    assert done.check["relative"] < 1e-5 < 0.01 < done.change["relative"]

    monkeypatch.setattr(ParamWrapper, "merge", lambda *_, **__: None)
    with pytest.raises(StudioError) as caught:
        ship(order(adapter, base, tmp_path / "again"), base, settings, silent)
    assert caught.value.key == "shipping.not_merged"


def test_a_merge_that_drops_a_change_as_small_as_the_rounding_is_told_as_what_it_is(
    tiny_llama, tmp_path, settings, monkeypatch
):
    adapter = save_adapter(tiny_llama, tmp_path / "adapter", std=0.04)
    asked = {"dtype": "bf16"}
    right = ship(order(adapter, tiny_llama, tmp_path / "a", **asked), tiny_llama, settings, silent)
    monkeypatch.setattr(Linear, "merge", lambda *_, **__: None)
    monkeypatch.setattr(merging, "probe", lambda *_: None)
    wrong = ship(order(adapter, tiny_llama, tmp_path / "b", **asked), tiny_llama, settings, silent)
    assert right.check["kept"] == pytest.approx(1, abs=0.1)
    assert wrong.check["kept"] == pytest.approx(0, abs=0.1)
    assert [note["key"] for note in wrong.notes] == ["shipping.drowned"]
