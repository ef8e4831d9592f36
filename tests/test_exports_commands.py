"""`export` and `push` on the command line, their use cases, and what to copy from them."""

from __future__ import annotations

import ast
import json
import re
import shutil
import threading
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lora_studio.cases.machine import Machine
from lora_studio.cases.workshop import ENDING
from lora_studio.cli.main import main
from lora_studio.errors import StudioError
from lora_studio.exports import snippets
from lora_studio.exports.record import write_record
from lora_studio.library.names import PEFT, Origin, write_origin
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from tests.exporting import save_adapter

# See test_chat_engine.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return Settings(home=tmp_path / "home", offline=True)


@pytest.fixture
def adapter(settings: Settings, tiny_llama: Path) -> Path:
    """An adapter from elsewhere, `mine`."""
    folder = save_adapter(tiny_llama, settings.adapters / "mine" / PEFT)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    origin = Origin(kind="folder", of="mine", source=str(tiny_llama), precision="nf4")
    write_origin(folder.parent, origin)
    return folder


@pytest.fixture
def studio(settings: Settings) -> Studio:
    return Studio(settings, Machine.open(settings, isolated=False))


@pytest.mark.usefixtures("adapter")
def test_an_export_goes_to_the_home_folder_and_says_what_was_measured(settings, capfd):
    assert main(["export", "mine", "--as", "merged", "--dtype", "bf16"]) == 0
    said = capfd.readouterr()
    folder = settings.exports / "mine-merged"
    assert said.out == f"{folder}\n"
    assert "trained on the base in nf4" in said.err
    assert "logits differ by" in said.err
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"

    assert main(["export", "mine", "--as", "merged", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["form"], found["dtype"]) == ("merged", "fp32")
    assert found["check"]["relative"] < 1e-5
    assert [one.name for one in settings.exports.iterdir()] == ["mine-merged"]


def test_a_zip_goes_where_it_is_wanted_and_nowhere_twice(adapter, tmp_path, capfd):
    place = tmp_path / "out" / "a.zip"
    assert main(["export", "mine", "--as", "zip", "--out", str(place)]) == 0
    assert place.is_file()
    assert main(["export", "mine", "--as", "zip", "--out", str(place)]) == 1
    assert "is there already" in capfd.readouterr().err


@pytest.mark.usefixtures("adapter")
def test_what_cannot_be_exported_is_a_sentence(tiny_llama, settings, capfd):
    assert main(["export", "nobody", "--as", "zip"]) == 1
    assert main(["export", "mine", "--as", "gguf"]) == 1
    said = capfd.readouterr().err
    assert "nobody" in said
    assert "does not know this model's tokenizer" in said
    assert list(settings.exports.iterdir()) == []
    with pytest.raises(SystemExit):
        main(["export", "mine", "--as", "onnx"])


@pytest.mark.usefixtures("adapter")
def test_a_push_that_sends_nothing_lists_every_file(capfd):
    assert main(["push", "mine", "--to", "owner/mine", "--dry-run"]) == 0
    said = capfd.readouterr()
    assert [line.split("\t")[0] for line in said.out.splitlines()] == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert "would be private. Nothing was sent." in said.err
    assert "did not say whether owner/mine is there already" in said.err
    assert main(["push", "mine", "--to", "owner/mine"]) == 1
    assert "HF_TOKEN" in capfd.readouterr().err


@pytest.mark.usefixtures("adapter")
def test_a_look_at_a_push_of_the_merged_model_merges_nothing(settings, capfd):
    assert main(["export", "mine", "--as", "merged", "--dtype", "bf16"]) == 0
    before = {file: file.read_bytes() for file in settings.exports.rglob("*.*")}
    capfd.readouterr()
    assert main(["push", "mine", "--to", "owner/mine", "--merged", "--dry-run"]) == 0
    sizes = dict(line.split("\t") for line in capfd.readouterr().out.splitlines())
    assert sizes["model.safetensors"].startswith("~")
    assert "config.json" in sizes
    assert {file: file.read_bytes() for file in settings.exports.rglob("*.*")} == before


@pytest.mark.usefixtures("adapter")
def test_nobody_deletes_an_adapter_on_its_way_to_the_hub(studio):
    events = studio.shipping.push("mine", "owner/mine", is_dry=True)
    next(events)
    assert studio.adapters.used() == {"mine"}
    assert "result" in list(events)[-1]
    assert studio.adapters.used() == set()


@pytest.mark.usefixtures("adapter")
def test_closed_early_an_export_ends_and_nothing_of_it_stays(studio, settings):
    events = studio.shipping.export("mine", "merged")
    assert next(events)["stage"] == "load"
    events.close()
    for thread in threading.enumerate():
        if thread.name == ENDING:
            thread.join()
    assert list(settings.exports.iterdir()) == []
    assert not any(thread.name.startswith("save") for thread in threading.enumerate())


@pytest.mark.usefixtures("adapter")
def test_a_space_for_everybody_gives_the_adapter_away_and_no_more(studio, settings, tmp_path):
    shown = Studio(
        Settings(home=settings.home, space_id="a/b", offline=True),
        Machine.open(settings, isolated=False),
    )
    for form, out in (("merged", None), ("gguf", None), ("zip", tmp_path / "a.zip")):
        with pytest.raises(StudioError) as caught:
            next(shown.shipping.export("mine", form, out=out))
        assert caught.value.key == "shipping.not_on_space"
    assert list(shown.shipping.export("mine", "zip"))[-1]["result"]["bytes"] > 0


def test_snippets_name_the_adapter_its_base_and_what_was_exported(
    studio, adapter, tiny_llama, settings
):
    found = {one.name: one.text for one in studio.shipping.snippets("mine")}
    assert found["vllm"] == (
        f"vllm serve {tiny_llama} --enable-lora --lora-modules mine={adapter} --max-lora-rank 8\n"
    )
    ast.parse(found["python"])
    ast.parse(found["openai"])
    assert f'PeftModel.from_pretrained(base, "{adapter}")' in found["python"]
    assert 'model="mine"' in found["openai"]
    assert "transformers_merged" not in found
    for made in ("mine-merged", "mine-ollama"):
        (settings.exports / made).mkdir(parents=True)
        write_record(settings.exports / made, studio.adapters.resolve("mine"))
    found = {one.name: one.text for one in studio.shipping.snippets("mine")}
    assert found["transformers_merged"].endswith(
        f"\ntransformers serve {settings.exports}/mine-merged\n"
    )
    assert found["ollama"].startswith("ollama create mine-ollama -f ")


def test_an_adapter_that_sorts_is_offered_nothing_that_writes(
    studio, adapter, settings, tiny_llama
):
    origin = Origin(kind="folder", of="mine", source=str(tiny_llama), labels=("good", "bad"))
    write_origin(adapter.parent, origin)
    (settings.exports / "mine-merged").mkdir(parents=True)
    write_record(settings.exports / "mine-merged", studio.adapters.resolve("mine"))
    (found,) = studio.shipping.snippets("mine")
    assert found.name == "python"
    ast.parse(found.text)
    assert "AutoModelForSequenceClassification" in found.text
    assert f'AutoConfig.from_pretrained("{adapter}")' in found.text


@pytest.mark.parametrize("name", ["고객-1-ollama", "-1-ollama", "a" * 90])
def test_ollama_is_told_a_name_that_it_takes(name, tmp_path):
    (found,) = snippets.of_ollama(name, tmp_path / name)
    create, run = found.text.splitlines()
    called = re.fullmatch(r"ollama create (lora-[0-9a-f]{8}) -f .+", create)
    assert called
    assert run == f"ollama run {called[1]}"


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({"r": 16}, "16"),
        ({"r": 8, "rank_pattern": {"q_proj": 40}}, "64"),
        ({"r": 8, "use_dora": True}, None),
        ({"r": 8, "bias": "all"}, None),
        ({"r": 8, "modules_to_save": ["lm_head"]}, None),
        ({"r": 600}, None),
    ],
)
def test_vllm_is_told_a_rank_that_it_takes_or_is_not_offered(config, rank, tmp_path):
    said = {"peft_type": "LORA", "lora_alpha": 8} | config
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    found = {one.name: one.text for one in snippets.of_adapter("a", tmp_path, "owner/base")}
    assert ("vllm" in found) == (rank is not None)
    assert rank is None or found["vllm"].endswith(f"--max-lora-rank {rank}\n")


def test_snippets_of_a_broken_adapter_are_a_sentence(adapter, studio):
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(StudioError):
        studio.shipping.snippets("mine")
    shutil.rmtree(adapter)
    with pytest.raises(StudioError):
        studio.shipping.snippets("mine")
