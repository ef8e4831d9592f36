"""What goes to the Hub, what never does, and what is said when it does not arrive."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import _http
from PIL import Image
from transformers import AutoTokenizer

from lora_studio.adapters.archive import adapter_files, zip_adapter
from lora_studio.data.report import Report
from lora_studio.errors import StudioError
from lora_studio.exports import publishing, sending
from lora_studio.exports.card import hub_card
from lora_studio.exports.facts import Facts, facts_of
from lora_studio.exports.foreseen import INDEX
from lora_studio.exports.orders import Publication
from lora_studio.exports.packing import pack
from lora_studio.exports.publishing import bring
from lora_studio.exports.remarks import on_push
from lora_studio.library.arrivals import make_smaller
from lora_studio.library.names import PEFT, Named, Origin, resolve, write_origin
from lora_studio.measuring import measurements
from lora_studio.recipe import Recipe
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import create
from lora_studio.settings import Settings
from tests.exporting import named, save_adapter, silent
from tests.local_hub import Hub, Made, be_patient

# See test_chat_engine.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    # huggingface_hub 2.4 sends large files in a way that its HTTP library no longer likes (lfs.py).
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]
TOKEN = "hf_right"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(tmp_path / "nothing")
    server.token = TOKEN
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # before it tries again
    be_patient(monkeypatch)
    yield server
    server.go_away()


@pytest.fixture
def online(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def trained(tiny_llama: Path, tmp_path: Path, online: Settings) -> Named:
    """An adapter of a run over the person's own files."""
    recipe = Recipe.from_dict(
        {
            "name": "mine",
            "model": {"source": str(tiny_llama)},
            "data": {
                "files": [str(tmp_path / "drawer" / "letters.jsonl")],
                "hub": {"repo_id": "owner/diary", "columns": ["dear"]},
            },
            "prompts": ["What did Ada write?"],
            "launch": {"main_process_ip": "10.1.2.3"},
        }
    )
    run = create(online.runs, recipe)
    with EventWriter(run.events) as write:
        plan = {
            "total_steps": 2, "train_rows": 9, "held_out_rows": 1, "precision": "fp32",
            "target_modules": ["q_proj"], "labels": [],
        }  # fmt: skip
        write.write("started", **plan)
        for step, loss in ((1, 3.0), (2, 2.5)):
            write.write("step", step=step, loss=loss, learning_rate=1e-3, tokens_per_s=9.0)
        write.write("eval", step=2, loss=2.75)
        write.write("finished")
    run.data.mkdir()
    report = {
        "fingerprint": "f" * 64, "rows": 12, "trained_rows": 9, "eval_rows": 1,
        "skipped": {"empty": 2},
        "tokens": 400, "trained_tokens": 120, "format": "chat",
        "samples": [{"pieces": [["Dear Ada", True]]}],
    }  # fmt: skip
    assert report.keys() <= {field.name for field in fields(Report)}
    (run.data / "report.json").write_text(json.dumps(report))
    save_adapter(tiny_llama, run.adapter)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(run.adapter)
    (run.adapter / "recipe.yaml").write_text(recipe.to_yaml())
    shutil.copy(run.adapter / "README.md", run.adapter / "optimizer.pt")
    return replace(named(run.adapter, tiny_llama), name=run.id, run=run)


OWN = ("Ada", "10.1.2.3", TOKEN, "drawer", "owner/diary", "dear")
"""What the run's owner would not tell."""


@pytest.fixture
def shrunk(trained: Named, online: Settings) -> Named:
    """The same adapter at a lower rank, without a run of its own."""
    made = make_smaller(trained, 2, online.adapters)
    return resolve(made["id"], online)


@pytest.fixture
def imported(tiny_llama: Path, online: Settings, trained: Named) -> Named:
    """An adapter from elsewhere, with its author's card and somebody's recipe."""
    folder = save_adapter(tiny_llama, online.adapters / "theirs" / PEFT)
    (folder / "README.md").write_text(
        "---\nlicense: cc-by-4.0\nlicense_link: LICENSE\n---\n"
        f"# Poems\n\nBy Yun, over {tiny_llama}. Cite me.\n"
    )
    shutil.copy(trained.folder / "recipe.yaml", folder)
    write_origin(folder.parent, Origin(kind="zip", of="theirs.zip", source=str(tiny_llama)))
    return resolve("theirs", online)


