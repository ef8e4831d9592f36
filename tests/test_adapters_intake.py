"""Adapters from elsewhere: what comes in, what is left behind, what is refused and why."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from kept import save, write_run
from local_hub import SHA, Hub, be_patient
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sorting import LABELS, make_sorter

from lora_studio.adapters import intake, lineage, shrinking, weights
from lora_studio.adapters.configuration import CONFIG, WEIGHTS
from lora_studio.cases.machine import Machine
from lora_studio.chat.engine import Engine
from lora_studio.chat.request import Pane
from lora_studio.cli.main import main
from lora_studio.errors import AdapterError, ModelError, StudioError
from lora_studio.library import arrivals
from lora_studio.library.arrivals import make_smaller, take_in
from lora_studio.library.entries import Table
from lora_studio.library.names import PEFT, Origin, resolve, write_origin
from lora_studio.models.fingerprint import weights_fingerprint
from lora_studio.recipes.upgrade import read_recipe
from lora_studio.settings import Settings
from lora_studio.studio import Studio

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


@pytest.fixture
def base(tiny_llama: Path, settings: Settings) -> str:
    """A base model of this studio."""
    return str(shutil.copytree(tiny_llama, settings.models / "tiny"))


@pytest.fixture
def adapter(base: str, tmp_path: Path) -> Path:
    """An adapter as PEFT saves it, with a checkpoint's state beside it."""
    folder = save(base, tmp_path / "elsewhere" / "harbour")
    (folder / "README.md").write_text("A card.")
    torch.save({}, folder / "training_args.bin")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    return folder


def says(folder: Path, **settings: Any) -> Path:
    """Have an adapter's configuration say something else."""
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def zipped(folder: Path, file: Path, top: str = "") -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for one in sorted(folder.rglob("*")):
            if one.is_file():
                archive.write(one, top + one.relative_to(folder).as_posix())
    return file


