"""From a name to a folder: local folders, and a Hub made of a local web server."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants, errors, file_download
from local_hub import Hub, be_patient
from safetensors.torch import load_file, save_file

from lora_studio.errors import ModelError
from lora_studio.models import hub, sources, starter
from lora_studio.models.sources import hub_name, local_models, resolve
from lora_studio.settings import Settings
from lora_studio.workbench import Workbench

TOKEN = "hf_thisIsASecret"


@pytest.fixture
def repository(tiny_llama, tmp_path) -> Path:
    """The files of `owner/name`: a model, and things that must not be fetched."""
    folder = shutil.copytree(tiny_llama, tmp_path / "repository")
    for name in ["pytorch_model.bin", "modeling_x.py", "consolidated.safetensors", "onnx/a.json"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not wanted")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture
def local_hub(repository, tmp_path, monkeypatch) -> Iterator[Hub]:
    server = Hub(repository)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    be_patient(monkeypatch)
    yield server
    server.go_away()


@pytest.fixture
def online(tmp_path) -> Settings:
    return Settings(home=tmp_path / "home")


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_hub_model_arrives_without_pickles_code_and_copies(local_hub, online):
    reports: list[tuple[str, int, int]] = []

    folder = resolve("owner/name", online, on_progress=lambda *report: reports.append(report))

    assert names(folder) == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    total = sum(file.stat().st_size for file in folder.iterdir())
    assert reports[-1] == ("download", total, total)
    assert all(stage == "download" and done <= whole for stage, done, whole in reports)


def test_an_inspection_leaves_the_weights_on_the_hub(local_hub, online):
    folder = resolve("owner/name", online, weights=False)
    assert "config.json" in names(folder)
    assert "model.safetensors" not in names(folder)


def test_what_was_fetched_once_is_used_offline(local_hub, online):
    first = resolve("owner/name", online)
    local_hub.asked.clear()
    offline = Settings(home=online.home, offline=True)
    assert resolve("owner/name", offline) == first
    assert local_hub.asked == []


def test_what_was_fetched_once_is_used_when_the_hub_is_gone(local_hub, online, monkeypatch):
    first = resolve("owner/name", online)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve("owner/name", online) == first


@pytest.fixture
def breaking(local_hub, repository, tiny_llama) -> Path:
    """The second of two files of weights, in whose middle the connection breaks."""
    weights = load_file(tiny_llama / "model.safetensors")
    parts = {name: f"model-0000{1 + place % 2}-of-00002.safetensors"
             for place, name in enumerate(sorted(weights))}  # fmt: skip
    for part in set(parts.values()):
        held = {name: weights[name] for name, place in parts.items() if place == part}
        save_file(held, repository / part, {"format": "pt"})
    (repository / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": parts}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    second = repository / "model-00002-of-00002.safetensors"
    local_hub.breaks_at = (second.name, second.stat().st_size // 2)
    return second


def test_a_download_that_breaks_off_is_never_taken_for_a_model(
    local_hub, online, breaking, monkeypatch
):
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # before it tries again
    offline = Settings(home=online.home, offline=True)
    for settings in (online, online, offline):
        with pytest.raises(ModelError) as caught:
            resolve("owner/name", settings)
        assert caught.value.key == "model.no_network"
    local_hub.come_back()
    folder = resolve("owner/name", online)
    assert (folder / breaking.name).read_bytes() == breaking.read_bytes()
    assert resolve("owner/name", offline) == folder


def test_what_an_ended_download_left_is_removed_once_it_is_nobodys(local_hub, online):
    blobs = resolve("owner/name", online).parents[1] / "blobs"
    left, written = blobs / "a.1.incomplete", blobs / "b.2.incomplete"
    for file in (left, written):
        file.write_bytes(b"half")
    long_ago = time.time() - hub.ABANDONED_S - 1
    os.utime(left, (long_ago, long_ago))
    resolve("owner/name", online)
    assert not left.exists()
    assert written.exists()


def test_a_download_whose_connection_breaks_once_comes_to_its_end(
    local_hub, online, breaking, monkeypatch
):
    local_hub.is_leaving = False
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # before it tries again
    folder = resolve("owner/name", online)
    assert (folder / breaking.name).read_bytes() == breaking.read_bytes()
    assert local_hub.sent.count(breaking.name) == 2


def test_a_model_never_fetched_needs_the_network(local_hub, online, monkeypatch):
    with pytest.raises(ModelError, match="Hub cannot be reached"):
        resolve("owner/name", Settings(home=online.home, offline=True))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="Hub cannot be reached"):
        resolve("owner/name", online)


@pytest.mark.parametrize(
    ("status", "code", "key"),
    [
        (401, "RepoNotFound", "model.not_found"),
        (404, "RepoNotFound", "model.not_found"),
        (403, "GatedRepo", "model.gated"),
        (403, "", "model.token_refused"),
        (429, "", "model.hub_trouble"),
        (500, "", "model.hub_trouble"),
    ],
)
def test_every_refusal_of_the_hub_is_a_sentence(local_hub, online, status, code, key):
    local_hub.refusal = (status, code)
    with pytest.raises(ModelError) as caught:
        resolve("owner/name", online, token=TOKEN)
    assert caught.value.key == key
    assert caught.value.values["source"] == "owner/name"


def test_the_token_is_sent_and_said_nowhere(local_hub, online, caplog):
    caplog.set_level(logging.DEBUG)
    local_hub.refusal = (403, "GatedRepo")
    with pytest.raises(ModelError) as caught:
        resolve("owner/name", online, token=TOKEN)
    assert local_hub.tokens == {f"Bearer {TOKEN}"}
    error: BaseException | None = caught.value
    while error is not None:
        assert TOKEN not in f"{error!r}{error}"
        error = error.__cause__ or error.__context__
    assert TOKEN not in caplog.text
    kept = [file for file in online.home.parent.rglob("*") if file.is_file()]
    assert not any(TOKEN.encode() in file.read_bytes() for file in kept)


def test_a_token_with_a_line_break_is_refused_without_quoting_it(local_hub, online):
    with pytest.raises(ModelError) as caught:
        resolve("owner/name", online, token=f"{TOKEN}\n")
    assert caught.value.key == "model.token_malformed"
    assert TOKEN not in repr(caught.value)
    assert local_hub.asked == []


def test_what_a_token_has_brought_is_used_without_it_but_not_on_a_space(local_hub, online):
    def bring(settings: Settings, token: str | None = None) -> str:
        *_, last = Workbench(settings).fetch("owner/name", token)
        return last["result"]

    local_hub.refusal = (403, "GatedRepo")
    with pytest.raises(ModelError) as caught:
        bring(online)
    assert caught.value.key == "model.gated"
    local_hub.refusal = None
    brought = bring(online, TOKEN)
    local_hub.refusal = (403, "GatedRepo")
    assert bring(online) == brought
    with pytest.raises(ModelError) as caught:
        bring(replace(online, space_id="a/b"))
    assert caught.value.key == "model.gated"


def test_a_space_never_lends_its_own_token(local_hub, tmp_path):
    space = Settings(home=tmp_path / "home", space_id="a/b", hub_token=TOKEN)
    resolve("owner/name", space)
    assert local_hub.tokens == {None}


def test_the_token_of_the_settings_is_used_elsewhere(local_hub, tmp_path):
    resolve("owner/name", Settings(home=tmp_path / "home", hub_token=TOKEN), weights=False)
    assert local_hub.tokens == {f"Bearer {TOKEN}"}


def test_a_repository_without_safetensors_is_refused_before_any_file_is_fetched(
    local_hub, online, repository
):
    (repository / "model.safetensors").unlink()
    (repository / "consolidated.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights in safetensors"):
        resolve("owner/name", online, weights=False)
    assert not any("resolve" in path for path in local_hub.asked)


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "model.disk_full"),
        (PermissionError(errno.EACCES, "Permission denied"), "model.unreadable"),
        (errors.OfflineModeIsEnabled("offline"), "model.no_network"),
        (errors.LocalEntryNotFoundError("not here"), "model.no_network"),
        (errors.HFValidationError("bad"), "model.bad_source"),
        (errors.XetDownloadError("broken"), "model.unreadable"),
        (httpx2.ReadTimeout("slow"), "model.no_network"),
        (httpx2.ProxyError("proxy"), "model.no_network"),
    ],
)
def test_every_exception_while_fetching_is_a_sentence(online, monkeypatch, error, key):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(hub, "_has_safetensors", lambda *args: True)
    with pytest.raises(ModelError) as caught:
        resolve("owner/name", online)
    assert caught.value.key == key


def test_no_exception_of_the_hub_escapes_translation():
    """What the Hub's library says in its own words has to be one of the kinds we translate."""
    caught = (httpx2.HTTPError, OSError, ValueError, errors.EntryNotFoundError)
    of_other_services = ("Cache", "OIDC", "DeviceCode", "Inference", "Safetensors", "Tree")
    of_other_services += ("DDUF", "StrictDataclass", "CLI", "Confirmation", "Sandbox", "Duplicat")
    for name, kind in vars(errors).items():
        if (
            isinstance(kind, type)
            and issubclass(kind, Exception)
            and kind.__module__ == errors.__name__
        ):
            known = issubclass(kind, caught) or kind in (
                errors.RevisionResolutionError,
                errors.XetDownloadError,
            )
            assert known or any(word in name for word in of_other_services), name


