"""The exported script: it runs without this program and trains what this program trains."""

from __future__ import annotations

import ast
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainings import recipe_over
from transformers import AutoTokenizer

from lora_studio.cases.machine import Machine
from lora_studio.data.encoding import IGNORE_INDEX, Encoded
from lora_studio.errors import RecipeError
from lora_studio.exports.rows import as_labelled, as_pieces
from lora_studio.exports.script import comment, python_value, write_script
from lora_studio.models.description import HEAD_STD
from lora_studio.recipe import Recipe
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import create
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.training.session import Session

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

WEIGHTS = "adapter_model.safetensors"
Tensors = dict[str, torch.Tensor]
Make = Callable[..., Recipe]


@pytest.fixture
def make(pairs: Path, tiny_llama: Path) -> Make:
    """Make a recipe over the twenty pairs; settings are given as on the command line."""

    def recipe(*changes: str, model: Path = tiny_llama, data: Path = pairs) -> Recipe:
        return recipe_over(
            data, model, "training.max_steps=6", "training.warmup_ratio=0.2", *changes
        )

    return recipe


def trained_here(recipe: Recipe, settings: Settings, runs: Path) -> Tensors:
    """Train with this program, evaluations and answers on the way included."""
    folder = create(runs, recipe)
    with EventWriter(folder.events) as events:
        session = Session(recipe, settings, lambda *_: None)
        session.build(folder, events)
        session.train()
        return load_file(session.save(folder) / WEIGHTS)


def exported(recipe: Recipe, settings: Settings, folder: Path) -> dict[str, int]:
    """Write the script and its rows; return what was said of the rows."""
    studio = Studio(settings, Machine.open(settings, isolated=False))
    *_, last = studio.scripts.write(recipe, folder)
    return last["result"]


def trained_by_script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tensors:
    monkeypatch.chdir(folder)
    runpy.run_path("train.py")
    return load_file(folder / "adapter" / WEIGHTS)


def assert_same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys() != set()
    learned = [name for name in ours if "lora_B" in name]
    assert any(ours[name].abs().max() > 1e-3 for name in learned), "nothing was learned"
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, atol=1e-5, rtol=1e-4, msg=name)


# The same adapter


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        # Dropout, which GPT-2 has by itself, draws other numbers where rows are packed.
        ("tiny_llama", ("adapter.lora_dropout=0.3", "training.gradient_accumulation_steps=2",
                        "training.packing=false")),
        ("tiny_gpt2", ("adapter.bias=lora_only", "training.lr_scheduler_type=linear",
                       "training.packing=false")),
        ("tiny_llama", ("adapter.use_rslora=true", "adapter.target_modules=[q_proj, v_proj]",
                        "adapter.layers_to_transform=[1]", "training.loraplus_lr_ratio=4")),
        ("tiny_llama", ("adapter.use_dora=true", "adapter.init_lora_weights=gaussian",
                        "adapter.rank_pattern={q_proj: 2}", "adapter.alpha_pattern={q_proj: 3}")),
        ("tiny_llama", ("adapter.modules_to_save=[lm_head]", "data.eval_fraction=0",
                        "training.max_steps=null", "training.num_train_epochs=1.5")),
        ("tiny_llama", ("precision=nf4",)),
    ],
    ids=["dropout", "gpt2-bias", "rslora-loraplus", "dora-patterns", "whole-head", "nf4"],
)  # fmt: skip
def test_the_script_trains_the_same_adapter(
    make: Make,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    model: str,
    changes: tuple[str, ...],
) -> None:
    recipe = make(*changes, model=request.getfixturevalue(model))
    ours = trained_here(recipe, settings, tmp_path / "runs")
    exported(recipe, settings, tmp_path / "script")
    assert_same(ours, trained_by_script(tmp_path / "script", monkeypatch))


