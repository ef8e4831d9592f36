"""The library: one table of runs and adapters, what is said of them, the trash, side by side."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kept import write_elsewhere, write_run

from lora_studio.cases.machine import Machine
from lora_studio.cli.main import main
from lora_studio.errors import AdapterError, ModelError, RecipeError, RunError, StudioError
from lora_studio.files import size_of
from lora_studio.hardware import Hardware
from lora_studio.library import names, trash
from lora_studio.library.about import ABOUT, About, changed, read_about
from lora_studio.library.entries import COLUMNS, Table
from lora_studio.library.names import ORIGIN, PEFT, adapter_names, resolve
from lora_studio.library.shrunk import predicted_errors
from lora_studio.library.together import MOST_POINTS, curve
from lora_studio.recipe import Recipe
from lora_studio.runs.accelerator import Job
from lora_studio.runs.folder import WEIGHTS, RunFolder, create
from lora_studio.runs.history import History
from lora_studio.settings import STARTER, Settings
from lora_studio.studio import Studio
from lora_studio.ui import library_sheet, library_table, library_xray, numbers
from lora_studio.ui.language import COOKIE, Voice
from lora_studio.ui.library_together import beside


@pytest.fixture
def studio(settings: Settings) -> Studio:
    return Studio(settings, Machine.open(settings, isolated=True))


def ids(entries: list[Any]) -> list[str]:
    return [entry.id for entry in entries]


# Names


def test_a_run_s_id_is_its_newest_adapter_and_knows_its_base(settings: Settings) -> None:
    run = write_run(settings, base_fingerprint="ab" * 32, labels=["no", "yes"], checkpoints=(2,))
    found = resolve("poems-1", settings)
    assert (found.folder, found.source, found.run) == (run.adapter, STARTER, run)
    assert (found.precision, found.fingerprint) == ("fp32", "ab" * 32)
    assert (found.labels, found.seed) == (("no", "yes"), 42)
    assert adapter_names(run) == ["poems-1", "poems-1@2"]
    assert resolve("poems-1@2", settings).folder == run.checkpoint(2)


def test_an_adapter_from_elsewhere_has_the_base_of_its_origin(settings: Settings) -> None:
    folder = write_elsewhere(settings, source="owner/name", precision="nf4", seed=7)
    found = resolve("from-afar-a1", settings)
    assert (found.folder, found.source, found.run) == (folder / PEFT, "owner/name", None)
    assert (found.precision, found.seed, found.fingerprint) == ("nf4", 7, None)


def test_one_from_elsewhere_answers_where_its_own_format_cannot_be(settings: Settings) -> None:
    here = Hardware(device="cpu", device_name="a processor", cores=2,
                    memory_total_bytes=10**9, memory_free_bytes=10**9)  # fmt: skip
    write_elsewhere(settings, precision="fp16")
    write_elsewhere(settings, "small-a1", precision="nf4")
    write_run(settings, precision="fp16")
    assert resolve("from-afar-a1", settings).precision_on(here) == "fp32"
    assert resolve("small-a1", settings).precision_on(here) == "nf4"
    with pytest.raises(ModelError):
        resolve("poems-1", settings).precision_on(here)


@pytest.mark.parametrize(
    ("name", "kind", "key"),
    [("nobody", AdapterError, "unknown"), ("", AdapterError, "unknown"),
     ("../runs/poems-1", AdapterError, "unknown"), ("/etc", AdapterError, "unknown"),
     ("poems-1/adapter", AdapterError, "unknown"), ("poems-1@", RunError, "no_checkpoint"),
     ("poems-1@7", RunError, "no_checkpoint"), ("poems-1@../2", RunError, "no_checkpoint"),
     ("empty-1", RunError, "no_adapter"), ("broken-a1", AdapterError, "broken_origin"),
     ("gone-a1", AdapterError, "no_weights")],
)  # fmt: skip
def test_a_name_that_is_none_is_a_sentence(
    settings: Settings, name: str, kind: type[StudioError], key: str
) -> None:
    write_run(settings, checkpoints=(2,))
    shutil.rmtree(write_run(settings, "empty").adapter)
    (write_elsewhere(settings, "broken-a1") / ORIGIN).write_text("[1]")
    (write_elsewhere(settings, "gone-a1") / PEFT / WEIGHTS).unlink()
    with pytest.raises(kind) as refused:
        resolve(name, settings)
    assert refused.value.key == f"library.{key}"


def test_no_adapter_gets_the_name_of_a_run_that_may_come(settings: Settings) -> None:
    folder = names.free_folder(settings.adapters, "poems-1")
    assert folder.name == "poems-1-a1"
    assert names.free_folder(settings.adapters, "poems-1").name == "poems-1-a2"
    run = create(settings.runs, Recipe.from_dict({"name": folder.name}))
    assert run.id != folder.name


# The table


def test_a_row_says_what_the_files_say(settings: Settings, studio: Studio) -> None:
    run = write_run(settings, "poems", "adapter.r=4", "adapter.lora_alpha=12")
    found = studio.library.entry("poems-1")
    facts = found.facts
    assert (found.kind, found.name, facts.status) == ("run", "poems-1", "finished")
    assert (facts.base, facts.data) == ("SmolLM2-135M-Instruct", "poems")
    assert (facts.r, facts.lora_alpha, facts.steps, facts.loss) == (4, 12, 3, 1.5)
    assert (
        facts.bytes
        == size_of(run.path)
        == sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    )
    assert json.loads(json.dumps(found.to_dict()))["has_adapter"] is True


def test_the_loss_is_that_of_the_step_that_was_kept(settings: Settings, studio: Studio) -> None:
    run = write_run(settings)
    more = [
        {"event": "eval", "step": 2, "loss": 0.25},
        {"event": "eval", "step": 3, "loss": 0.75},
        {"event": "saved", "best_step": 2},
        {"event": "finished"},
    ]
    with run.events.open("a") as out:
        out.writelines(json.dumps({"time": 2000.0} | line) + "\n" for line in more)
    assert studio.library.entry("poems-1").facts.loss == 0.25


def test_adapters_from_elsewhere_stand_in_the_same_table(
    settings: Settings, studio: Studio
) -> None:
    write_run(settings)
    write_elsewhere(settings, kind="shrunk", of="poems-1", rank=4, error=0.1)
    found = studio.library.entries()
    assert ids(found) == ["from-afar-a1", "poems-1"]
    entry = found[0]
    assert (entry.kind, entry.facts.r, entry.facts.lora_alpha) == ("adapter", 8, 16)
    assert (entry.facts.steps, entry.facts.loss, entry.facts.status) == (None, None, "")
    assert entry.origin is not None
    assert (entry.origin.of, entry.origin.rank, entry.origin.error) == ("poems-1", 4, 0.1)


def test_half_of_something_is_a_row_with_a_sentence(settings: Settings, studio: Studio) -> None:
    write_run(settings).recipe.write_text("version: 99\n")
    (write_elsewhere(settings) / ORIGIN).write_text("{")
    found = {entry.id: entry.problem for entry in studio.library.entries()}
    assert {name: problem.key for name, problem in found.items() if problem} == {
        "poems-1": "library.broken_recipe",
        "from-afar-a1": "library.broken_origin",
    }
    assert "poems-1" in str(found["poems-1"])


def test_a_recipe_that_is_no_text_is_a_sentence_and_offers_nothing(
    settings: Settings, studio: Studio
) -> None:
    write_run(settings)
    write_run(settings, "other").recipe.write_bytes(b"name: caf\xe9\n")
    found = {entry.id: entry for entry in studio.library.entries()}
    assert found["other-1"].facts.has_adapter
    assert {name: entry.can_answer for name, entry in found.items()} == {
        "poems-1": True,
        "other-1": False,
    }
    assert studio.library.beside("poems-1") == ["poems-1"]
    with pytest.raises(RecipeError) as refused:
        studio.adapters.resolve("other-1")
    assert "UTF-8" in str(refused.value)


def test_what_goes_while_it_is_listed_is_left_out(
    settings: Settings, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(settings)
    write_elsewhere(settings)
    gone = [settings.runs / "gone-1" / "recipe.yaml", settings.adapters / "gone-a1" / ORIGIN]
    own = Path.glob
    monkeypatch.setattr(
        Path, "glob",
        lambda folder, pattern: [*own(folder, pattern), *(one for one in gone
                                 if one.is_relative_to(folder) and pattern == f"*/{one.name}")],
    )  # fmt: skip
    assert set(ids(studio.library.entries())) == {"poems-1", "from-afar-a1"}


def test_beside_an_adapter_stand_its_own_and_then_those_of_its_base(
    settings: Settings, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_elsewhere(settings)
    write_elsewhere(settings, "sorter-a1", labels=("no", "yes"))
    write_elsewhere(settings, "other-a1", source="owner/other")
    write_run(settings, checkpoints=(2, 4))
    write_run(settings, "sorts", labels=["no", "yes"])
    shutil.rmtree(write_run(settings, "empty").adapter)
    found = studio.library.beside("poems-1@2")
    assert found == ["poems-1@2", "poems-1", "poems-1@4", "from-afar-a1"]
    assert studio.library.beside("from-afar-a1") == ["from-afar-a1", "poems-1"]
    assert studio.library.beside("other-a1") == ["other-a1"]

    def unwanted(*_: Any) -> None:
        raise AssertionError("resolved one after the other")

    again = Studio(settings, Machine.open(settings, isolated=True))
    own = names.resolve
    monkeypatch.setattr(names, "resolve", lambda name, at: (monkeypatch.setattr(
        names, "resolve", unwanted), own(name, at))[1])  # fmt: skip
    assert again.library.beside("poems-1@2") == found


def test_some_of_the_table_are_chosen_with_one_look(
    settings: Settings, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        write_run(settings, name)
    looks: list[int] = []
    own = Table.entries
    monkeypatch.setattr(Table, "entries", lambda table: (looks.append(1), own(table))[1])
    assert ids(studio.library.chosen(["c-1", "a-1", "c-1"])) == ["c-1", "a-1"]
    assert len(looks) == 1
    beside(studio, {"ids": ["c-1", "a-1"]}, voice_of("en"))
    assert len(looks) == 2


def test_a_search_has_every_word_anywhere(settings: Settings, studio: Studio) -> None:
    for name in ("poems", "news", "letters"):
        write_run(settings, name)
    studio.library.say(["news-1"], name="바다 소식", note="Best of all", tags=["keep", "sea"])
    search = studio.library.entries
    assert ids(search("SMOLLM2 poems")) == ["poems-1"]
    assert ids(search("바다 best")) == ["news-1"]
    assert ids(search("sea letters")) == []
    assert set(ids(search("  "))) == {"poems-1", "news-1", "letters-1"}
    assert ids(search(tag="keep")) == ["news-1"]
    assert ids(search(starred=True)) == []
    studio.library.say(["poems-1"], star=True)
    assert ids(search(starred=True)) == ["poems-1"]
    assert ids(search(kind="adapter")) == []


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_orders_the_table_and_what_is_empty_stands_last(
    settings: Settings, studio: Studio, column: str
) -> None:
    write_run(settings, "a", "adapter.r=4", losses=(3, 2))
    write_run(settings, "b", "adapter.r=32", losses=(1,))
    write_elsewhere(settings)
    rising = studio.library.entries(by=column, falling=False)
    falling = studio.library.entries(by=column, falling=True)
    assert {*ids(rising)} == {*ids(falling)} == {"a-1", "b-1", "from-afar-a1"}
    if column in ("loss", "steps", "status", "data"):
        assert rising[-1].id == falling[-1].id == "from-afar-a1"
    if column == "loss":
        assert ids(rising)[:2] == ["b-1", "a-1"]
        assert ids(falling)[:2] == ["a-1", "b-1"]
    if column == "r":
        assert ids(rising) == ["a-1", "from-afar-a1", "b-1"] == ids(falling)[::-1]
    if column == "name":
        assert ids(rising) == ["a-1", "b-1", "from-afar-a1"]


def test_a_column_that_is_none_is_a_sentence(studio: Studio) -> None:
    with pytest.raises(StudioError) as refused:
        studio.library.entries(by="__class__")
    assert refused.value.key == "library.unknown_column"


def test_what_is_over_is_not_read_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        write_run(settings)
    before = [entry.facts for entry in Table(settings).entries()]

    def unwanted(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(History, "update", unwanted)
    monkeypatch.setattr(RunFolder, "read_recipe", unwanted)
    table = Table(settings)  # as after a restart of the app
    assert [entry.facts for entry in table.entries()] == before
    assert [entry.facts for entry in table.entries()] == before


def test_what_changes_is_read_again(settings: Settings, studio: Studio) -> None:
    run = write_run(settings)
    assert studio.library.entry("poems-1").facts.status == "finished"
    with run.events.open("a") as out:
        out.write(json.dumps({"time": 3000.0, "event": "resumed", "step": 2}) + "\n")
        out.write(json.dumps({"time": 3001.0, "event": "failed", "cause": {}}) + "\n")
    facts = studio.library.entry("poems-1").facts
    assert (facts.status, facts.steps) == ("failed", 2)
    shutil.rmtree(run.adapter)
    assert not studio.library.entry("poems-1").facts.has_adapter


def test_a_kept_table_that_is_broken_is_made_anew(settings: Settings) -> None:
    write_run(settings)
    before = ids(Table(settings).entries())
    (settings.private / "library.json").write_text('{"x": 1}')
    assert ids(Table(settings).entries()) == before


def test_a_kept_table_of_another_version_is_made_anew(settings: Settings, studio: Studio) -> None:
    write_run(settings)
    before = studio.library.entry("poems-1").facts
    kept = settings.private / "library.json"
    said = json.loads(kept.read_text())
    for _, facts in said.values():
        del facts["source"]
    kept.write_text(json.dumps(said))
    (again,) = Table(settings).entries()
    assert again.facts == before
    assert before.source == STARTER


def test_the_recorded_run_of_a_space_is_listed_and_stays_as_it_is(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", space_id="a/b", offline=True)
    visitor = Studio(settings, Machine.open(settings, isolated=True)).for_visitor("me")
    entries = visitor.library.entries()
    assert [entry.kind for entry in entries] == ["recorded"]
    for act in (
        lambda: visitor.library.say([entries[0].id], star=True),
        lambda: visitor.library.delete([entries[0].id]),
    ):
        with pytest.raises(RunError) as refused:
            act()
        assert refused.value.key == "run.read_only"
    assert not (entries[0].folder / ABOUT).exists()


def test_visitors_see_their_own_things_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", space_id="a/b", offline=True)
    studio = Studio(settings, Machine.open(settings, isolated=True))
    write_run(settings.for_visitor("me"))
    mine, other = studio.for_visitor("me").library, studio.for_visitor("you").library
    assert "poems-1" in ids(mine.entries())
    assert "poems-1" not in ids(other.entries())
    with pytest.raises(AdapterError):
        other.delete(["poems-1"])
    key = mine.delete(["poems-1"])[0]
    with pytest.raises(StudioError):
        other.put_back([key])
    assert mine.put_back([key]) == ["poems-1"]


# What a person says


def test_what_is_said_of_many_is_kept_and_taken_back(settings: Settings, studio: Studio) -> None:
    for name in ("a", "b"):
        write_run(settings, name)
    studio.library.tag(["a-1", "b-1"], add=["good", "빛"])
    studio.library.tag(["a-1"], add=["new"], remove=["good"])
    assert {e.id: e.about.tags for e in studio.library.entries()} == {
        "a-1": ("new", "빛"),
        "b-1": ("good", "빛"),
    }
    studio.library.say(["a-1"], name="  First\n try ", note="two\nlines")
    about = studio.library.entry("a-1").about
    assert (about.name, about.note) == ("First try", "two\nlines")
    studio.library.tag(["a-1"], remove=["new", "빛"])
    studio.library.say(["a-1"], name="", note="")
    assert not (settings.runs / "a-1" / ABOUT).exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"name": 3}', '{"tags": "a"}', '{"star": 1}', '{"note": null}',
     '{"tags": [["a"]]}', '{"name": "' + "x" * 100 + '"}', "\x00\xff"],
)  # fmt: skip
def test_a_broken_note_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / ABOUT).write_text(text)
    assert read_about(tmp_path) == About()


@pytest.mark.parametrize(
    ("words", "key"),
    [({"name": "x" * 81}, "long_name"), ({"note": "x" * 4001}, "long_note"),
     ({"tags": ["x" * 31]}, "long_tag"), ({"tags": [str(n) for n in range(21)]}, "many_tags"),
     ({"tags": "a"}, "bad_words"), ({"tags": [3]}, "bad_words"), ({"star": "yes"}, "bad_words"),
     ({"name": None}, "bad_words"), ({"id": "x"}, "bad_words")],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_in_words(words: dict[str, Any], key: str) -> None:
    with pytest.raises(StudioError) as refused:
        changed(About(), words)
    assert refused.value.key == f"library.{key}"


def test_nothing_is_said_of_any_where_one_is_gone(settings: Settings, studio: Studio) -> None:
    write_run(settings)
    with pytest.raises(AdapterError):
        studio.library.say(["poems-1", "gone"], star=True)
    assert not studio.library.entry("poems-1").about.star


# The trash


def test_what_was_deleted_comes_back_as_it_was(settings: Settings, studio: Studio) -> None:
    run, folder = write_run(settings, checkpoints=(2,)), write_elsewhere(settings)
    studio.library.say(["poems-1"], note="keep me")
    before = {file: file.read_bytes() for file in settings.home.rglob("*") if file.is_file()
              if file.is_relative_to(run.path) or file.is_relative_to(folder)}  # fmt: skip
    keys = studio.library.delete(["poems-1", "from-afar-a1"])
    assert studio.library.entries() == []
    assert not run.path.exists()
    assert not folder.exists()
    assert [one.id for one in studio.library.deleted()] == ["from-afar-a1", "poems-1"]
    assert sorted(studio.library.put_back(keys)) == ["from-afar-a1", "poems-1"]
    assert {file: file.read_bytes() for file in before} == before
    assert studio.library.deleted() == []
    assert studio.library.entry("poems-1").about.note == "keep me"
    assert studio.runs.history("poems-1").step == 3


def test_a_name_that_was_taken_meanwhile_is_not_taken_again(
    settings: Settings, studio: Studio
) -> None:
    first = write_run(settings, losses=(3.0,))
    os.utime(first.recipe, (1000, 1000))  # a clock may tell no two moments apart within 10 ms
    assert studio.runs.history("poems-1").step == 1
    key = studio.library.delete(["poems-1"])[0]
    write_run(settings, losses=(3.0, 2.0))
    assert studio.runs.history("poems-1").step == 2, "the other run, not what is remembered"
    assert studio.library.put_back([key]) == ["poems-1-b1"]
    assert {e.id: e.facts.steps for e in studio.library.entries()} == {
        "poems-1": 2,
        "poems-1-b1": 1,
    }


def test_a_second_tab_gets_a_sentence_and_changes_nothing(
    settings: Settings, studio: Studio
) -> None:
    write_run(settings)
    write_run(settings, "other")
    second = Studio(settings, Machine.open(settings, isolated=True))
    assert len(second.library.entries()) == 2
    key = studio.library.delete(["poems-1"])[0]
    for act, wrong in (
        (lambda: second.library.delete(["other-1", "poems-1"]), "library.gone"),
        (lambda: second.library.say(["other-1", "poems-1"], star=True), "library.gone"),
        (lambda: second.library.curves(["poems-1"]), "run.unknown"),
    ):
        with pytest.raises(StudioError) as refused:
            act()
        assert refused.value.key == wrong
    assert [one.about.star for one in studio.library.entries()] == [False]
    assert ids(studio.library.entries()) == ["other-1"]
    second.library.put_back([key])
    with pytest.raises(StudioError) as refused:
        studio.library.put_back([key])
    assert refused.value.key == "library.not_in_trash"
    assert set(ids(studio.library.entries())) == {"poems-1", "other-1"}


def test_a_run_that_goes_on_is_not_deleted(settings: Settings, studio: Studio) -> None:
    waiting = write_run(settings, "waits", end=None)
    waiting.process.unlink()
    waiting.queued.write_text("1")
    training = write_run(settings, "trains", end=None)
    process_of_this_test(training)
    write_run(settings, "done")
    for name in ("waits-1", "trains-1"):
        with pytest.raises(RunError) as refused:
            studio.library.delete(["done-1", name])
        assert refused.value.key == "library.run_goes_on"
        assert name in str(refused.value)
    assert len(studio.library.entries()) == 3
    assert studio.library.deleted() == []


def process_of_this_test(run: RunFolder) -> None:
    from lora_studio.runs.process import write_identity

    write_identity(run.process, os.getpid())


@pytest.mark.parametrize(
    "used", [("poems-1",), ("poems-1@2",), ("other", "poems-1@2"), ("from-afar-a1",)]
)
def test_an_adapter_that_answers_is_not_deleted(
    settings: Settings, tmp_path: Path, used: tuple[str, ...]
) -> None:
    write_run(settings)
    write_elsewhere(settings)
    machine = Machine.open(settings, isolated=True)
    studio = Studio(settings, machine)
    job = Job("compare", used)
    machine.accelerator.assign(job, os.getpid())
    with pytest.raises(AdapterError) as refused:
        studio.library.delete(["from-afar-a1", "poems-1"])
    assert refused.value.key == "library.in_use"
    assert len(studio.library.entries()) == 2
    machine.accelerator.release(job)
    assert len(studio.library.delete(["from-afar-a1", "poems-1"])) == 2


def test_what_lies_too_long_goes_by_itself(settings: Settings, studio: Studio) -> None:
    for name in ("old", "new"):
        write_run(settings, name)
    old, _ = studio.library.delete(["old-1", "new-1"])
    note = settings.trash / old / trash.NOTE
    said = json.loads(note.read_text())
    note.write_text(json.dumps(said | {"deleted_at": time.time() - 31 * 24 * 3600}))
    assert [one.id for one in studio.library.deleted()] == ["new-1"]
    assert not (settings.trash / old).exists()


def test_an_emptied_trash_says_what_is_free_again(settings: Settings, studio: Studio) -> None:
    run = write_run(settings)
    size = size_of(run.path)
    studio.library.delete(["poems-1"])
    parts = dict(studio.library.disk().parts)
    assert parts["trash"] >= size
    assert studio.library.deleted()[0].bytes == size
    assert studio.library.empty_trash() == parts["trash"]
    assert "trash" not in dict(studio.library.disk().parts)
    assert studio.library.deleted() == []


def test_what_is_half_gone_is_emptied_too_and_only_what_went_is_counted(
    settings: Settings, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(settings, "half")
    write_run(settings, "stuck")
    half, stuck = studio.library.delete(["half-1", "stuck-1"])
    (settings.trash / half / trash.NOTE).unlink()
    size, whole = (size_of(settings.trash / key) for key in (half, stuck))
    remove = shutil.rmtree

    def some(folder: Path, **about: Any) -> None:
        if folder.name != stuck:
            remove(folder, **about)

    monkeypatch.setattr(trash.shutil, "rmtree", some)
    assert studio.library.empty_trash() == size
    assert [place.name for place in settings.trash.iterdir()] == [stuck]
    monkeypatch.undo()
    assert studio.library.empty_trash() == whole


def test_putting_one_thing_back_reads_nothing_else(
    settings: Settings, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        write_run(settings, name)
    keys = studio.library.delete(["a-1", "b-1", "c-1"])
    read: list[str] = []
    monkeypatch.setattr(
        trash, "_read", lambda place, own=trash._read: (read.append(place.name), own(place))[1]
    )
    assert studio.library.put_back(keys[:1]) == ["a-1"]
    assert read == keys[:1]


@pytest.mark.parametrize("key", ["", "..", "../runs", "nothing"])
def test_only_what_is_in_the_trash_comes_back(settings: Settings, studio: Studio, key: str) -> None:
    write_run(settings)
    with pytest.raises(StudioError) as refused:
        studio.library.put_back([key])
    assert refused.value.key == "library.not_in_trash"


def test_a_note_of_the_trash_cannot_name_another_place(settings: Settings, studio: Studio) -> None:
    write_run(settings)
    key = studio.library.delete(["poems-1"])[0]
    note = settings.trash / key / trash.NOTE
    note.write_text(json.dumps(json.loads(note.read_text()) | {"id": "../../escaped"}))
    with pytest.raises(StudioError):
        studio.library.put_back([key])
    assert not (settings.home.parent / "escaped").exists()


# Disk use and side by side


def test_every_byte_is_counted_once(settings: Settings, studio: Studio) -> None:
    run = write_run(settings, checkpoints=(2,))
    folder = write_elsewhere(settings)
    found = studio.library.disk()
    parts = dict(found.parts)
    assert parts["checkpoints"] == size_of(run.checkpoints)
    assert parts["adapters"] == size_of(run.adapter) + size_of(folder)
    assert parts["runs"] + parts["checkpoints"] + size_of(run.adapter) == size_of(run.path)
    assert found.free == pytest.approx(shutil.disk_usage(settings.home).free, rel=0.05)
    assert [size for _, size in found.parts] == sorted(parts.values(), reverse=True)
    (settings.home / "link").symlink_to("/")
    assert size_of(settings.home) < 1e6


def test_side_by_side_is_only_what_differs(settings: Settings, studio: Studio) -> None:
    write_run(settings, "a", "adapter.r=4")
    write_run(settings, "b", "adapter.r=8", "training.learning_rate=0.001")
    write_run(settings, "b", "adapter.r=8")
    found = {one.name: one.values for one in studio.library.differences(["a-1", "b-1", "b-2"])}
    assert found.keys() == {"name", "data.files", "adapter.r", "training.learning_rate"}
    assert found["adapter.r"] == (4, 8, 8)
    assert studio.library.differences(["a-1", "a-1"]) == []
    answers = studio.library.answers(["a-1", "b-1"])
    assert [(one.prompt, one.said) for one in answers] == [
        ("Hello?", ((2, "a says hello"), (2, "b says hello")))
    ]
    with pytest.raises(StudioError) as refused:
        studio.library.curves(["a-1"] * 7)
    assert refused.value.key == "library.too_many_together"


def test_a_curve_has_few_points_and_its_last(settings: Settings) -> None:
    run = write_run(settings, losses=tuple(float(n) for n in range(3000)))
    found = curve(History(run).update())
    assert len(found.train) <= MOST_POINTS + 1
    assert (found.train[0], found.train[-1]) == ((1, 0.0), (3000, 2999.0))
    assert found.held_out == [(0, 9.0), (3000, 2999.5)]


def test_what_a_lower_rank_loses_is_known_from_the_spectrum() -> None:
    modules = [{"singular_values": [2.0, 1.0]}, {"singular_values": [2.0]}]
    assert predicted_errors(modules) == pytest.approx([1, (1 / 9) ** 0.5, 0])
    assert predicted_errors([]) == [0]
    assert predicted_errors([{"singular_values": [0.0, 0.0]}]) == [0, 0, 0]


# The command line


def test_the_library_on_the_command_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(settings.home))
    write_run(settings)
    assert main(["rename", "poems-1", "Sea poems"]) == 0
    assert main(["adapters", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(one["id"], one["name"]) for one in shown] == [("poems-1", "Sea poems")]
    assert main(["delete", "poems-1"]) == 0
    key = capsys.readouterr().out.strip()
    assert main(["adapters"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["restore"]) == 0
    assert key in capsys.readouterr().out
    assert main(["restore", "poems-1"]) == 0
    assert capsys.readouterr().out.strip() == "poems-1"
    assert main(["delete", "poems-2"]) == 1
    assert "poems-2" in capsys.readouterr().err
    assert main(["adapters", "sub"]) == 2
    assert main(["xray", "nobody"]) == 1


def test_ctrl_c_ends_a_command_without_a_traceback(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("LORA_STUDIO_HOME", str(settings.home))
    monkeypatch.setattr(Table, "entries", interrupted)
    assert main(["adapters"]) == 130
    assert capsys.readouterr().out == ""


# What a browser sends


@pytest.mark.parametrize(
    "query",
    [None, [], "x", {"ids": "poems-1"}, {"ids": [3, None, {}]}, {"ids": ["nobody", "../x"]},
     {"by": [], "kind": {}, "tag": [1], "limit": "all", "words": 7, "starred": "yes"},
     {"by": "__class__", "limit": -1}, {"id": ["poems-1"], "words": {"ids": [1], "self": 2}},
     {"id": "poems-1", "words": {"name": 3}}, {"id": "poems-1", "words": {"tags": [["a"]]}},
     {"tag": {"a": 1}, "ids": ["poems-1"] * 3}],
)  # fmt: skip
def test_whatever_a_browser_sends_is_answered_and_changes_nothing_it_may_not(
    settings: Settings, studio: Studio, query: Any
) -> None:
    run = write_run(settings)
    door: Any = SimpleNamespace(enter=lambda _: studio)
    request: Any = SimpleNamespace(cookies={}, headers={})
    acts = {
        "found": library_table.found, "room": library_table.room, "beside": beside,
        "described": library_sheet.described, "say": library_sheet._say,
        "remove": library_table._remove, "put_back": library_table._put_back,
    }  # fmt: skip
    for name, act in acts.items():
        if name == "remove" and isinstance(query, dict) and "poems-1" in query.get("ids", ()):
            continue  # that is what it is for
        answer = library_table.endpoint(door, name, act)(query, request)
        json.dumps(answer)
        assert "failed" not in answer or answer["told"]
    assert (run.path / "recipe.yaml").exists()
    assert studio.library.entry("poems-1").about == About()


def voice_of(language: str) -> Voice:
    return Voice(SimpleNamespace(cookies={COOKIE: language}, headers={}))


def test_a_doubtful_base_is_told_wherever_the_adapter_is_opened(
    settings: Settings, studio: Studio
) -> None:
    write_elsewhere(settings, trained_on="owner/other", source="owner/mine")
    write_elsewhere(settings, "sure-a1", source="owner/mine")
    entry = {"id": "from-afar-a1"}
    for language in ("en", "ko"):
        told = library_sheet.described(studio, entry, voice_of(language))
        assert "owner/other" in told["problem"] and "owner/mine" in told["problem"]
        assert told["can"]["compare"]
    assert not library_sheet.described(studio, {"id": "sure-a1"}, voice_of("en"))["problem"]


def test_an_x_ray_promises_the_size_that_a_lower_rank_has() -> None:
    module = {"name": "layers.0.q", "relative_norm": None, "effective_rank": 2, "rank": 4,
              "singular_values": [3.0, 2.0, 1.0, 0.5], "bytes_per_rank": 1_000_000}  # fmt: skip
    low = module | {"name": "layers.1.q", "rank": 1, "singular_values": [1.0]}
    found = {"modules": [module, low], "rank": 4, "effective_rank": 2, "beside": 3}
    value = json.loads(library_xray.value_of("a", "a", 9_000_000, found, voice_of("en")))
    sizes = [one["size"] for one in value["ranks"]]
    assert sizes == ["6 MB", "7 MB", "8 MB"], "what does not shrink is not counted as if it did"
    assert "3" in value["words"]["said"]
    lost = [(5.25 / 15.25) ** 0.5, (1.25 / 15.25) ** 0.5, (0.25 / 15.25) ** 0.5]
    assert [one["error"] for one in value["ranks"]] == [numbers.percent(one) for one in lost]


class Spectrum(list[float]):
    """Singular values that count how often they are gone through."""

    reads = 0

    def __iter__(self) -> Iterator[float]:
        self.reads += 1
        return super().__iter__()

    def __getitem__(self, at: Any) -> Any:
        self.reads += 1
        return super().__getitem__(at)


def test_an_x_ray_of_a_high_rank_goes_through_its_spectra_a_few_times() -> None:
    spectrum = Spectrum(float(value) for value in range(256, 0, -1))
    module = {"name": "q", "relative_norm": None, "effective_rank": 9, "rank": 256,
              "singular_values": spectrum, "bytes_per_rank": 1}  # fmt: skip
    found = {"modules": [module], "rank": 256, "effective_rank": 9, "beside": 0}
    value = json.loads(library_xray.value_of("a", "a", 9_000, found, voice_of("en")))
    assert len(value["ranks"]) == 255
    assert spectrum.reads < 10


def test_a_rank_beyond_every_spectrum_loses_nothing() -> None:
    module = {"name": "q", "relative_norm": None, "effective_rank": 1, "rank": 4,
              "singular_values": [2.0, 1.0], "bytes_per_rank": 1}  # fmt: skip
    found = {"modules": [module], "rank": 4, "effective_rank": 1, "beside": 0}
    value = json.loads(library_xray.value_of("a", "a", 9, found, voice_of("en")))
    assert [one["rank"] for one in value["ranks"]] == [1, 2, 3]
    assert value["ranks"][1]["error"] == value["ranks"][2]["error"]


# Where everybody may keep some


@pytest.fixture
def shown(settings: Settings) -> Studio:
    """A studio that keeps three adapters, `old-a1`, `mid-a1` and `new-a1`."""
    few = dataclasses.replace(settings, most_runs=3)
    for age, name in enumerate(("new-a1", "mid-a1", "old-a1")):
        folder = write_elsewhere(few, name)
        # Older than what comes next, whose times are those of the last tick of the clock.
        os.utime(folder / ORIGIN, (time.time() - 100 * (age + 1),) * 2)
    return Studio(few, Machine.open(few, isolated=False))


def held(studio: Studio) -> set[str]:
    return {folder.name for folder in names.adapter_folders(studio.settings)}


def comes(studio: Studio, name: str) -> Iterator[dict[str, Any]]:
    """What the workbench does for an adapter that is made."""
    yield {"stage": "copy", "done": 0, "total": 0}
    write_elsewhere(studio.settings, name)
    yield {"result": {"id": name}}


def test_what_is_refused_or_left_makes_no_room(shown: Studio, tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_text("no zip")
    with pytest.raises(StudioError):
        list(shown.adapters.add(str(tmp_path / "bad.zip")))
    with pytest.raises(StudioError):
        list(shown.adapters.shrink("old-a1", 4))
    left = shown.adapters.add(str(tmp_path / "bad.zip"))
    next(left)
    left.close()
    assert held(shown) == {"new-a1", "mid-a1", "old-a1"}


def test_room_is_made_by_the_oldest_that_nobody_needs(
    shown: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stream(task: str, **_: Any) -> Iterator[dict[str, Any]]:
        return comes(shown, {"make_smaller": "old-a1-r4-a1", "take_in": "taken-a1"}[task])

    monkeypatch.setattr(shown.adapters, "_bench", SimpleNamespace(stream=stream))
    list(shown.adapters.shrink("old-a1", 4))
    assert held(shown) == {"new-a1", "old-a1", "old-a1-r4-a1"}, "not the one it is made of"
    with shown.adapters.using("old-a1"):
        list(shown.adapters.add(str(tmp_path / "any.zip")))
    assert held(shown) == {"old-a1", "old-a1-r4-a1", "taken-a1"}, "nor one whose files are read"
    job = Job("compare", ("old-a1", "old-a1-r4-a1"))
    shown._machine.accelerator.assign(job, os.getpid())
    write_elsewhere(shown.settings, "more-a1")
    shutil.rmtree(shown.settings.adapters / "taken-a1")
    list(shown.adapters.add(str(tmp_path / "any.zip")))
    assert held(shown) == {"old-a1", "old-a1-r4-a1", "taken-a1"}, "nor one that answers"


# The same id again


def test_nothing_that_was_said_passes_to_another_of_the_same_id(
    settings: Settings, studio: Studio
) -> None:
    words = {"name": "Sea", "note": "keep me", "tags": ["sea"], "star": True}
    for again in (False, True):
        write_run(settings, losses=(3.0, 2.0) if again else (3.0,))
        write_elsewhere(settings, of="other.zip" if again else "afar.zip")
        for one in studio.library.entries():
            assert (one.about, one.name) == (About(), one.id)
            if one.origin is None:
                assert one.facts.steps == (2 if again else 1)
            else:
                assert one.origin.of == ("other.zip" if again else "afar.zip")
        studio.library.say(["poems-1", "from-afar-a1"], **words)
        studio.library.delete(["poems-1", "from-afar-a1"])
        studio.library.empty_trash()