def test_a_folder_is_taken_as_it_is(tiny_llama, settings):
    assert resolve(str(tiny_llama), settings) == tiny_llama.resolve()


def test_a_folder_that_is_no_model_is_refused(settings, tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path), settings)
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path / "not-there"), settings)


def test_an_adapter_folder_names_its_base(settings, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    with pytest.raises(ModelError, match="owner/base"):
        resolve(str(tmp_path), settings)


@pytest.mark.parametrize("source", ["", "gpt2", "../x", "owner/name/more", "http://x/y", "a b/c"])
def test_what_is_no_name_of_a_model_is_refused(settings, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        resolve(source, settings)
    assert caught.value.key == "model.bad_source"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "model.not_causal_lm"),
        ({"model_type": "t5", "architectures": ["T5Model"]}, "model.not_causal_lm"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "model.not_causal_lm"),
        ({"model_type": "own", "auto_map": {"AutoModel": "m.M"}}, "model.remote_code"),
        ({"model_type": None}, "model.not_causal_lm"),
        ({"quantization_config": {"quant_method": "gptq"}}, "model.quantized"),
        ({"architectures": ["LLaMAForCausalLM"]}, None),
        ({"auto_map": {"AutoModel": "m.M"}}, None),
    ],
)
def test_only_models_that_write_text_with_code_of_transformers_are_taken(
    tiny_llama, settings, tmp_path, changes, key
):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    if key is None:
        assert resolve(str(folder), settings) == folder
        return
    with pytest.raises(ModelError) as caught:
        resolve(str(folder), settings)
    assert caught.value.key == key