def refusal(settings: Settings, what: Any, **about: Any) -> StudioError:
    """Return the error, and see that nothing of it is left."""
    with pytest.raises(StudioError) as caught:
        take_in(str(what), settings.adapters, settings, **about)
    assert not settings.adapters.exists() or not list(settings.adapters.iterdir())
    assert caught.value.say("ko") != caught.value.say("en")
    assert str(settings.adapters) not in str(caught.value)
    return caught.value


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_comes_in_with_the_files_that_are_known(
    settings: Settings, base: str, adapter: Path
) -> None:
    reports: list[str] = []
    found = take_in(
        str(adapter),
        settings.adapters,
        settings,
        on_progress=lambda stage, *_: reports.append(stage),
    )
    assert found["id"] == "harbour-a1"
    named = resolve("harbour-a1", settings)
    assert files(named.folder) == {CONFIG, WEIGHTS, "README.md"}
    assert (named.source, named.precision, named.labels) == (base, "auto", ())
    assert found["origin"]["kind"] == "folder"
    assert {"copy", "check"} <= set(reports)
    assert (named.folder / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    again = take_in(str(adapter), settings.adapters, settings)
    assert again["id"] == "harbour-a2"


@pytest.mark.parametrize("top", ["", "harbour/", "모델/harbour/"])
def test_a_zip_comes_in_and_answers_as_it_did(
    settings: Settings, base: str, adapter: Path, tmp_path: Path, top: str
) -> None:
    file = zipped(adapter, tmp_path / "Sea Poems.zip", top)
    found = take_in(str(file), settings.adapters, settings)
    assert found["id"] == "sea-poems-a1"
    engine, pane = Engine(), Pane(text="The quick", adapter="a")
    taken = resolve("sea-poems-a1", settings).folder
    answers = []
    for folder in (adapter, taken):
        engine.load(base, "fp32", "cpu", {"a": str(folder)})
        answers.append(engine.logits(pane))
    assert answers[0] == answers[1]
    assert answers[0] != engine.logits(Pane(text="The quick"))


def test_the_adapter_of_a_whole_run_is_found_in_it(
    settings: Settings, adapter: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "adapter")
    shutil.copytree(adapter, run / "checkpoints" / "checkpoint-4")
    found = take_in(str(run), settings.adapters, settings)
    assert (found["id"], found["origin"]["of"]) == ("run-a1", "run")
    found = take_in(str(zipped(run, tmp_path / "run.zip")), settings.adapters, settings)
    assert found["id"] == "run-a2"
    shutil.copytree(adapter, run / "second")
    error = refusal_beside(settings, run)
    assert (error.key, error.values["found"]) == ("library.many_adapters", ["adapter", "second"])


def refusal_beside(settings: Settings, what: Path) -> StudioError:
    before = files(settings.adapters)
    with pytest.raises(StudioError) as caught:
        take_in(str(what), settings.adapters, settings)
    assert files(settings.adapters) == before
    return caught.value


@pytest.mark.parametrize("what", [".", "../adapter", "adapter", "./adapter/"])
def test_a_folder_named_from_within_is_called_after_its_run(
    settings: Settings, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "sea-poems-1" / "adapter")
    monkeypatch.chdir(folder if what.startswith(("../", ".")) and what != "./adapter/"
                      else folder.parent)  # fmt: skip
    assert take_in(what, settings.adapters, settings)["id"] == "sea-poems-1-a1"


def test_a_classifier_brings_the_names_of_its_classes(
    settings: Settings, base: str, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sorter"
    make_sorter(tiny_llama, folder, seed=2)
    assert refusal(settings, says(folder, base_model_name_or_path=base)).key == "library.no_classes"
    labels = {str(at): name for at, name in enumerate(LABELS)}
    (folder / "config.json").write_text(json.dumps({"id2label": labels}))
    found = take_in(str(folder), settings.adapters, settings)
    assert resolve(found["id"], settings).labels == LABELS
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b"}}))
    assert refusal_beside(settings, folder).key == "adapters.wrong_base"


# What is not taken


@pytest.mark.parametrize(
    ("entry", "key"),
    [("../evil.txt", "data.unsafe_archive"), ("/etc/evil", "data.unsafe_archive"),
     ("C:\\evil", "data.unsafe_archive"), ("a/../../evil", "data.unsafe_archive")],
)  # fmt: skip
def test_an_archive_that_would_write_elsewhere_is_refused(
    settings: Settings, adapter: Path, tmp_path: Path, entry: str, key: str
) -> None:
    file = zipped(adapter, tmp_path / "evil.zip")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(entry, "evil")
    assert refusal(settings, file).key == key
    assert not list(tmp_path.rglob("evil*.txt"))


def test_a_link_in_an_archive_is_refused(settings: Settings, adapter: Path, tmp_path: Path) -> None:
    (adapter / WEIGHTS).unlink()
    file = zipped(adapter, tmp_path / "link.zip")
    link = zipfile.ZipInfo(WEIGHTS)
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert refusal(settings, file).key == "data.unsafe_archive"


def test_an_encrypted_archive_is_refused(settings: Settings, adapter: Path, tmp_path: Path) -> None:
    raw = bytearray(zipped(adapter, tmp_path / "locked.zip").read_bytes())
    at = raw.rindex(b"PK\1\2")
    raw[at + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(raw)
    assert refusal(settings, tmp_path / "locked.zip").key == "data.encrypted_archive"


def test_a_bomb_is_refused_before_it_unpacks(
    settings: Settings, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "LARGEST_OTHER_BYTES", 10_000)
    opened: list[str] = []
    monkeypatch.setattr(intake, "_blocks", lambda opener, target: opened.append(target.name))
    file = tmp_path / "bomb.zip"
    with zipfile.ZipFile(zipped(adapter, file), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tokenizer.json", b"0" * 10_000_000)
    error = refusal(settings, file)
    assert (error.key, error.values["file"]) == ("library.too_large", "tokenizer.json")
    assert opened == []


def test_an_archive_that_lies_about_its_size_is_refused(
    settings: Settings, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "liar.zip"
    with zipfile.ZipFile(zipped(adapter, file), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tokenizer.json", b"0" * 1_000_000)
    raw = bytearray(file.read_bytes())
    true = (1_000_000).to_bytes(4, "little")
    while (at := raw.find(true)) >= 0:
        raw[at : at + 4] = (10).to_bytes(4, "little")
    file.write_bytes(raw)
    monkeypatch.setattr(intake, "LARGEST_OTHER_BYTES", 10_000)
    assert refusal(settings, file).key in ("data.broken_archive", "library.too_large")


def test_an_archive_of_too_many_files_is_refused(settings: Settings, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(10_001):
            archive.writestr(f"{number}", "")
    assert refusal(settings, tmp_path / "many.zip").key == "data.too_many_files"


@pytest.mark.parametrize(
    ("content", "key"),
    [(b"", "data.broken_archive"), (b"no zip at all", "data.broken_archive"),
     (b"\x80\x04K\x01.", "data.broken_archive")],
)  # fmt: skip
def test_a_file_that_is_no_archive_is_refused(
    settings: Settings, tmp_path: Path, content: bytes, key: str
) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    assert refusal(settings, tmp_path / "a.zip").key == key


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter.pt", "weights.ckpt"])
def test_a_pickle_is_refused_and_never_opened(
    settings: Settings, adapter: Path, tmp_path: Path, name: str
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    (adapter / WEIGHTS).unlink()
    torch.save(Evil(), adapter / name)
    shutil.rmtree(tmp_path / "ran", ignore_errors=True)
    for what in (adapter, zipped(adapter, tmp_path / "p.zip")):
        error = refusal(settings, what)
        assert error.key == "library.pickle"
        assert error.values["file"].endswith((".bin", ".pt", ".ckpt"))
    shutil.copy(adapter / name, adapter / WEIGHTS)
    assert refusal(settings, adapter).key == "adapters.pickled"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_half_an_adapter_is_refused(settings: Settings, adapter: Path, file: str) -> None:
    (adapter / "training_args.bin").unlink()
    (adapter / file).unlink()
    error = refusal(settings, adapter)
    assert (error.key, error.values["missing"]) == ("library.no_adapter_in", file)


def test_a_link_to_elsewhere_is_refused_but_the_hubs_cache_is_all_links(
    settings: Settings, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (adapter / WEIGHTS).rename(outside / "blob")
    (adapter / WEIGHTS).symlink_to(outside / "blob")
    assert refusal(settings, adapter).key == "library.link"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(outside))
    assert take_in(str(adapter), settings.adapters, settings)["id"] == "harbour-a1"
    assert not (settings.adapters / "harbour-a1" / PEFT / WEIGHTS).is_symlink()


def test_a_folder_that_is_a_link_to_elsewhere_is_not_followed(
    settings: Settings, adapter: Path, tmp_path: Path
) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "sub").symlink_to(adapter)
    error = refusal(settings, outer)
    assert (error.key, error.values["file"]) == ("library.link", "sub")
    (tmp_path / "mine").symlink_to(adapter)
    assert take_in(str(tmp_path / "mine"), settings.adapters, settings)["id"] == "mine-a1"


def test_a_full_disk_is_said_before_anything_is_copied(
    settings: Settings, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SPARE_BYTES", 10**18)
    assert refusal(settings, adapter).key == "library.disk_full"


def test_a_disk_that_fills_at_the_last_note_leaves_nothing(
    settings: Settings, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrivals, "write_origin", full)
    error = refusal(settings, adapter)
    assert (error.key, error.values["name"]) == ("library.not_readable", "harbour")


def test_a_disk_that_fills_while_a_smaller_one_is_written_leaves_nothing(
    settings: Settings, base: str, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    taken = take_in(str(adapter), settings.adapters, settings)["id"]
    before = files(settings.adapters)
    monkeypatch.setattr(shrinking, "save_file", full)
    with pytest.raises(AdapterError, match="No space left") as caught:
        make_smaller(resolve(taken, settings), 2, settings.adapters)
    assert caught.value.key == "library.not_readable"
    assert files(settings.adapters) == before


def test_names_of_modules_are_known_without_their_numbers(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {key.removeprefix("base_model.model.").partition(".lora_")[0]
             for key in load_file(adapter / WEIGHTS)}  # fmt: skip

    def unwanted(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(weights, "read_tensors", unwanted)
    assert arrivals._modules(adapter) == names


def broken(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return write


def first(tensors: dict[str, torch.Tensor], part: str = "lora_A") -> str:
    return min(key for key in tensors if part in key)


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "NaN": (lambda t: t[first(t)].fill_(torch.nan), "adapters.not_finite"),
    "infinite": (lambda t: t[first(t, "lora_B")].fill_(torch.inf), "adapters.not_finite"),
    "missing": (lambda t: t.pop(first(t, "lora_B")), "adapters.unusable"),
    "surplus": (
        lambda t: t.update({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight":
                            torch.zeros(4, 32)}),
        "adapters.not_here",
    ),
    "wider": (lambda t: t.update({first(t): torch.zeros(4, 33)}), "adapters.wrong_base"),
    "rank 0": (lambda t: t.update({key: one[:0] if "lora_A" in key else one[:, :0].contiguous()
                                   for key, one in list(t.items())}), "adapters.unusable"),
    "strange": (lambda t: t.update({"evil": torch.zeros(1)}), "adapters.not_here"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused_before_a_base_is_loaded(
    settings: Settings, adapter: Path, case: str
) -> None:
    change, key = TENSORS[case]
    broken(change)(adapter)
    assert refusal(settings, adapter).key == key


def test_an_adapter_of_another_base_is_refused_by_name(
    settings: Settings, adapter: Path, tiny_gpt2: Path
) -> None:
    shutil.copytree(tiny_gpt2, settings.models / "gpt")
    error = refusal(settings, adapter, base=str(settings.models / "gpt"))
    assert (error.key, error.values["folder"]) == ("adapters.not_here", "harbour")


@pytest.mark.parametrize(
    ("settings_", "key"),
    [({"r": 0}, "adapters.odd_setting"), ({"peft_type": "IA3"}, "adapters.kind"),
     ({"from_the_future": True}, "adapters.unknown_settings"),
     ({"init_lora_weights": "pissa"}, "adapters.rewrites_base"),
     ({"target_modules": ["k_proj"]}, "adapters.unusable"),
     ({"rank_pattern": 5}, "adapters.odd_setting"),
     ({"exclude_modules": 7}, "adapters.odd_setting"),
     ({"layers_pattern": 3}, "adapters.odd_setting"), ({"bias": {}}, "adapters.odd_setting"),
     ({"target_modules": [1, 2]}, "adapters.odd_setting"),
     ({"modules_to_save": 5}, "adapters.odd_setting"),
     ({"lora_alpha": 10**400}, "adapters.odd_setting"),
     ({"task_type": "EVERYTHING"}, "adapters.unreadable"),
     ({"rank_pattern": {"(a+)+$": 4}}, "library.odd_pattern"),
     ({"layers_pattern": "(a|a)*b"}, "library.odd_pattern")],
)  # fmt: skip
def test_what_the_configuration_says_is_checked(
    settings: Settings, adapter: Path, settings_: dict[str, Any], key: str
) -> None:
    assert refusal(settings, says(adapter, **settings_)).key == key


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_configuration_that_is_none_is_refused(
    settings: Settings, adapter: Path, text: str
) -> None:
    (adapter / CONFIG).write_text(text)
    assert refusal(settings, adapter).key == "adapters.unreadable"


def test_notes_and_paths_of_a_configuration_are_left_out(settings: Settings, adapter: Path) -> None:
    says(adapter, my_note=None, auto_mapping={"parent_library": "/tmp/evil"},
         corda_config={"cache_file": "/etc/x"}, eva_config={"rho": 2}, revision="/etc/passwd",
         loftq_config={"loftq_bits": 4}, target_modules=r".*\.(q|v)_proj")  # fmt: skip
    found = take_in(str(adapter), settings.adapters, settings)
    kept = json.loads((settings.adapters / found["id"] / PEFT / CONFIG).read_text())
    left_out = {"my_note", "auto_mapping", "corda_config", "eva_config", "revision", "loftq_config"}
    assert not left_out & kept.keys()
    assert kept["target_modules"] == [
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv"
    ]


# Which base


@pytest.mark.parametrize(
    ("named", "key"),
    [("/home/somebody/llama", "library.base_elsewhere"), ("", "library.no_base"),
     (None, "library.no_base"), ("../../etc", "library.base_elsewhere"),
     ("C:\\models\\llama", "library.base_elsewhere"), ("owner/gone", "library.base_gone")],
)  # fmt: skip
def test_a_base_that_is_not_here_is_asked_for(
    settings: Settings, base: str, adapter: Path, named: str | None, key: str
) -> None:
    says(adapter, base_model_name_or_path=named)
    assert refusal(settings, adapter).key == key
    found = take_in(str(adapter), settings.adapters, settings, base=base)
    kept = json.loads((settings.adapters / found["id"] / PEFT / CONFIG).read_text())
    assert found["origin"]["source"] == kept["base_model_name_or_path"] == base


@pytest.mark.parametrize(
    ("named", "doubted"),
    [("meta-llama/Llama-3-8B", "meta-llama/Llama-3-8B"), ("/home/ann/Llama-3", "Llama-3"),
     ("C:\\models\\llama", "llama"), ("/cache/models--owner--other/snapshots/abc", "owner/other"),
     ("", None), ("/home/ann/models/tiny/", None), ("C:\\models\\Tiny", None),
     ("owner/tiny", None), ("/cache/models--owner--tiny/snapshots/abc", None)],
)  # fmt: skip
def test_a_base_of_another_name_is_taken_with_a_warning_that_stays(
    settings: Settings, base: str, adapter: Path, named: str, doubted: str | None,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    says(adapter, base_model_name_or_path=named)
    monkeypatch.setenv("LORA_STUDIO_HOME", str(settings.home))
    assert main(["adapters", "add", str(adapter), "--base", base]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == "harbour-a1"
    assert ("Warning" in told.err and str(doubted) in told.err) == (doubted is not None)
    assert resolve("harbour-a1", settings).trained_on == doubted
    (entry,) = Table(settings).entries()
    assert (entry.doubt is not None) == (doubted is not None)
    if doubted:
        assert doubted in str(entry.doubt) and "tiny" in str(entry.doubt)


def test_what_is_known_of_a_base_goes_with_a_zip_and_comes_back(
    settings: Settings, base: str, adapter: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    other = tmp_path / "other"
    says(adapter, base_model_name_or_path="owner/other")
    take_in(str(adapter), settings.adapters, settings, base=base)
    fingerprint = weights_fingerprint(Path(base))
    origin = settings.adapters / "harbour-a1" / "origin.json"
    origin.write_text(json.dumps(json.loads(origin.read_text()) | {"fingerprint": fingerprint}))
    studio = Studio(settings, Machine.open(settings, isolated=False))
    file = studio.adapters.archive("harbour-a1", other)
    with zipfile.ZipFile(file) as archive:
        said = json.loads(archive.read(lineage.NAME))
        assert str(settings.home) not in str(said)
    assert said == {"base_fingerprint": fingerprint, "trained_on": "owner/other"}
    found = take_in(str(file), settings.adapters, settings)
    back = resolve(found["id"], settings)
    assert (back.fingerprint, back.precision) == (fingerprint, "auto")
    assert back.trained_on is None, "these are the very weights"
    assert not (back.folder / lineage.NAME).exists()

    weights = load_file(Path(base) / "model.safetensors")
    save_file({key: one + 1 for key, one in weights.items()}, Path(base) / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    assert refusal_beside(settings, file).key == "chat.other_base"


@pytest.mark.parametrize(
    "said",
    ["", "{", "[]", '"x"', "[" * 100_000, '{"base_fingerprint": 5, "trained_on": 7}',
     '{"base_fingerprint": "../../x", "trained_on": " "}'],
)  # fmt: skip
def test_what_others_say_of_a_base_is_believed_only_if_it_can_be(
    settings: Settings, base: str, adapter: Path, said: str
) -> None:
    (adapter / lineage.NAME).write_text(said)
    found = take_in(str(adapter), settings.adapters, settings)
    named = resolve(found["id"], settings)
    assert (named.fingerprint, named.trained_on) == (None, None)


def test_a_folder_of_this_machine_is_no_base_because_a_file_says_so(
    settings: Settings, adapter: Path, tiny_llama: Path
) -> None:
    says(adapter, base_model_name_or_path=str(tiny_llama))
    assert refusal(settings, adapter).key == "library.base_elsewhere"


def test_a_base_that_was_chosen_and_is_gone_says_why(settings: Settings, adapter: Path) -> None:
    error = refusal(settings, adapter, base="owner/gone")
    assert isinstance(error, ModelError)
    assert error.key == "model.no_network"


# The Hub


@pytest.fixture
def hub(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(adapter)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    be_patient(monkeypatch)
    yield server
    server.go_away()


def test_a_repository_of_the_hub_comes_in_with_the_known_files_alone(
    hub: Hub, base: str, settings: Settings
) -> None:
    online = Settings(home=settings.home)
    (hub.folder / "model.safetensors").write_bytes(b"a whole model")
    found = take_in("owner/name", online.adapters, online, token="hf_aToken")
    assert (found["id"], found["origin"]["kind"], found["origin"]["of"]) == (
        "name-a1", "hub", "owner/name",
    )  # fmt: skip
    assert set(hub.sent) == {CONFIG, WEIGHTS, "README.md"}
    assert "Bearer hf_aToken" in hub.tokens
    assert all(SHA in path or path.startswith("/api") for path in hub.asked)
    assert files(online.adapters / "name-a1" / PEFT) == {CONFIG, WEIGHTS, "README.md"}


def test_what_is_too_large_on_the_hub_is_not_even_fetched(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = Settings(home=settings.home)
    monkeypatch.setattr(intake, "LARGEST_BYTES", 1000)
    error = refusal(online, "owner/name")
    assert (error.key, error.values["file"]) == ("library.too_large", WEIGHTS)
    assert hub.sent == []


def test_a_repository_without_an_adapter_is_refused(hub: Hub, settings: Settings) -> None:
    online = Settings(home=settings.home)
    (hub.folder / CONFIG).unlink()
    assert refusal(online, "owner/name").key == "library.no_adapter_in"
    (hub.folder / WEIGHTS).unlink()
    assert refusal(online, "owner/name").key == "model.no_safetensors"
    hub.refusal = (401, "GatedRepo")
    assert refusal(online, "owner/name").key == "model.gated"


@pytest.mark.parametrize("what", ["", "nowhere", "/no/such/folder", "a/b/c", "x" * 5000, "a\0b"])
def test_what_is_nowhere_is_a_sentence(settings: Settings, what: str) -> None:
    assert refusal(settings, what).key == "library.nothing_there"


# Who may


def test_a_space_takes_no_folders_and_the_shown_one_only_zips_of_the_starter(
    settings: Settings, base: str, adapter: Path, tmp_path: Path
) -> None:
    own = Settings(home=settings.home, space_id="me/own", original_space="the/first", offline=True)
    assert refusal(own, adapter).key == "library.folder_on_space"
    shown = Settings.from_environment(
        {"SPACE_ID": "the/first", "HF_HUB_OFFLINE": "1"}, home=settings.home
    )
    studio = Studio(shown, Machine.open(shown, isolated=False)).for_visitor("me")
    for what in ("owner/name", str(adapter)):
        with pytest.raises(AdapterError) as refused:
            list(studio.adapters.add(what))
        assert refused.value.key == "library.only_zip"


# Made smaller, and the command line


def test_a_smaller_adapter_is_a_new_one_that_says_what_it_lost(
    settings: Settings, base: str, adapter: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("LORA_STUDIO_HOME", str(settings.home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["adapters", "add", str(adapter)]) == 0
    assert capsys.readouterr().out.strip() == "harbour-a1"
    assert main(["shrink", "harbour-a1", "--rank", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["id"], found["rank"]) == ("harbour-a1-r2-a1", 2)
    assert 0 < found["error"] < 1
    assert found["predicted_error"] == pytest.approx(found["error"], rel=1e-4)
    named = resolve(found["id"], settings)
    assert named.source == base
    assert found["bytes"] == (named.folder / WEIGHTS).stat().st_size
    assert main(["xray", found["id"], "--json"]) == 0
    looked = json.loads(capsys.readouterr().out)
    assert looked["rank"] == 2
    assert main(["shrink", "harbour-a1", "--rank", "4"]) == 1
    assert main(["shrink", "harbour-a1", "--rank", "0"]) == 1
    assert main(["shrink", "nobody", "--rank", "1"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "would lose" not in shown
    assert "harbour-a1" in shown
    assert str(settings.adapters) not in shown
    assert {folder.name for folder in settings.adapters.iterdir()} == {
        "harbour-a1", "harbour-a1-r2-a1",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["harbour-1", "harbour-1@2"])
def test_a_smaller_adapter_and_a_zip_remember_how_their_run_began(
    settings: Settings, base: str, tmp_path: Path, name: str
) -> None:
    run = write_run(
        settings, "harbour", f"model.source={base}", "adapter.init_lora_weights=loftq",
        "precision=nf4", checkpoints=(2,), base_fingerprint="ab" * 32,
    )  # fmt: skip
    for folder in (run.adapter, run.checkpoint(2)):
        save(base, folder)
    studio = Studio(settings, Machine.open(settings, isolated=False))
    small = list(studio.adapters.shrink(name, 2))[-1]["result"]["id"]
    again = list(studio.adapters.shrink(small, 1))[-1]["result"]["id"]
    for one in (name, small, again):
        file = studio.adapters.archive(one, tmp_path)
        with zipfile.ZipFile(file) as archive:
            recipe = read_recipe(archive.read("recipe.yaml").decode())
            assert json.loads(archive.read(lineage.NAME))["base_fingerprint"] == "ab" * 32
        assert recipe.adapter.init_lora_weights == "loftq"
    for one in (small, again):
        named = resolve(one, settings)
        assert named.fingerprint == "ab" * 32
        recipe = named.read_recipe()
        assert recipe is not None and recipe.adapter.init_lora_weights == "loftq"
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(tmp_path / f"{again}.zip") as archive:
        archive.extractall(tmp_path / "out")
    (tmp_path / "out" / lineage.NAME).unlink()  # this base is not the one
    found = take_in(str(tmp_path / "out"), settings.adapters, settings, base=base)
    assert resolve(found["id"], settings).precision == "nf4"
    recipe = resolve(found["id"], settings).read_recipe()
    assert recipe is not None and recipe.adapter.init_lora_weights == "loftq"


def test_what_a_killed_process_left_is_removed_after_a_day(
    settings: Settings, adapter: Path
) -> None:
    left = settings.adapters / ".coming-x"
    (left / PEFT).mkdir(parents=True)
    write_origin(left, Origin(kind="zip", of="x", source="starter"))
    take_in(str(adapter), settings.adapters, settings)
    assert left.exists(), "somebody else may be at it"
    os.utime(left, (time.time() - 90_000,) * 2)
    take_in(str(adapter), settings.adapters, settings)
    assert not left.exists()
    with pytest.raises(AdapterError):
        resolve(".coming-x", settings)
