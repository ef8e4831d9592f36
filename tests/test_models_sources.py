"""From a name to a folder: local folders, and a Hub made of a local web server."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx2
import pytest
from huggingface_hub import constants, errors

from lora_studio.errors import ModelError
from lora_studio.models import hub, sources, starter
from lora_studio.models.sources import hub_name, local_models, resolve
from lora_studio.settings import Settings

TOKEN = "hf_thisIsASecret"
SHA = "a" * 40


class Hub(ThreadingHTTPServer):
    """Answers as huggingface.co does for one repository, `owner/name`, made of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.refusal: tuple[int, str] | None = None
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def files(self) -> dict[str, bytes]:
        return {
            str(file.relative_to(self.folder)): file.read_bytes()
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refusal is not None:
            status, code = self.server.refusal
            self.answer(b"", status, {"X-Error-Code": code} if code else {})
        elif path.startswith("/api/models/owner/name/tree/"):
            files = self.server.files
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "b" * 40}
                for name, data in files.items()
            ]
            self.answer(json.dumps(tree).encode())
        elif path.startswith("/api/models/owner/name"):
            info = {"id": "owner/name", "sha": SHA}
            info["siblings"] = [{"rfilename": name} for name in self.server.files]
            self.answer(json.dumps(info).encode())
        elif path.startswith("/owner/name/resolve/"):
            self.answer(self.server.files[path.partition(f"{SHA}/")[2]])
        else:
            self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Keep the test's output clean."""


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
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


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
