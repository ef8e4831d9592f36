"""Kept recipes: names of any script, commands that shells hand on whole, differences."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import yaml

from lora_studio.cases.machine import Machine
from lora_studio.cli.main import main
from lora_studio.errors import RecipeError, StudioError
from lora_studio.recipe import AdapterSpec, DataSpec, Recipe, TrainingSpec
from lora_studio.recipes.command import train_file, train_settings
from lora_studio.recipes.diff import Change, changes
from lora_studio.recipes.library import MOST_RECIPES, Library, file_name, listed_name
from lora_studio.recipes.upgrade import read_recipe, upgrade
from lora_studio.runs import folder as run_folder
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.ui.recipes import RecipePanel
from lora_studio.ui.visitors import Door

RECIPE = Recipe(
    name="봄 시",
    data=DataSpec(
        files=('/어느 곳/it\'s a "file" & more.jsonl', "-rows.txt"),
        columns={"question": "질문", "answer": "답: 변"},
        template="{{질문}}\n---\n$HOME `x` %PATH% 🙂\\",
        cut_marker="***",
    ),
    adapter=AdapterSpec(
        r=8, target_modules=("q_proj",), rank_pattern={"v.*_proj": 4}, layers_to_transform=(0, 3)
    ),
    training=TrainingSpec(learning_rate=1e-5, max_steps=60, loraplus_lr_ratio=4),
    prompts=("yes", "3", "null", "", "#x"),
    seed=7,
)
NAMES = ["봄 시", "a/b", "../../etc/passwd", "..", ".hidden", "CON", "com1.x", "50 %", "%41",
         "a:b*?",         "end.", "日本語 العربية", "x" * 80, "봄" * 60, "q\\r", "🙂"]  # fmt: skip


@pytest.fixture
def library(settings: Settings) -> Library:
    return Library.of(settings)


# Names


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_found_again_under_its_name_and_nowhere_else(
    library: Library, settings: Settings, name: str
) -> None:
    assert library.save(name, RECIPE) == name
    assert library.load(name) == RECIPE
    assert [saved.name for saved in library.listed()] == [name]
    files = list(settings.home.parent.rglob("*.yaml"))
    assert [file.parent for file in files] == [settings.recipes]
    assert not re.search(r'[/\\:*?"<>|]', files[0].name)
    assert len(files[0].name.encode()) <= 255
    library.delete(name)
    assert library.listed() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_leads_back_to_the_name(name: str) -> None:
    assert listed_name(file_name(name)) == name


@pytest.mark.parametrize(
    ("name", "key"),
    [("", "no_name"), (" \t", "no_name"), ("a\nb", "bad_name"), ("a\x00b", "bad_name"),
     ("x" * 81, "long_name"), ("봄" * 80, "long_name"), ("a\ud800", "bad_name")],
)  # fmt: skip
def test_what_cannot_be_a_name_is_refused(library: Library, name: str, key: str) -> None:
    with pytest.raises(StudioError) as caught:
        library.save(name, RECIPE)
    assert caught.value.key == f"recipes.{key}"


def test_composed_and_decomposed_letters_are_one_name(library: Library) -> None:
    apart = unicodedata.normalize("NFD", "봄")
    library.save("봄", RECIPE)
    assert library.load(apart) == RECIPE
    with pytest.raises(StudioError, match="already"):
        library.save(apart, RECIPE)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "secret", "", "x\x00"])
def test_only_what_is_listed_can_be_read_or_deleted(
    library: Library, settings: Settings, name: str
) -> None:
    library.save("mine", RECIPE)
    secret = settings.home / "secret.yaml"
    secret.write_text(RECIPE.to_yaml(), encoding="utf-8")
    for act in (library.load, library.delete):
        with pytest.raises(RecipeError, match="no saved recipe"):
            act(name)
    assert secret.exists()


# Saving


def test_a_taken_name_is_replaced_only_when_that_is_said(library: Library) -> None:
    library.save("a", RECIPE)
    other = replace(RECIPE, seed=8)
    for name in ("a", "A", " a "):
        with pytest.raises(StudioError) as caught:
            library.save(name, other)
        assert caught.value.key == "recipes.exists"
    assert library.load("a") == RECIPE
    assert library.save("A", other, overwrite=True) == "a"
    assert library.load("a") == other
    assert len(library.listed()) == 1


def test_the_newest_stands_first(library: Library, settings: Settings) -> None:
    for at, name in enumerate(["old", "new", "middle"]):
        library.save(name, RECIPE)
        when = [100, 300, 200][at]
        os.utime(settings.recipes / f"{name}.yaml", (when, when))
    assert [(saved.name, saved.saved_at) for saved in library.listed()] == [
        ("new", 300), ("middle", 200), ("old", 100),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content", [b"r: [", b"\xff\xfe\x00", b"adapter: {r: 0}", b"version: 99", b"x" * 1_000_001, b""]
)
def test_a_broken_file_is_a_sentence_and_the_others_stay_usable(
    library: Library, settings: Settings, content: bytes
) -> None:
    library.save("good", RECIPE)
    (settings.recipes / "bad.yaml").write_bytes(content)
    (settings.recipes / "folder.yaml").mkdir()
    found = {saved.name: saved for saved in library.listed()}
    assert found.keys() == {"good", "bad"}
    assert found["good"].problem is None
    assert found["bad"].recipe is None
    assert found["bad"].problem is not None
    assert found["bad"].problem.say("ko") != found["bad"].problem.say("en")
    with pytest.raises(RecipeError):
        library.load("bad")
    library.delete("bad")
    assert [saved.name for saved in library.listed()] == ["good"]


def test_a_file_mended_by_hand_is_read_again(library: Library, settings: Settings) -> None:
    library.save("a", RECIPE)
    file = settings.recipes / "a.yaml"
    assert library.load("a").seed == 7
    file.write_text("seed: 12345\n", encoding="utf-8")
    assert library.load("a").seed == 12345


def test_a_save_that_fails_leaves_the_old_recipe_and_no_scraps(
    library: Library, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.save("a", RECIPE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StudioError, match="No space left"):
        library.save("a", Recipe(), overwrite=True)
    assert library.load("a") == RECIPE
    assert [file.name for file in settings.recipes.iterdir()] == ["a.yaml"]


def test_there_is_an_end_to_how_many_are_kept(library: Library, settings: Settings) -> None:
    library.save("a", RECIPE)
    for number in range(MOST_RECIPES - 1):
        (settings.recipes / f"{number}.yaml").touch()
    with pytest.raises(StudioError) as caught:
        library.save("one more", RECIPE)
    assert caught.value.key == "recipes.too_many"
    library.save("a", Recipe(), overwrite=True)


def test_a_visitor_of_a_space_sees_their_own_recipes_only(settings: Settings) -> None:
    first, second = (Library.of(settings.for_visitor(name)) for name in ("a" * 32, "b" * 32))
    first.save("mine", RECIPE)
    assert second.listed() == []
    assert Library.of(settings).listed() == []
    with pytest.raises(RecipeError):
        second.load("mine")


# Earlier and later versions


def test_a_setting_that_was_renamed_is_read_under_its_old_name() -> None:
    old = "version: 1\ndata: {files: [a.txt], missing_answers: refuse}\nadapter: {r: 8}\n"
    recipe = read_recipe(old)
    assert recipe.data.checks.empty_answers == "stop"
    assert recipe.adapter == AdapterSpec(r=8)
    skip = read_recipe("data: {missing_answers: skip}")
    assert skip.data.checks.empty_answers == "skip"


def test_the_new_name_wins_where_both_stand() -> None:
    tree = {"data": {"missing_answers": "refuse", "checks": {"empty_answers": "skip"}}}
    assert upgrade(tree)["data"] == {"checks": {"empty_answers": "skip"}}
    assert "missing_answers" in tree["data"], "what was handed in stays as it is"


def test_a_later_version_is_one_clear_sentence() -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe("version: 2\nfuture: {setting: 1}\nadapter: {r: many}")
    assert [problem.key for problem in caught.value.problems] == ["recipe.version"]
    assert "2" in str(caught.value)


@pytest.mark.parametrize("text", ["version: one", "version: true", "version: 0", "version: -1"])
def test_a_version_that_never_was_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        read_recipe(text)


@pytest.mark.parametrize(
    "text", ["data: [1]", "data: {checks: 3, missing_answers: skip}", "[]", "x"]
)
def test_an_upgrade_leaves_nonsense_to_be_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        read_recipe(text)


# Differences


def test_only_what_differs_is_listed_with_both_values() -> None:
    left = Recipe()
    right = left.changed(
        ["adapter.r=8", "data.checks.duplicates=skip", "adapter.rank_pattern={q: 2}"]
    )
    assert changes(left, right) == [
        Change("data.checks.duplicates", "keep", "skip"),
        Change("adapter.r", 16, 8),
        Change("adapter.rank_pattern", {}, {"q": 2}),
    ]
    assert changes(right, right) == []


# Commands


def settings_of(words: list[str]) -> list[str]:
    assert words[:4] == ["python", "-m", "lora_studio", "train"]
    assert words[4::2] == ["--set"] * (len(words[4:]) // 2)
    return words[5::2]


def test_a_posix_shell_hands_every_setting_on_whole() -> None:
    line = train_settings(RECIPE)
    assert line is not None
    assert "\n" not in line
    assert Recipe().changed(settings_of(shlex.split(line))) == RECIPE


def on_windows(line: str) -> list[str]:
    """Split a line as the Microsoft C runtime does, where a quote is never doubled."""
    words, word, quoted, at = [], "", False, 0
    while at < len(line):
        slashes = len(line[at:]) - len(line[at:].lstrip("\\"))
        at += slashes
        at_quote = at < len(line) and line[at] == '"'
        word += "\\" * (slashes // 2 if at_quote else slashes)
        if at_quote:
            if slashes % 2:
                word += '"'
            else:
                quoted = not quoted
            at += 1
        elif at < len(line) and line[at] == " " and not quoted:
            words.append(word)
            word, at = "", at + 1
        elif at < len(line) and not slashes:
            word, at = word + line[at], at + 1
    return [*words, word]


def test_windows_hands_every_setting_on_whole() -> None:
    data = replace(
        RECIPE.data, files=("C:\\글 모음\\it's & (more).jsonl", "C:\\dir\\"), template="<|a|> ^ 답"
    )
    recipe = replace(RECIPE, data=data)
    line = train_settings(recipe, "windows")
    assert line is not None
    bare = re.sub(r'"[^"]*"', "", line)
    assert not re.search(r"[&|<>^()%!']", bare), "the shell would read these itself"
    assert Recipe().changed(settings_of(on_windows(line))) == recipe


@pytest.mark.parametrize("template", ["a\nb", 'say "a"', "%PATH%", "$x", "`x`", "a!b"])
def test_what_windows_cannot_quote_is_left_to_the_recipe_file(template: str) -> None:
    recipe = replace(RECIPE, data=DataSpec(template=template))
    assert train_settings(recipe, "windows") is None
    line = train_settings(recipe)
    assert line is not None
    assert Recipe().changed(settings_of(shlex.split(line))) == recipe


@pytest.mark.parametrize(
    "file", ["recipe.yaml", "내 레시피.yaml", "it's.yaml", "-x.yaml", "a&b.yaml"]
)
def test_a_file_of_any_name_is_one_word(file: str) -> None:
    words = shlex.split(train_file(file) or "")
    assert Path(words[4]) == Path(file)
    assert not words[4].startswith("-")
    assert on_windows(train_file(file, "windows") or "") == words
    assert len(words) == 5


def test_the_default_recipe_needs_no_setting() -> None:
    assert train_settings(Recipe()) == "python -m lora_studio train"


# The page


def asked(language: str = "en", agent: str = "Linux") -> Any:
    """A request, as far as the panel looks at it."""
    cookies = {"lora_studio_language": language}
    return SimpleNamespace(cookies=cookies, headers={"user-agent": agent}, session_hash="a")


@pytest.fixture
def panel(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecipePanel]:
    """The panel of a page whose controls show RECIPE; the event loops of Gradio are closed."""
    make, made = asyncio.new_event_loop, []
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(make()) or made[-1])
    studio = Studio(settings, Machine.open(settings, isolated=True))
    with gr.Blocks():
        panel = RecipePanel(Door(studio))
        panel.wire(
            [], lambda *_: RECIPE, shown=[panel.said], show=lambda *_: [""], token=gr.Textbox()
        )
        yield panel
    asyncio.set_event_loop(None)
    for loop in made:
        loop.close()


def test_the_page_asks_before_it_replaces_a_recipe(panel: RecipePanel) -> None:
    said, asks, saved, other = panel.keep_as(asked(), "봄")
    assert "봄" in said
    assert not asks.visible
    assert (saved.value, saved.choices[0][1]) == ("봄", "봄")
    assert other.choices[0][1] == "saved:봄"
    said, asks, *_ = panel.keep_as(asked("ko"), "봄")
    assert asks.visible
    assert "이미" in said
    said, asks, *_ = panel.replace_as(asked(), "봄")
    assert not asks.visible
    said, asks, *_ = panel.keep_as(asked(), None)
    assert not asks.visible
    assert "no name" in said


def test_what_was_chosen_stays_chosen_as_long_as_it_is_there(panel: RecipePanel) -> None:
    panel.keep_as(asked(), "a")
    saved, other = panel.refreshed("a", "saved:a", asked())
    assert (saved.value, other.value) == ("a", "saved:a")
    said, replace, delete, sure, saved, other = panel.drop("a", asked())
    assert not replace.visible
    assert "deleted" in said
    assert (delete.visible, sure.visible) == (True, False)
    assert (saved.value, saved.choices) == (None, [])
    assert "no saved recipe" in panel.drop("a", asked())[0]


def test_a_recipe_that_cannot_be_read_says_so_in_the_list(
    panel: RecipePanel, settings: Settings
) -> None:
    settings.recipes.mkdir(parents=True)
    (settings.recipes / "bad.yaml").write_text("seed: [", encoding="utf-8")
    saved, other = panel.refreshed(None, None, asked())
    assert saved.choices == [("bad · cannot be read", "bad")]
    assert other.choices == []
    with pytest.raises(gr.Error):
        panel._saved("bad", asked())


def test_the_page_shows_what_differs_and_nothing_of_it_is_markup(
    panel: RecipePanel, settings: Settings
) -> None:
    evil = replace(RECIPE, name="<script>alert(1)</script>", seed=8)
    Library.of(settings).save("<b>x", evil)
    table = panel.show_difference(asked(), "saved:<b>x")
    assert "<script>" not in table
    assert "<b>" not in table
    assert "&lt;script&gt;" in table
    assert re.findall(r"<td><code>(.*?)</code>", table) == ["name", "seed"]
    Library.of(settings).save("same", RECIPE)
    assert "<table" not in panel.show_difference(asked(), "saved:same")


@pytest.mark.parametrize("other", [None, "", "saved:../x", "run:../x", "x", 3, ["saved:a"]])
def test_what_is_not_in_the_list_is_answered_in_words(panel: RecipePanel, other: Any) -> None:
    assert 'class="ls-say bad"' in panel.show_difference(asked(), other)


def test_the_difference_from_a_run_is_that_from_its_recipe(
    panel: RecipePanel, settings: Settings
) -> None:
    run = run_folder.create(settings.runs, replace(RECIPE, seed=9))
    _, other = panel.refreshed(None, f"run:{run.id}", asked())
    assert other.value == f"run:{run.id}"
    table = panel.show_difference(asked(), other.value)
    assert re.findall(r"<td>(\d)</td>", table) == ["7", "9"]


def test_the_command_is_for_the_browsers_system(panel: RecipePanel) -> None:
    code, said = panel.show_command(asked(agent="X11; Linux"))
    assert Recipe().changed(settings_of(shlex.split(code.value))) == RECIPE
    assert said == ""
    code, said = panel.show_command(asked(agent="Windows NT 10.0"))
    assert not code.visible
    assert "Windows" in said


def test_the_script_is_shown_or_refused_in_words(panel: RecipePanel) -> None:
    code, said = panel.show_script(asked("ko"))
    assert "레시피의 설정이에요" in code.value
    start = replace(RECIPE, adapter=AdapterSpec(init_lora_weights="eva"))
    panel._recipe_of = lambda *_: start
    code, said = panel.show_script(asked())
    assert not code.visible
    assert "eva" in said


# The command line


@pytest.fixture
def home(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(settings.home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return settings


def test_saved_recipes_are_listed_and_printed(
    home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes"]) == 0
    assert "No saved recipes" in capsys.readouterr().err
    Library.of(home).save("봄 시", RECIPE)
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.startswith("봄 시\t20")
    assert main(["recipes", "봄 시"]) == 0
    assert Recipe.from_dict(yaml.safe_load(capsys.readouterr().out)) == RECIPE
    assert main(["recipes", "nobody"]) == 2


def test_two_recipes_are_told_apart_by_file_or_name(
    home: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Library.of(home).save("kept", replace(Recipe(), seed=7))
    file = tmp_path / "file.yaml"
    file.write_text("adapter: {r: 8}\n", encoding="utf-8")
    assert main(["diff", "kept", str(file)]) == 0
    assert capsys.readouterr().out == "adapter.r: 16 → 8\nseed: 7 → 42\n"
    assert main(["diff", "kept", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_a_script_is_printed_for_settings_alone(
    home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["script", "--set", "adapter.r=5", "--set", "precision=fp32"]) == 0
    assert "\nR = 5\n" in capsys.readouterr().out
    assert main(["script", "--set", "adapter.init_lora_weights=eva"]) == 2
    assert "eva" in capsys.readouterr().err