def asked(adapter: Named, **about) -> Publication:
    return Publication(adapter=adapter, repository="owner/mine", **about)


def keys(done) -> list[str]:
    return [note["key"] for note in done.notes]


def pushed(adapter: Named, settings: Settings, token: str | None = TOKEN, **about):
    facts = facts_of(adapter, "apache-2.0", settings)
    return bring(asked(adapter, **about), facts, settings, token=token, progress=silent)


def test_what_is_known_of_the_base_goes_along(hub, online, trained):
    pushed(replace(trained, fingerprint="a" * 64), online)
    said = json.loads(hub.made["owner/mine"].files["lora_studio.json"])
    assert said == {"base_fingerprint": "a" * 64, "trained_on": None}


def test_an_adapter_arrives_whole_private_and_in_one_commit(hub, online, trained):
    steps: list[tuple[int, int]] = []
    facts = facts_of(trained, "apache-2.0", online)

    done = bring(
        asked(trained),
        facts,
        online,
        token=TOKEN,
        progress=lambda _, done, total: steps.append((done, total)),
    )

    assert done.address == f"{hub.url}/owner/mine"
    made = hub.made["owner/mine"]
    assert made.asked["visibility"] == "private"
    assert len(made.commits) == 1
    assert set(made.files) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "curves.png", "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    weights = (trained.folder / "adapter_model.safetensors").read_bytes()
    assert made.files["adapter_model.safetensors"] == weights
    assert steps[0] == (0, steps[-1][1])
    assert steps[-1][0] == steps[-1][1] == sum(map(len, made.files.values()))
    assert list(online.cache.iterdir()) == []


def test_nothing_of_the_persons_own_leaves(hub, online, trained, tmp_path, tiny_llama):
    pushed(trained, online)
    files = hub.made["owner/mine"].files
    for name, content in files.items():
        for own in (str(tmp_path), str(tiny_llama), *OWN):
            assert own.encode() not in content, (name, own)
    recipe = Recipe.from_yaml(files["recipe.yaml"].decode())
    assert recipe.data.files == ("letters.jsonl",)
    assert recipe.model.source == tiny_llama.name
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == tiny_llama.name
    assert not any(TOKEN.encode() in file.read_bytes() for file in online.home.rglob("*.*"))


@pytest.mark.parametrize("which", ["shrunk", "imported"])
def test_nor_does_what_lies_beside_an_adapter_without_a_run(
    which, hub, online, request, tmp_path, tiny_llama
):
    adapter = request.getfixturevalue(which)
    done = pushed(adapter, online)
    files = hub.made["owner/mine"].files
    for name, content in files.items():
        for own in (str(tmp_path), str(tiny_llama), *OWN):
            assert own.encode() not in content, (name, own)
    assert Recipe.from_yaml(files["recipe.yaml"].decode()).data.files == ("letters.jsonl",)
    (note,) = (one for one in done.notes if one["key"] == "shipping.dataset_unnamed")
    assert note["values"] == {"dataset": "owner/diary"}
    hub.datasets.add("owner/diary")
    pushed(adapter, online, updates=True)
    recipe = Recipe.from_yaml(files["recipe.yaml"].decode())
    assert recipe.data.hub.repo_id == "owner/diary"


def test_a_recipe_that_cannot_be_read_stays_here(hub, online, imported):
    (imported.folder / "recipe.yaml").write_text("prompts: [What did Ada write?\n")
    pushed(imported, online)
    assert "recipe.yaml" not in hub.made["owner/mine"].files


def test_a_zip_to_pass_on_holds_no_prompts_and_paths(trained, tmp_path, tiny_llama):
    recipe = trained.read_recipe()
    file = zip_adapter(trained.folder, tmp_path / "out" / "a.zip", recipe=recipe)
    with zipfile.ZipFile(file) as archive:
        assert set(archive.namelist()) == {one.name for one in adapter_files(trained.folder)}
        text = archive.read("recipe.yaml").decode()
    assert not any(own in text for own in (str(tmp_path), str(tiny_llama), *OWN))
    assert Recipe.from_yaml(text).name == "mine"
    with zipfile.ZipFile(zip_adapter(trained.folder, file)) as archive:
        assert "recipe.yaml" not in archive.namelist()


