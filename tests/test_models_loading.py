"""Real tiny models in every number format a processor can hold, and what is said when it fails."""

from __future__ import annotations

import shutil

import pytest
import torch

from lora_studio.errors import ModelError
from lora_studio.models.accounting import fan_in_fan_out, target_modules
from lora_studio.models.inspection import inspect_model
from lora_studio.models.loading import load_classifier, load_model, load_tokenizer, reading
from lora_studio.recipe import AdapterSpec

IDS = torch.arange(24).reshape(2, 12)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize(
    ("precision", "layer", "tolerance"),
    [("nf4", "Linear4bit", 0.2), ("int8", "Linear8bitLt", 0.05), ("bf16", None, 0.05)],
)
def test_a_smaller_format_changes_the_answers_little(request, model, precision, layer, tolerance):
    folder = request.getfixturevalue(model)
    exact = load_model(folder, "fp32", "cpu")
    small = load_model(folder, precision, "cpu")
    kinds = {type(module).__name__ for module in small.modules()}
    with torch.no_grad():
        expected, found = exact(input_ids=IDS).logits, small(input_ids=IDS).logits.float()
    assert layer is None or layer in kinds
    assert (found - expected).norm() / expected.norm() < tolerance


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("precision", ["nf4", "int8", "fp32"])
def test_an_adapter_learns_in_every_format_offered_on_a_processor(request, model, precision):
    from peft import LoraConfig, get_peft_model

    folder = request.getfixturevalue(model)
    info = inspect_model(folder, "tiny")
    targets = target_modules(info, AdapterSpec())
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=targets,
        fan_in_fan_out=fan_in_fan_out(info, targets),
    )
    torch.manual_seed(0)
    adapted = get_peft_model(load_model(folder, precision, "cpu"), config)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = adapted(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_four_bits_stay_as_they_were_read_whatever_the_processor(tiny_llama, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    base = load_model(tiny_llama, "nf4", "cpu")
    layer = base.get_submodule("model.layers.0.mlp.up_proj")
    before = layer.weight.data.clone()
    with torch.no_grad():
        base(input_ids=IDS)
    assert torch.equal(layer.weight.data, before)
    base.get_input_embeddings().weight.requires_grad_(True)
    base(input_ids=IDS, labels=IDS).loss.backward()


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_one_seed_gives_one_head_over_classes_in_every_format(request, model):
    folder = request.getfixturevalue(model)
    names = ["no", "yes", "perhaps"]
    heads = {
        precision: load_classifier(folder, precision, "cpu", labels=names, seed=7).score
        for precision in ("fp32", "nf4", "int8", "bf16")
    }
    exact = heads["fp32"].weight
    assert {type(head) for head in heads.values()} == {torch.nn.Linear}
    assert exact.shape == (3, 32)
    assert exact.std().item() == pytest.approx(0.02, rel=0.3)
    for precision, head in heads.items():
        assert torch.equal(head.weight, exact.to(head.weight.dtype)), precision
    other = load_classifier(folder, "fp32", "cpu", labels=names, seed=8).score.weight
    assert not torch.equal(other, exact)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_a_classifier_is_the_same_base_and_scores_the_last_token_of_a_padded_row(
    request, model, precision
):
    folder = request.getfixturevalue(model)
    classifier = load_classifier(folder, precision, "cpu", labels=["a", "b"], seed=1)
    base = load_model(folder, precision, "cpu")
    assert classifier.config.id2label == {0: "a", 1: "b"}
    assert classifier.config.label2id == {"a": 0, "b": 1}
    assert classifier.config.pad_token_id == load_tokenizer(folder).pad_token_id
    assert classifier.get_output_embeddings() is None
    assert not classifier.training
    ids = torch.randint(3, 400, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[1, 6:] = classifier.config.pad_token_id
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        hidden = base.base_model(ids, attention_mask=mask).last_hidden_state
        scores = classifier(ids, attention_mask=mask).logits
        alone = classifier(ids[1:, :6]).logits
    last = torch.stack([hidden[0, 8], hidden[1, 5]])
    torch.testing.assert_close(scores, last @ classifier.score.weight.T)
    torch.testing.assert_close(scores[1:], alone)


def test_a_new_head_is_no_news_but_another_missing_weight_is(tiny_llama, tmp_path, caplog):
    from safetensors.torch import load_file, save_file

    load_classifier(tiny_llama, "fp32", "cpu", labels=["a", "b"], seed=1)
    assert "LOAD REPORT" not in caplog.text
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        load_classifier(folder, "fp32", "cpu", labels=["a", "b"], seed=1)


def test_only_conv1d_targets_want_fan_in_fan_out(tiny_llama, tiny_gpt2):
    assert fan_in_fan_out(inspect_model(tiny_gpt2, "x"), ["c_attn"])
    assert not fan_in_fan_out(inspect_model(tiny_llama, "x"), ["q_proj"])


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token == "<|endoftext|>"
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(folder).pad_token == "<|im_end|>"


def test_missing_weights_are_a_sentence(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="could not be read"):
        load_model(folder, "fp32", "cpu")


def test_broken_weights_are_a_sentence(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="could not be read"):
        load_model(folder, "fp32", "cpu")


def test_a_pickle_beside_no_safetensors_is_never_opened(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could not be read"):
        load_model(folder, "fp32", "cpu")


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "model.out_of_memory"),
        (MemoryError(), "model.out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "model.out_of_memory"),
        (RuntimeError("MPS backend out of memory"), "model.out_of_memory"),
        (ImportError("needs sentencepiece\nlong text"), "model.missing_library"),
        (OSError("does not appear to have a file"), "model.unreadable"),
        (KeyError("rope"), "model.unreadable"),
    ],
)
def test_every_failure_while_reading_is_a_sentence(tmp_path, error, key):
    with pytest.raises(ModelError) as caught, reading(tmp_path):
        raise error
    assert caught.value.key == key
    assert caught.value.values["source"] == tmp_path.name


def test_a_bug_is_not_dressed_up_as_a_sentence(tmp_path):
    with pytest.raises(RuntimeError, match="shape mismatch"), reading(tmp_path):
        raise RuntimeError("shape mismatch")


def test_a_snapshot_of_the_hub_is_called_by_its_id(tmp_path):
    folder = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    with pytest.raises(ModelError, match="owner/name"), reading(folder):
        raise MemoryError
