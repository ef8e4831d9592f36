"""The command line: what it prints where, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from sorting import LABELS, make_sorter, write_run

from lora_studio.cli.following import follow
from lora_studio.cli.main import main
from lora_studio.recipe import Recipe
from lora_studio.runs import process
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder, create, listed
from lora_studio.runs.history import History

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
pytestmark = [
    pytest.mark.usefixtures("nobody_left"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

ROOT = Path(__file__).parents[1]


class Said(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def cli(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process."""
    monkeypatch.setenv("LORA_STUDIO_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*arguments: str | Path) -> Said:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def recipe(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file with its data beside it."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [
        {"prompt": f"name : {name} | area : {area}", "completion": f"{name} is in the {area} ."}
        for name in ("Cotto", "Zizzi", "Aromi")
        for area in ("riverside", "old town", "harbour", "centre")
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    file = folder / "recipe.yaml"
    file.write_text(
        f"model: {{source: {tiny_llama}}}\nprecision: fp32\n"
        "data: {files: [rows.jsonl], eval_fraction: 0.2}\n"
        "adapter: {r: 4}\ntraining: {max_steps: 3, learning_rate: 0.02}\n",
        encoding="utf-8",
    )
    return file


def run_as_program(home: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lora_studio", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"LORA_STUDIO_HOME": str(home), "HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture(scope="module")
def trained(home: Path, recipe: Path) -> Said:
    """`train`, as a program of its own."""
    program = run_as_program(home, "train", recipe, "--set", "adapter.r=2", "name=from the shell")
    program.communicate(timeout=60)  # two settings behind one --set are a usage error
    assert program.returncode == 2
    program = run_as_program(
        home, "train", recipe, "--set", "adapter.r=2", "--set", "name=from the shell"
    )
    out, err = program.communicate(timeout=300)
    return Said(program.returncode, out, err)


@pytest.mark.slow
def test_train_shows_progress_and_prints_the_run_alone_at_last(home: Path, trained: Said) -> None:
    assert trained.code == 0, trained.err
    assert trained.out.splitlines()[-1] == "from-the-shell-1"
    assert "3/3" in trained.err
    assert "loss" in trained.err
    (folder,) = listed(home / "runs")
    found = folder.read_recipe()
    assert (found.adapter.r, found.training.max_steps) == (2, 3)
    assert Path(found.data.files[0]).is_absolute()


def test_the_last_step_is_drawn_where_a_run_ends_between_two_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = create(tmp_path / "runs", Recipe(name="a run"))
    process.write_identity(folder.process, os.getpid())
    step: dict[str, Any] = {"loss": 1.0, "tokens_per_s": 9.0}
    is_over = History.is_over.fget  # type: ignore[attr-defined]
    with EventWriter(folder.events) as events:
        events.write("started", total_steps=3)
        events.write("step", step=2, **step)

        def ends(history: History) -> bool:
            if events.write("finished"):
                events.write("step", step=3, **step)
            return bool(is_over(history.update()))

        monkeypatch.setattr(History, "is_over", property(ends))
        runs = SimpleNamespace(history=lambda _: History(folder).update())
        follow(cast("Any", SimpleNamespace(runs=runs)), folder.id)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.slow
def test_show_prints_exactly_what_is_promised(cli: Call, home: Path, trained: Said) -> None:
    said = cli("show", "from-the-shell-1", "--json")
    found = json.loads(said.out)
    assert said.code == 0
    assert list(found) == [
        "id", "status", "first_train_loss", "last_train_loss", "eval_losses", "eval_accuracies",
        "eval_f1s", "best_step", "adapter_step", "early_stopped", "steps", "tokens_per_s",
        "seconds", "adapter", "warnings", "resumable_step",
    ]  # fmt: skip
    assert (found["id"], found["status"], found["steps"]) == ("from-the-shell-1", "finished", 3)
    assert isinstance(found["first_train_loss"], float)
    assert isinstance(found["last_train_loss"], float)
    assert all(isinstance(loss, float) for loss in found["eval_losses"])
    assert found["adapter"] == str(home / "runs" / "from-the-shell-1" / "adapter")
    plain = cli("show", "from-the-shell-1")
    assert "status: finished" in plain.out
    assert "eval_accuracies" not in plain.out


@pytest.mark.slow
def test_runs_lists_them_a_line_each(cli: Call, trained: Said) -> None:
    said = cli("runs")
    assert said.code == 0
    assert any(
        line.startswith("from-the-shell-1\tfinished\t3 steps\tloss ")
        for line in said.out.splitlines()
    )


@pytest.mark.slow
def test_ask_prints_both_answers_and_twice_the_same(cli: Call, trained: Said) -> None:
    ask = (
        "ask",
        "from-the-shell-1",
        "Where is Zizzi?",
        "--json",
        "--greedy",
        "--max-new-tokens",
        "6",
    )
    said = cli(*ask)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert list(found) == ["base", "adapter"]
    assert all(isinstance(answer, str) for answer in found.values())
    assert json.loads(cli(*ask).out) == found
    assert cli(*ask[:3], "--max-new-tokens", "4").out.startswith("base: ")


@pytest.fixture
def sorted_run(home: Path, tiny_llama: Path) -> Iterator[str]:
    """A run that sorts texts into classes, written without training."""
    run = write_run(home / "runs" / "sort-1", str(tiny_llama))
    make_sorter(tiny_llama, run.adapter, seed=1)
    yield run.id
    shutil.rmtree(run.path)


def test_show_prints_how_well_a_run_sorts(cli: Call, sorted_run: str) -> None:
    said = cli("show", sorted_run, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["eval_accuracies"], found["eval_f1s"]) == ([0.2, 0.6, 0.9], [0.2, 0.6, 0.9])
    assert "eval_accuracies: [0.2, 0.6, 0.9]" in cli("show", sorted_run).out


def test_ask_gives_a_run_that_sorts_a_text_and_prints_both_sides_classes(
    cli: Call, sorted_run: str
) -> None:
    said = cli("ask", sorted_run, "A coffee shop.", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert list(found) == ["base", "adapter"]
    for shares in found.values():
        assert list(shares) == list(LABELS)
        assert sum(shares.values()) == pytest.approx(1)
    assert found["base"] != found["adapter"]
    likeliest = max(LABELS, key=found["adapter"].__getitem__)
    plain = cli("ask", sorted_run, "A coffee shop.")
    base, adapter = plain.out.splitlines()
    assert base.startswith("base: ")
    assert adapter.startswith(f"adapter: {likeliest} {found['adapter'][likeliest]:.1%}, ")
    assert "untrained" in plain.err


def test_ask_refuses_an_empty_text_for_a_run_that_sorts(cli: Call, sorted_run: str) -> None:
    said = cli("ask", sorted_run, "  ")
    assert (said.code, said.out) == (1, "")
    assert "Write something first" in said.err


@pytest.mark.slow
def test_a_run_that_is_over_cannot_be_stopped(cli: Call, trained: Said) -> None:
    said = cli("stop", "from-the-shell-1")
    assert (said.code, said.out) == (1, "")
    assert "already over" in said.err


@pytest.mark.slow
def test_ctrl_c_stops_a_training_and_keeps_it(home: Path, recipe: Path, cli: Call) -> None:
    program = run_as_program(
        home, "train", recipe, "--set", "training.max_steps=100000", "--set", "name=interrupted",
        "--set", "training.eval_steps=1000",
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not any(
        folder.id == "interrupted-1" and History(folder).update().step
        for folder in listed(home / "runs")
    ):
        assert time.monotonic() < deadline
        assert program.poll() is None, program.communicate()
        time.sleep(0.1)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    assert out.splitlines()[-1] == "interrupted-1"
    assert "Stopping at the next step" in err
    assert "Traceback" not in err
    found = json.loads(cli("show", "interrupted-1", "--json").out)
    assert (found["status"], found["adapter"] is not None) == ("stopped", True)


@pytest.mark.slow
def test_a_run_that_fails_on_its_data_is_the_persons_to_mend(
    home: Path, recipe: Path, cli: Call
) -> None:
    said = cli("train", recipe, "--set", "data.max_length=8")
    assert said.code == 2
    run = said.out.splitlines()[-1]
    assert "no row keeps any of its answer" in said.err
    assert "Traceback" not in said.err
    assert "Traceback" in RunFolder(home / "runs" / run).stdout.read_text(encoding="utf-8")
    shown = cli("show", run)
    assert "no row keeps any of its answer" in shown.out
    assert json.loads(cli("show", run, "--json").out)["status"] == "failed"
    asked = cli("ask", run, "Who?")
    assert asked.code == 1
    assert "has no adapter" in asked.err


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_inspect_prints_exactly_what_is_promised(
    cli: Call, model: str, request: pytest.FixtureRequest
) -> None:
    said = cli("inspect", request.getfixturevalue(model), "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert list(found) == [
        "architecture", "parameters", "layers", "context_length", "chat_template", "modules",
    ]  # fmt: skip
    assert (found["layers"], found["context_length"]) == (2, 512)
    assert found["chat_template"] is (model == "tiny_llama")
    kind = "Linear" if model == "tiny_llama" else "Conv1D"
    for module in found["modules"]:
        assert list(module) == ["name", "count", "d_in", "d_out", "kind"]
        assert (module["count"], module["kind"]) == (2, kind)
    names = {module["name"] for module in found["modules"]}
    assert ("q_proj" in names) if model == "tiny_llama" else (names == {"c_attn", "c_proj", "c_fc"})
    assert kind in cli("inspect", request.getfixturevalue(model)).out


def test_preview_shows_the_tokens_that_are_trained(cli: Call, recipe: Path) -> None:
    said = cli("preview", recipe, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["format"], found["rows"], found["trained_rows"], found["eval_rows"]) == (
        "prompt_completion", 12, 10, 2,
    )  # fmt: skip
    assert (found["skipped"], found["truncated"], found["encoding"]) == ({}, 0, "utf-8")
    assert 0 < found["trained_tokens"] < found["tokens"]
    sample = found["samples"][0]
    assert sample["text"] == "".join(sample["tokens"])
    trained = "".join(text for text, on in zip(sample["tokens"], sample["mask"], strict=True) if on)
    assert "is in the" in trained
    assert "name :" not in trained
    assert "[" in cli("preview", recipe).out


def test_preview_names_the_classes_of_a_classification(cli: Call, recipe: Path) -> None:
    rows = [{"text": f"Row {at}.", "label": "odd" if at % 2 else "even"} for at in range(20)]
    file = recipe.parent / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = ("--set", f"data.files=[{file}]", "--set", "data.format=classification")
    said = cli("preview", recipe, *settings)
    assert said.code == 0, said.err
    assert "class odd: 8 to learn from, 2 held out" in said.out
    assert "--- even\nRow 0." in said.out


def test_preview_adds_up_and_names_what_is_skipped(cli: Call, recipe: Path) -> None:
    rows = [
        {"질문": f"몇 번째예요? {at}", "답변": f"{at}번째예요." if at % 5 else ""}
        for at in range(20)
    ]
    file = recipe.parent / "질문.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = cli("preview", recipe, "--json", "--set", f"data.files=[{file}]")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["format"] == "question_answer"
    assert found["skipped"] == {"data.skip_no_answer": 4}
    assert found["rows"] == 20 == found["trained_rows"] + found["eval_rows"] + 4
    (finding,) = (item for item in found["findings"] if item["check"] == "empty_answers")
    assert (finding["count"], finding["rows"][0]) == (4, ["질문.jsonl", 1])


BAD_FILES = {
    "binary.csv": (bytes(range(256)) * 9, "binary.csv"),
    "deep.json": (b"[" * 100_000, "deep.json"),
    "cut.jsonl": (b'{"prompt": "a", "completion": "b"}\n{"prompt": ', "Line 2 of cut.jsonl"),
    "not.docx": (b"PK\x03\x04 nothing", "not.docx"),
    "not.pdf": (b"%PDF-1.7 nothing", "not.pdf"),
    "bomb.gz": (b"not packed", "bomb.gz"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_data_is_a_sentence_that_names_the_file(cli: Call, recipe: Path, name: str) -> None:
    content, named = BAD_FILES[name]
    file = recipe.parent / name
    file.write_bytes(content)
    said = cli("preview", recipe, "--json", "--set", f"data.files=[{file}]")
    assert (said.code, said.out) == (2, "")
    assert named in said.err
    assert "Traceback" not in said.err


def test_estimate_prints_exactly_what_is_promised(
    cli: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.prediction.calibration.MEASURE_S", 0.05)
    said = cli("estimate", recipe, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert list(found) == [
        "trainable_parameters", "total_parameters", "adapter_bytes", "peak_memory_bytes",
        "parts", "seconds", "optimizer_steps", "fits",
    ]  # fmt: skip
    assert list(found["parts"]) == [
        "weights", "adapters", "gradients", "optimizer", "activations", "logits", "overhead",
    ]  # fmt: skip
    assert found["peak_memory_bytes"] == sum(found["parts"].values())
    assert found["optimizer_steps"] == 3
    assert found["seconds"] >= 0
    assert found["fits"] is True
    wider = json.loads(cli("estimate", recipe, "--json", "--set", "adapter.r=8").out)
    assert wider["trainable_parameters"] == 2 * found["trainable_parameters"]


def test_estimate_says_in_words_what_does_not_fit_and_what_would(
    cli: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.prediction.calibration.MEASURE_S", 0.05)
    said = cli("estimate", recipe)
    assert "peak_memory: " in said.out
    assert "It fits." in said.out
    monkeypatch.setattr("lora_studio.cases.machine.free_memory", lambda: 1000)
    said = cli("estimate", recipe)
    assert "It will not fit." in said.out


@pytest.mark.parametrize("what", ["target", "file"])
def test_estimate_refuses_a_bad_recipe_with_two(cli: Call, recipe: Path, what: str) -> None:
    change = {"target": "adapter.target_modules=[nose_proj]", "file": "data.files=[a.txt, b.txt]"}
    said = cli("estimate", recipe, "--json", "--set", change[what])
    assert (said.code, said.out) == (2, "")
    assert ("nose_proj" if what == "target" else "b.txt") in said.err


# What is wrong


def test_all_problems_of_a_recipe_are_listed_at_once(cli: Call, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("adapter: {r: 0, alpha: 3}\nprecision: fp23\n", encoding="utf-8")
    said = cli("train", file, "--set", "seed=1")
    assert (said.code, said.out) == (2, "")
    assert [line.split(" ")[0] for line in said.err.splitlines()] == [
        "The", "precision", "adapter.alpha", "adapter.r",
    ]  # fmt: skip


def test_a_recipe_that_cannot_work_here_is_refused_before_a_run_is_made(
    cli: Call, home: Path, recipe: Path, tiny_llama: Path
) -> None:
    before = len(listed(home / "runs"))
    assert cli("inspect", tiny_llama).code == 0
    said = cli(
        "train", recipe, "--set", "data.files=[a.txt, b.txt]",
        "--set", "adapter.target_modules=[nose_proj]",
    )  # fmt: skip
    assert (said.code, said.out) == (2, "")
    assert said.err.count("does not exist") == 2
    assert str(recipe.parent / "a.txt") in said.err
    assert "nose_proj" in said.err
    assert "q_proj" in said.err
    assert len(listed(home / "runs")) == before


@pytest.mark.parametrize("command", ["train", "preview", "estimate"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no recipe file"),
        (b"a: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"{}", "nothing to learn from"),
        ("folder", "cannot be read"),
    ],
)
def test_a_recipe_file_that_cannot_be_used_is_named(
    cli: Call, tmp_path: Path, command: str, content: bytes | str | None, words: str
) -> None:
    file = tmp_path / "recipe.yaml"
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    said = cli(command, file)
    assert (said.code, said.out) == (2, "")
    assert words in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["train"],
        ["ask", "x"],
        ["ask", "x", "q", "--max-new-tokens", "0"],
        ["ask", "x", "q", "--max-new-tokens", "many"],
        ["show", "x", "--yaml"],
    ],
)
def test_wrong_usage_ends_with_two(cli: Call, arguments: Sequence[str]) -> None:
    said = cli(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "../x"], "no run called ../x"),
        (["stop", "../x"], "no run called ../x"),
        (["ask", "../x", "q"], "no adapter called “../x”"),
    ],
)
def test_an_unknown_run_is_said(cli: Call, arguments: list[str], told: str) -> None:
    said = cli(*arguments)
    assert (said.code, said.out) == (1, "")
    assert told in said.err


def test_a_model_that_cannot_be_used_ends_with_one(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for model, words in (
        (tmp_path / "empty", "config.json"),
        ("owner/name", "cannot be reached"),
        ("x" * 300, "neither a folder"),
        ("~nobody-here/x", "neither a folder"),
    ):
        said = cli("inspect", model, "--json")
        assert (said.code, said.out) == (1, "")
        assert words in said.err


def test_a_wrong_variable_ends_with_two(cli: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_STUDIO_MAX_UPLOAD_MB", "lots")
    said = cli("runs")
    assert said.code == 2
    assert "LORA_STUDIO_MAX_UPLOAD_MB is “lots”" in said.err


def test_a_model_folder_beside_the_recipe_is_found(
    cli: Call, recipe: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(tiny_llama)
    file = tmp_path / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8").replace(str(tiny_llama), "model")
    file.write_text(text.replace("rows.jsonl", str(recipe.parent / "rows.jsonl")), "utf-8")
    assert cli("preview", file, "--json").code == 0


def test_no_runs_is_said_in_words(
    cli: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path))
    said = cli("runs")
    assert (said.code, said.out) == (0, "")
    assert "No runs yet" in said.err


@pytest.mark.parametrize(
    "word", ["serve", "train", "runs", "show", "stop", "ask", "inspect", "estimate"]
)
def test_help_names_every_command(cli: Call, word: str) -> None:
    said = cli("--help")
    assert said.code == 0
    assert f"    {word} " in said.out