def test_a_file_that_names_a_folder_of_this_machine_stops_everything(hub, online, trained):
    (trained.folder / "chat_template.jinja").write_text(f"{{# {online.home} #}}")
    with pytest.raises(StudioError) as caught:
        pushed(trained, online)
    assert caught.value.key == "shipping.names_a_path"
    assert hub.made == {}


@pytest.mark.parametrize(
    ("text", "is_named"),
    [
        ("It lies in /data.", True),
        ("/data/letters.jsonl", True),
        ('{"folder": "/data"}', True),
        ("file:///data/letters.jsonl", True),
        ("글은 /data에 있어요", True),
        ("https://huggingface.co/datasets/ada/letters", False),
        ("https://data.example.org", False),
        ("https://example.org/data/letters", False),
        ("/data-2/letters", False),
        ("/database and /data.old", False),
        ("./data/letters", False),
    ],
)
def test_a_folder_is_named_where_its_whole_path_stands(text, is_named, hub, online, trained):
    (trained.folder / "chat_template.jinja").write_text(f"{{# {text} #}}")
    facts = facts_of(trained, None, online)
    stage = online.home / "stage"
    stage.mkdir()
    files = adapter_files(trained.folder)
    wanted = pytest.raises(StudioError, match="chat_template") if is_named else nullcontext()
    with wanted:
        pack(facts, files, stage, private=[Path("/data"), Path("/")], names_dataset=False)


def test_the_card_says_what_is_known(hub, online, trained, monkeypatch):
    found = measurements.Measured(
        adapter=trained.name, weights=trained.weights(), measured_at="",
        seconds=1.0, base="b", precision="fp32", device="cpu", held_out=1, seed=1,
        loss=measurements.Loss(
            rows=1, tokens=9, mean=measurements.Compared(base=3.0, adapter=2.0)
        ),
        forgetting=(
            measurements.Forgotten(
                language="en", tokens=9, base=2.0, adapter=2.1, verdict="slight"
            ),
        ),
        answers=measurements.Answers(
            rows=1, max_new_tokens=9, cut_off=0, match="",
            scores={"exact": measurements.Compared(base=0.0, adapter=0.5)},
            examples=(measurements.Example(question="Ada?", reference="", base="", adapter=""),),
        ),
    )  # fmt: skip
    monkeypatch.setattr(measurements, "read", lambda *_, **__: found)
    pushed(trained, online)
    files = hub.made["owner/mine"].files
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.base_model is None  # a folder of this machine
    assert "lora-studio" in card.data.tags
    for said in (
        "9 rows were trained on and 1 held out; 2 of 12 were left out",
        "f" * 64,
        "| loss on the answers | 3.0000 | 2.0000 |",
        "| exact | 0.0000 | 0.5000 |",
        "+5.0% (en)",
        "![Loss](curves.png)",
        "## Limits",
        "PeftModel.from_pretrained",
    ):
        assert said in card.text
    (online.home / "curves.png").write_bytes(files["curves.png"])
    with Image.open(online.home / "curves.png") as picture:
        assert picture.size == (960, 432)
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10


def test_the_card_of_a_smaller_one_says_what_it_was_made_of(hub, online, trained, shrunk):
    pushed(shrunk, online)
    files = hub.made["owner/mine"].files
    text = ModelCard(files["README.md"].decode()).text
    origin = json.loads((shrunk.folder.parent / "origin.json").read_text())
    assert f"# {shrunk.name}" in text
    said = f"From `{trained.name}`, rank 4 to 2, which lost {origin['error']:.1%} of the change."
    assert said in text
    assert "f" * 64 in text  # the data of that run
    assert "was not trained there" not in text
    assert "curves.png" in files

    again = resolve(make_smaller(shrunk, 1, online.adapters)["id"], online)
    text = hub_card(facts_of(again, None, online))
    assert text.index(said) < text.index(f"From `{shrunk.name}`, rank 2 to 1")
    assert "9 rows were trained on" in text

    shutil.rmtree(trained.run.path)
    text = hub_card(facts_of(shrunk, None, online))
    assert f"From `{trained.name}`, rank 2, which lost" in text
    assert "what it was made of is gone" in text


