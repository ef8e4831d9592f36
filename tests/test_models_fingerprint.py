"""A base is known by its weights: copies are the same, and what was trained further is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainings import recipe_over, runs_in

from lora_studio.errors import ModelError, RunError
from lora_studio.models.fingerprint import BLOCK_BYTES, INDEX, WHOLE, weights_fingerprint
from lora_studio.runs.events import EventWriter, read_events
from lora_studio.settings import Settings
from lora_studio.training.session import Session

Weights = dict[str, torch.Tensor]
LARGE = 4 * BLOCK_BYTES
"""float32 numbers of a weight that is not read as a whole."""


@pytest.fixture
def weights() -> Weights:
    torch.manual_seed(0)
    return {
        "a.large.weight": torch.randn(8, LARGE // 8),
        "b.norm.weight": torch.randn(16),
        "c.half.weight": torch.randn(4, 4).bfloat16(),
    }


def model_of(weights: Weights, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / WHOLE, {"format": "pt"})
    return folder


def split(weights: Weights, folder: Path) -> Path:
    folder.mkdir()
    parts = {name: f"model-0000{number}.safetensors" for number, name in enumerate(weights)}
    for name, part in parts.items():
        save_file({name: weights[name]}, folder / part)
    (folder / INDEX).write_text(json.dumps({"weight_map": parts}), encoding="utf-8")
    return folder


def test_a_copy_is_the_same_however_its_files_are_split_and_whatever_lies_beside(
    tmp_path: Path, weights: Weights
) -> None:
    whole = model_of(weights, tmp_path / "whole")
    expected = weights_fingerprint(whole)
    assert len(expected) == 64
    parts = split(weights, tmp_path / "parts")
    (parts / "consolidated.safetensors").write_bytes(b"of no interest")
    (whole / "adapter_model.safetensors").write_bytes(b"neither")
    assert weights_fingerprint(parts) == weights_fingerprint(whole) == expected


def first(values: torch.Tensor) -> None:
    values.view(-1)[0] += 1


def middle(values: torch.Tensor) -> None:
    values.view(-1)[values.numel() // 2] += 1


def last(values: torch.Tensor) -> None:
    values.view(-1)[-1] += 1


@pytest.mark.parametrize("name", ["a.large.weight", "b.norm.weight", "c.half.weight"])
@pytest.mark.parametrize("change", [first, middle, last])
def test_one_other_number_where_it_looks_is_another_model(
    tmp_path: Path, weights: Weights, name: str, change: Callable[[torch.Tensor], None]
) -> None:
    before = weights_fingerprint(model_of(weights, tmp_path / "model"))
    change(weights[name])
    assert weights_fingerprint(model_of(weights, tmp_path / "model")) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found | {"d.more.weight": torch.zeros(1)},
        lambda found: {f"x{name}": value for name, value in found.items()},
        lambda found: found | {"b.norm.weight": found["b.norm.weight"].reshape(4, 4)},
        lambda found: found | {"b.norm.weight": found["b.norm.weight"].view(torch.int32)},
    ],
)
def test_other_names_shapes_and_number_formats_are_another_model(
    tmp_path: Path, weights: Weights, change: Callable[[Weights], Weights]
) -> None:
    before = weights_fingerprint(model_of(weights, tmp_path / "model"))
    assert weights_fingerprint(model_of(change(weights), tmp_path / "other")) != before


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{"])
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WHOLE).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file"):
        weights_fingerprint(tmp_path)


def test_a_file_of_the_index_that_is_missing_is_an_error(tmp_path: Path, weights: Weights) -> None:
    model = split(weights, tmp_path / "parts")
    (model / "model-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        weights_fingerprint(model)


# In a run


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_a_run_notes_its_base_and_goes_on_with_no_other_of_the_same_shapes(
    settings: Settings, tmp_path: Path, tiny_llama: Path, pairs: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    with runs_in(settings.runs, settings) as build:
        run = build(recipe_over(pairs, model))
    (noted,) = run.events("started")
    assert noted["base_fingerprint"] == weights_fingerprint(model)

    def go_on() -> None:
        recipe = run.folder.read_recipe()
        with EventWriter(run.folder.events) as events:
            Session(recipe, settings, lambda *_: None, start=1).build(run.folder, events)

    weights = load_file(model / WHOLE)
    weights["model.layers.1.mlp.up_proj.weight"] *= 1.001
    save_file(weights, model / WHOLE, {"format": "pt"})
    with pytest.raises(RunError) as refused:
        go_on()
    assert refused.value.key == "run.base_changed"
    assert str(model) in str(refused.value)
    (model / WHOLE).write_bytes(b"torn")
    with pytest.raises(ModelError, match="no safetensors file"):
        go_on()
    shutil.copy(tiny_llama / WHOLE, model / WHOLE)
    go_on()
    assert len(run.events("started")) == 2
    of_earlier_versions = [
        {name: value for name, value in event.items() if name != "base_fingerprint"}
        for event in read_events(run.folder.events)[0]
    ]
    run.folder.events.write_text(
        "".join(f"{json.dumps(event)}\n" for event in of_earlier_versions), encoding="utf-8"
    )
    go_on()