def test_broken_json_is_a_sentence(settings, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="Download the model again"):
        resolve(str(tmp_path), settings)


def test_weights_in_another_format_are_refused_but_can_be_inspected(tiny_llama, settings, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        resolve(str(folder), settings)
    assert resolve(str(folder), settings, weights=False) == folder


def test_local_models_are_found_by_folder_name(tiny_llama, tmp_path):
    other = tmp_path / "other"
    settings = Settings(home=tmp_path / "home", model_folders=(other, tmp_path / "missing"))
    for folder in [settings.models / "a", other / "a", other / "b", settings.models / ".partial"]:
        shutil.copytree(tiny_llama, folder)
    (other / "no-model").mkdir()
    assert local_models(settings) == {
        "a": settings.models / "a",
        f"a ({other})": other / "a",
        "b": other / "b",
    }


def test_a_space_offers_only_its_own_folders(tiny_llama, tmp_path):
    space = Settings(home=tmp_path / "home", space_id="a/b")
    inside = shutil.copytree(tiny_llama, space.models / "a")
    assert resolve(str(inside), space) == inside
    with pytest.raises(ModelError, match="not one of this Space's models"):
        resolve(str(tiny_llama), space)


def test_the_starter_model_is_asked_of_its_own_module(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(starter, "ensure", lambda settings, **options: tmp_path)
    assert resolve(" starter ", settings) == tmp_path
    assert hub_name("starter") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_name("owner/name") == "owner/name"
    assert sources.HUB_ID.fullmatch(starter.REPOSITORY)