def test_a_checkpoint_is_not_called_the_runs_last_step(trained, online):
    shutil.copytree(trained.folder, trained.run.checkpoint(1))
    name = f"{trained.name}@1"
    text = hub_card(facts_of(replace(trained, name=name), None, online))
    assert f"# {name}" in text
    assert "The weights are those after step 1;" in text


def test_an_authors_card_and_licence_stay_with_an_adapter_from_elsewhere(hub, online, imported):
    pushed(imported, online)
    card = ModelCard(hub.made["owner/mine"].files["README.md"].decode())
    assert (card.data.license, card.data.license_link) == ("cc-by-4.0", "LICENSE")
    ours, _, theirs = card.text.partition("## The card it came with")
    assert "It was not trained there" in ours
    assert "By Yun, over tiny-llama. Cite me." in theirs


@pytest.mark.parametrize(
    ("theirs", "kept"),
    [
        ("no head\n", "no head"),
        ("---\nlicense: [\n---\nbroken head\n", "broken head"),
        ("---\nlicense: mit\n---\n# Model Card for Model ID\n[More Information Needed]\n", None),
    ],
)
def test_odd_cards_from_elsewhere_stand_in_nobodys_way(theirs, kept, online, imported):
    (imported.folder / "README.md").write_text(theirs)
    card = ModelCard(hub_card(facts_of(imported, "apache-2.0", online)))
    assert ("## The card it came with" in card.text) == (kept is not None)
    assert kept is None or kept in card.text
    assert card.data.license == ("apache-2.0" if kept else "mit")


def test_a_public_base_is_named_where_the_hub_looks_for_it(trained):
    adapter = replace(trained, source="owner/base")
    card = ModelCard(hub_card(Facts(adapter=adapter, history=None)))
    assert card.data.base_model == "owner/base"
    assert "It was not trained there" in card.text


def test_a_dry_run_shows_every_file_and_sends_nothing(hub, online, trained):
    done = pushed(trained, online, is_dry=True, private=False)
    assert (done.address, done.exists, done.private) == (None, False, False)
    size = (trained.folder / "adapter_model.safetensors").stat().st_size
    weights = {"name": "adapter_model.safetensors", "bytes": size, "is_foreseen": False}
    assert weights in done.files
    assert done.card.startswith("---\n")
    assert keys(done) == ["shipping.dataset_unnamed", "shipping.base_is_local"]
    assert hub.made == {}
    pushed(trained, online)
    again = pushed(trained, online, is_dry=True)
    assert (again.exists, keys(again)[0]) == (True, "shipping.repository_exists")
    # Without a token a private one looks like none.
    assert pushed(trained, online, is_dry=True, token=None).exists is None
    wrong = pushed(trained, online, is_dry=True, token="hf_wrong")
    assert (wrong.exists, keys(wrong)[0]) == (None, "shipping.token_refused")
    hub.go_away()
    assert pushed(trained, online, is_dry=True).exists is None


@pytest.mark.parametrize("token", ["토큰", "hf_a b"])
def test_a_dry_run_refuses_what_cannot_be_a_token(token, hub, online, trained):
    with pytest.raises(StudioError) as caught:
        pushed(trained, online, is_dry=True, token=token)
    assert caught.value.key == "model.token_malformed"
    assert hub.asked == []


def test_what_is_public_is_never_called_private(hub, online, trained):
    pushed(trained, online, private=False)
    dry = pushed(trained, online, is_dry=True, updates=True)
    assert (dry.private, keys(dry)[0]) == (False, "shipping.is_public")
    with pytest.raises(StudioError) as caught:
        pushed(trained, online, updates=True)
    assert caught.value.key == "shipping.is_public"
    assert len(hub.made["owner/mine"].commits) == 1
    done = pushed(trained, online, updates=True, private=False)
    assert done.private is False
    assert len(hub.made["owner/mine"].commits) == 2


def test_what_is_private_stays_so(hub, online, trained):
    pushed(trained, online)
    done = pushed(trained, online, updates=True, private=False)
    assert done.private is True