def test_a_run_that_stops_early_stops_there_in_its_script_and_both_take_the_best(
    make: Make, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make(
        "training.learning_rate=0.3", "training.eval_steps=1", "training.max_steps=20",
        "training.early_stopping_patience=1", "training.packing=false",
    )  # fmt: skip
    ours = trained_here(recipe, settings, tmp_path / "runs")
    (events,) = (tmp_path / "runs").glob("*/events.jsonl")
    told = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    (early,) = [event for event in told if event["event"] == "early_stopped"]
    assert early["best_step"] < early["step"] < 20
    exported(recipe, settings, tmp_path / "script")
    monkeypatch.chdir(tmp_path / "script")
    trainer = runpy.run_path("train.py")["trainer"]
    assert trainer.state.global_step == early["step"]
    assert trainer.state.best_global_step == early["best_step"]
    assert_same(ours, load_file(tmp_path / "script" / "adapter" / WEIGHTS))


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_other_kinds_of_rows_are_trained_the_same(
    make: Make, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = tmp_path / ("rows.jsonl" if kind == "chat" else "story.txt")
    if kind == "chat":
        turns = [("user", "Wo? 어디예요?"), ("assistant", "Hier 🙂."), ("user", "Und?"),
                 ("assistant", "강가예요.")]  # fmt: skip
        row = {"messages": [{"role": role, "content": text} for role, text in turns]}
        rows = [json.dumps(row | {"n": n}).replace("Wo?", f"Wo {n}?") for n in range(12)]
        data.write_text("\n".join(rows), encoding="utf-8")
    else:
        data.write_text("옛날 옛적에 어댑터가 살았어요. It was small.\n\n" * 60, encoding="utf-8")
    recipe = make("data.max_length=40", "training.max_steps=4", data=data)
    ours = trained_here(recipe, settings, tmp_path / "runs")
    exported(recipe, settings, tmp_path / "script")
    assert_same(ours, trained_by_script(tmp_path / "script", monkeypatch))


# Classification


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Thirty short texts with one of three labels, in a table."""
    words = {"좋음": "I love this", "bad": "이건 별로예요", "so-so": "it is a chair 🙂"}
    lines = [f"{text} {n},{label}" for n in range(10) for label, text in words.items()]
    file = tmp_path / "labelled.csv"
    file.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return file


SORTS = ("data.format=classification", "training.learning_rate=0.02")


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("tiny_llama", ("adapter.lora_dropout=0.3", "training.gradient_accumulation_steps=3",
                        "data.max_length=8")),
        ("tiny_gpt2", ("adapter.bias=all", "training.loraplus_lr_ratio=4", "seed=7")),
        ("tiny_llama", ("precision=nf4", "training.max_steps=null", "data.eval_fraction=0",
                        "training.num_train_epochs=1")),
    ],
    ids=["dropout-cut", "gpt2-bias-loraplus", "nf4"],
)  # fmt: skip
def test_a_classification_is_trained_the_same_by_its_script(
    make: Make,
    labelled: Path,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    model: str,
    changes: tuple[str, ...],
) -> None:
    recipe = make(*SORTS, *changes, model=request.getfixturevalue(model), data=labelled)
    ours = trained_here(recipe, settings, tmp_path / "runs")
    exported(recipe, settings, tmp_path / "script")
    theirs = trained_by_script(tmp_path / "script", monkeypatch)
    assert_same(ours, theirs)
    (head,) = [weight for name, weight in theirs.items() if name.endswith("score.weight")]
    assert head.shape == (3, 32)
    config = json.loads((tmp_path / "script/adapter/config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "bad", "1": "so-so", "2": "좋음"}
    assert config["architectures"][0].endswith("ForSequenceClassification")


def test_what_is_measured_on_the_way_is_measured_by_the_script_too(
    make: Make,
    labelled: Path,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make(*SORTS, "training.eval_steps=3", data=labelled)
    trained_here(recipe, settings, tmp_path / "runs")
    (events,) = (tmp_path / "runs").glob("*/events.jsonl")
    ours = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    exported(recipe, settings, tmp_path / "script")
    monkeypatch.chdir(tmp_path / "script")
    log = runpy.run_path("train.py")["trainer"].state.log_history
    measured = [event for event in ours if event["event"] == "eval"]
    theirs = [entry for entry in log if "eval_loss" in entry]
    assert len(measured) == len(theirs) == 3
    for mine, other in zip(measured, theirs, strict=True):
        for name in ("loss", "accuracy", "f1"):
            assert mine[name] == pytest.approx(other[f"eval_{name}"], abs=1e-4), name


def test_labelled_rows_are_written_as_texts_and_cut_ones_as_tokens(
    make: Make, labelled: Path, settings: Settings, tmp_path: Path
) -> None:
    recipe = make(*SORTS, data=labelled)
    said = exported(recipe, settings, tmp_path / "whole")
    lines = (tmp_path / "whole/rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert (len(rows), said["held_out"], said["as_numbers"]) == (24, 6, 0)
    assert rows[0] == {"text": "I love this 0", "label": "좋음"}
    names = json.loads((tmp_path / "whole/labels.json").read_text(encoding="utf-8"))
    assert names == ["bad", "so-so", "좋음"]
    # Eight tokens end within a Korean letter, of which no text is left.
    cut = recipe.changed(["data.max_length=8"])
    assert exported(cut, settings, tmp_path / "cut")["as_numbers"] > 0


def test_a_text_that_spells_out_a_special_token_keeps_its_tokens(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    texts = ["plain 글", "a <|im_end|> b"]
    rows = [
        Encoded(ids, [IGNORE_INDEX] * len(ids), len(ids), label=1)
        for ids in tokenizer(texts)["input_ids"]
    ]
    plain, special = as_labelled(rows, tokenizer, ["a", "b"])
    assert plain == {"text": "plain 글", "label": "b"}
    assert special == {"ids": rows[1].input_ids, "label": "b"}
    assert list(as_labelled([], tokenizer, ["a"])) == []


@pytest.mark.slow
def test_a_plain_python_without_this_program_runs_it(
    make: Make, settings: Settings, tmp_path: Path
) -> None:
    recipe = make("training.max_steps=2")
    said = exported(recipe, settings, tmp_path / "script")
    assert (said["rows"], said["held_out"], said["as_numbers"]) == (16, 4, 0)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path / "script",
        env=environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    ours = trained_here(recipe, settings, tmp_path / "runs")
    theirs = load_file(tmp_path / "script" / "adapter" / WEIGHTS)
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, atol=1e-5, rtol=1e-4, msg=name)


# The text of it


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("format_", ["auto", "classification"])
@pytest.mark.parametrize("precision", ["nf4", "int8", "bf16", "fp16", "fp32"])
def test_every_script_is_python_that_names_only_public_libraries(
    make: Make, precision: str, format_: str, language: str
) -> None:
    settings = ("training.loraplus_lr_ratio=2", "adapter.rank_pattern={q_proj: 2}")
    recipe = make(*settings, f"data.format={format_}")
    text = write_script(recipe, precision=precision, info=None, language=language)
    roots = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom)
                     else [alias.name for alias in node.names])
    }  # fmt: skip
    public = {"json", "math", "pathlib", "torch", "datasets", "peft", "transformers"}
    assert roots == public | ({"sklearn"} if format_ == "classification" else {"trl"})
    assert ("BitsAndBytesConfig" in text) == (precision in ("nf4", "int8"))


@pytest.mark.parametrize("format_", ["auto", "classification"])
def test_what_a_recipe_does_not_use_is_not_in_its_script(make: Make, format_: str) -> None:
    text = write_script(make(f"data.format={format_}"), precision="fp32", info=None)
    for name in ("loraplus", "dora", "rslora", "LAYERS", "RANK_PATTERN", "MODULES_TO_SAVE"):
        assert name not in text.replace("LORAPLUS", "loraplus")
    assert "\n\n\n\n" not in text


def test_the_scripts_head_is_drawn_as_the_programs(make: Make) -> None:
    text = write_script(make("data.format=classification"), precision="fp32", info=None)
    assert f"normal_(std={HEAD_STD}," in text


def test_a_name_in_a_recipe_never_becomes_code(make: Make) -> None:
    evil = 'x"""\nimport os\nos.abort()\n"""\\'
    recipe = make("adapter.modules_to_save=['\"]; boom(); [\"']")
    recipe = replace(recipe, model=replace(recipe.model, source=evil))
    tree = ast.parse(write_script(recipe, precision="fp32", info=None))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)  # type: ignore[attr-defined]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Constant, ast.List))
    }
    assert values["MODEL"] == evil.strip()
    assert values["MODULES_TO_SAVE"] == ['"]; boom(); ["']
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "boom"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)
                and node.attr == "abort"]  # fmt: skip


@pytest.mark.parametrize("start", ["eva", "loftq", "pissa"])
def test_a_start_that_no_short_script_can_make_is_refused_in_words(make: Make, start: str) -> None:
    recipe = make(f"adapter.init_lora_weights={start}")
    with pytest.raises(RecipeError, match=start):
        write_script(recipe, precision="fp32", info=None)


@pytest.mark.parametrize("value", ["it's", 'say "a"', "a\\b\n", {"q_proj": 2}, ("a", "b"), None])
def test_a_value_is_written_as_python_reads_it(value: Any) -> None:
    wanted = list(value) if isinstance(value, tuple) else value
    assert ast.literal_eval(python_value(value)) == wanted


def test_a_comment_stays_a_comment_whatever_it_says() -> None:
    text = comment("one\nimport os " + "long " * 60, 8)
    assert all(line.strip().startswith("#") for line in text.splitlines())
    assert max(map(len, text.splitlines()[1:])) <= 100


# The rows


def test_pieces_give_the_tokens_and_labels_again(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    question, answer = "<|im_start|>user\nHi 어댑터<|im_end|>\n", "Yes 🙂<|im_end|>"
    read, learned = tokenizer([question, answer], add_special_tokens=False)["input_ids"]
    whole = Encoded([*read, *learned], [IGNORE_INDEX] * len(read) + learned, 9)
    # Cut within the emoji's bytes: no text has these tokens.
    cut = Encoded(learned[:-2], learned[:-2], 9)
    first, second = as_pieces([whole, cut], tokenizer)
    assert [(piece["learn"], piece.get("text")) for piece in first] == [
        (False, question),
        (True, answer),
    ]
    assert second == [{"learn": True, "ids": learned[:-2]}]


def test_a_model_without_a_chat_template_gets_the_recipes_with_its_adapter(
    make: Make,
    settings: Settings,
    tmp_path: Path,
    tiny_gpt2: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make("data.chat_template=chatml", "training.max_steps=1", model=tiny_gpt2)
    exported(recipe, settings, tmp_path / "script")
    trained_by_script(tmp_path / "script", monkeypatch)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "script" / "adapter")
    assert "<|im_start|>" in tokenizer.chat_template