def test_a_merged_model_is_published_with_what_was_measured_of_it(hub, online, trained):
    facts = facts_of(trained, None, online)
    wanted = asked(trained, merged=True, private=False)
    dry = bring(replace(wanted, is_dry=True), facts, online, token=TOKEN, progress=silent)
    assert "is measured when it is merged" in dry.card
    done = bring(wanted, facts, online, token=TOKEN, progress=silent)
    made = hub.made["owner/mine"]
    assert [one["name"] for one in dry.files] == [one["name"] for one in done.files]
    sizes = {one["name"]: one["bytes"] for one in done.files}
    (weights,) = (one for one in dry.files if one["name"] == "model.safetensors")
    assert weights["is_foreseen"]
    assert weights["bytes"] == pytest.approx(sizes["model.safetensors"], rel=0.01)
    assert not online.exports.exists()
    assert list(online.cache.iterdir()) == []
    assert {"config.json", "generation_config.json", "model.safetensors"} <= set(made.files)
    assert "adapter_config.json" not in made.files
    assert made.asked["visibility"] == "public"
    card = ModelCard(made.files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert "This repository is the whole model" in card.text
    unknown = ["shipping.dataset_unnamed", "shipping.base_is_local", "shipping.no_licence"]
    assert keys(done) == unknown


def test_what_is_refused_is_refused_before_anything_is_merged(
    hub, online, trained, shrunk, monkeypatch
):
    monkeypatch.setattr(publishing, "ship", None)
    pushed(trained, online)
    for about in ({}, {"token": None}, {"token": "hf_wrong", "updates": True}):
        with pytest.raises(StudioError):
            pushed(trained, online, merged=True, **about)
    for recipe in (shrunk.folder / "recipe.yaml", trained.run.recipe):
        text = recipe.read_text()
        recipe.write_text(text.replace("init_lora_weights: default", "init_lora_weights: loftq"))
    for adapter in (trained, shrunk):  # a smaller one mends the 4-bit base no less
        with pytest.raises(StudioError) as caught:
            pushed(adapter, online, merged=True, is_dry=True)
        assert caught.value.key == "shipping.loftq"


def test_a_repository_that_is_there_is_left_alone_unless_it_is_to_be_updated(hub, online, trained):
    pushed(trained, online)
    with pytest.raises(StudioError) as caught:
        pushed(trained, online)
    assert caught.value.key == "shipping.repository_exists"
    assert len(hub.made["owner/mine"].commits) == 1
    pushed(trained, online, updates=True)
    assert len(hub.made["owner/mine"].commits) == 2


def test_files_of_an_earlier_push_that_are_in_the_way_go_with_the_next(hub, online, trained):
    made = hub.made["owner/mine"] = Made({"visibility": "private"})
    old = ["adapter_config.json", "adapter_model.safetensors", "curves.png", "lora_studio.json"]
    made.files = dict.fromkeys([*old, "notes.md", "model/a.safetensors"], b"earlier")

    dry = pushed(trained, online, merged=True, updates=True, is_dry=True)
    assert dry.deleted == [name for name in old if name != "curves.png"]
    assert made.files.keys() >= set(old)
    assert pushed(trained, online, merged=True, is_dry=True).deleted == []
    done = pushed(trained, online, merged=True, updates=True)
    assert done.deleted == dry.deleted
    assert "adapter_config.json" not in made.files
    assert made.files.keys() >= {"model.safetensors", "notes.md", "model/a.safetensors"}

    made.files["model-00001-of-00002.safetensors"] = b"earlier"
    made.files["model.safetensors.index.json"] = b"earlier"
    back = pushed(trained, online, updates=True)
    assert back.deleted == [
        "model-00001-of-00002.safetensors", "model.safetensors", "model.safetensors.index.json",
    ]  # fmt: skip
    assert not any(name.startswith("model") and "/" not in name for name in made.files)
    *_, said = on_push(back.to_dict())
    assert said == ("shipping.deletes", {"where": "owner/mine", "files": back.deleted})


def test_of_a_repository_whose_files_are_not_told_nothing_is_deleted():
    place = sending.Place(exists=True, files=None)
    assert place.holds_files
    assert place.stale([]) == []
    shards = frozenset({".gitattributes", "model-00001-of-00002.safetensors", INDEX})
    assert sending.Place(exists=True, files=shards).stale(["model-*.safetensors", INDEX]) == []
    assert not sending.Place(exists=True, files=frozenset({".gitattributes"})).holds_files


@pytest.mark.parametrize(
    ("token", "repository", "key"),
    [
        (None, "owner/mine", "shipping.no_token"),
        ("hf wrong", "owner/mine", "model.token_malformed"),
        ("hf_wrong", "owner/mine", "shipping.token_refused"),
        (TOKEN, "somebody/mine", "shipping.no_rights"),
        (TOKEN, "mine", "shipping.bad_repository"),
        (TOKEN, "owner/../mine", "shipping.bad_repository"),
        (TOKEN, "owner/mine--x", "shipping.bad_repository"),
    ],
)
def test_what_stands_in_the_way_is_a_sentence(token, repository, key, hub, online, trained):
    wanted = Publication(adapter=trained, repository=repository)
    with pytest.raises(StudioError) as caught:
        bring(wanted, facts_of(trained, None, online), online, token=token, progress=silent)
    assert caught.value.key == key
    assert TOKEN not in str(caught.value)
    assert hub.made == {}


@pytest.mark.parametrize("place", ["/lfs/", "/preupload/"])
def test_a_network_that_goes_leaves_nothing_half_sent_and_can_be_tried_again(
    place, hub, online, trained
):
    hub.goes_at = place
    with pytest.raises(StudioError) as caught:
        pushed(trained, online)
    assert caught.value.key == "shipping.no_network"
    assert hub.made["owner/mine"].files == {}
    hub.goes_at = None
    hub.come_back()
    pushed(trained, online)
    assert len(hub.made["owner/mine"].commits) == 1


@pytest.mark.parametrize("arrives", [False, True])
def test_when_nobody_knows_whether_the_files_arrived_that_is_said_and_nothing_deleted(
    arrives, hub, online, trained
):
    hub.goes_at, hub.is_late = "/commit/", arrives
    with pytest.raises(StudioError) as caught:
        pushed(trained, online)
    assert caught.value.key == "shipping.unsure"
    assert f"{hub.url}/owner/mine" in str(caught.value)
    hub.goes_at = None
    hub.come_back()
    assert hub.deleted == []
    assert bool(hub.made["owner/mine"].files) == arrives
    pushed(trained, online, updates=arrives)


@pytest.mark.parametrize("place", ["/commit/", "/preupload/"])
@pytest.mark.parametrize(("status", "key"), [(403, "no_rights"), (500, "hub_trouble")])
def test_a_repository_that_was_there_is_never_deleted(place, status, key, hub, online, trained):
    hub.made["owner/mine"] = Made({"visibility": "private"})
    hub.refuses = (place, status)
    with pytest.raises(StudioError) as caught:
        pushed(trained, online)
    is_unsure = (place, status) == ("/commit/", 500)
    assert caught.value.key == ("shipping.unsure" if is_unsure else f"shipping.{key}")
    assert hub.deleted == []
    del hub.made["owner/mine"]
    with pytest.raises(StudioError):
        pushed(trained, online)
    assert hub.deleted == ([] if is_unsure else ["owner/mine"])


def test_a_repository_with_the_files_in_it_is_not_taken_back(hub, online, trained, monkeypatch):
    whole = sending.HfApi.create_commit

    def fail_after(*args: object, **named: object) -> None:
        whole(*args, **named)
        raise ValueError("no such address")

    monkeypatch.setattr(sending.HfApi, "create_commit", fail_after)
    with pytest.raises(StudioError):
        pushed(trained, online)
    assert hub.made["owner/mine"].files


def test_a_cancelled_push_takes_its_new_repository_back(hub, online, trained):
    def cancel(stage: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(asked(trained), facts_of(trained, None, online), online, token=TOKEN, progress=cancel)
    assert hub.made == {}
    assert hub.deleted == ["owner/mine"]
    assert list(online.cache.iterdir()) == []

    hub.made["owner/mine"] = Made({"visibility": "private"})  # empty, and its owner's
    with pytest.raises(KeyboardInterrupt):
        bring(asked(trained), facts_of(trained, None, online), online, token=TOKEN, progress=cancel)
    assert list(hub.made) == ["owner/mine"]


def test_files_that_the_hub_refuses_are_a_sentence(hub, online, trained, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Invalid metadata in README.md.\n- license is unknown")

    monkeypatch.setattr(sending.HfApi, "create_commit", refuse)
    with pytest.raises(StudioError, match="license is unknown") as caught:
        pushed(trained, online)
    assert caught.value.key == "shipping.files_refused"
    assert hub.deleted == ["owner/mine"]
