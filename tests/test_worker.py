"""The real worker process, started as the page and the command line start it."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from workers import finish, open_studio, until

from lora_studio.cases.machine import Machine
from lora_studio.chat.request import Pane, Sampling
from lora_studio.errors import RecipeError, RunError
from lora_studio.recipe import Recipe
from lora_studio.runs import process
from lora_studio.runs.events import read_events
from lora_studio.runs.folder import create
from lora_studio.runs.history import History
from lora_studio.training import worker

pytestmark = [
    pytest.mark.usefixtures("nobody_left"),
    pytest.mark.slow,
    # PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

PLACES = ["Cotto", "The Mill", "Zizzi", "Aromi", "The Vaults"]
AREAS = ["riverside", "city centre", "old town", "harbour"]
TOKEN = "hf_nobodymayreadthis"


@pytest.fixture(scope="module")
def recipe(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Six steps over twenty pairs."""
    rows = [
        {"prompt": f"name : {place} | area : {area}", "completion": f"{place} is in the {area} ."}
        for place in PLACES
        for area in AREAS
    ]
    file = tmp_path_factory.mktemp("data") / "places.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tree = {
        "model": {"source": str(tiny_llama)},
        "precision": "fp32",
        "data": {"files": [str(file)], "eval_fraction": 0.2},
        "adapter": {"r": 4},
        "training": {"max_steps": 6, "eval_steps": 3, "learning_rate": 0.02},
    }
    return Recipe.from_dict(tree)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def finished(home: Path, recipe: Recipe) -> History:
    """A run that went its whole way, seen by a second studio that was opened meanwhile."""
    first = open_studio(home, hub_token=f"{TOKEN}1")
    run = first.training.start(recipe, token=f"{TOKEN}2")
    pid = process.pid_of(first.runs.history(run).folder.process)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that it is not over before all have looked
    try:
        with pytest.raises(RunError, match=f"The run {run} is training"):
            first.training.start(recipe)
        restarted = open_studio(home)
        active = restarted.runs.active()
        assert active is not None
        assert active.folder.id == run
        with pytest.raises(RunError, match=f"The run {run} is training"):
            restarted.training.start(recipe)
    finally:
        os.kill(pid, signal.SIGCONT)
    return finish(restarted, run)


@pytest.fixture
def endless(recipe: Recipe) -> Recipe:
    """A run that ends only when it is told to."""
    training = replace(recipe.training, max_steps=100_000, eval_steps=1000)
    return replace(recipe, training=training, name="endless", prompts=("Who?",))


def test_events_come_in_their_order(finished: History) -> None:
    events = read_events(finished.folder.events)[0]
    log = finished.folder.stdout.read_text(encoding="utf-8")
    assert finished.status == "finished", log
    kinds = [event["event"] for event in events]
    stages = list(dict.fromkeys(event["stage"] for event in events if event["event"] == "stage"))
    assert stages == [
        "start", "tokenize", "load", "train", "evaluate", "sample", "snapshot", "save",
    ]  # fmt: skip
    assert kinds[-2:] == ["saved", "finished"]
    # What it starts from is measured after the first step, with the adapter switched off.
    assert kinds.index("started") < kinds.index("step") < kinds.index("eval")
    assert kinds.index("eval") < kinds.index("sample")
    assert [event["step"] for event in finished.steps] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in finished.evals] == [0, 3, 6]
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert "Traceback" not in log


def test_the_adapter_folder_is_complete(finished: History, recipe: Recipe) -> None:
    adapter = finished.folder.adapter
    names = {file.name for file in adapter.iterdir()}
    assert {
        "adapter_model.safetensors", "adapter_config.json", "README.md", "recipe.yaml",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    } <= names  # fmt: skip
    card = (adapter / "README.md").read_text(encoding="utf-8")
    assert f"base_model: {recipe.model.source}" in card
    assert f"{finished.steps[-1]['loss']:.4f}" in card
    assert f"{finished.evals[-1]['loss']:.4f}" in card
    assert Recipe.from_yaml((adapter / "recipe.yaml").read_text(encoding="utf-8")) == recipe
    assert not list(finished.folder.path.glob("*.partial"))
    assert not finished.folder.events.with_suffix(".reserve").exists()


def test_the_summary_tells_how_it_went(finished: History) -> None:
    summary = finished.summary()
    assert summary["first_train_loss"] == finished.steps[0]["loss"]
    assert summary["last_train_loss"] < summary["first_train_loss"]
    assert summary["eval_losses"] == [event["loss"] for event in finished.evals]
    assert (summary["status"], summary["steps"]) == ("finished", 6)
    assert summary["tokens_per_s"] > 0
    assert summary["adapter"] == str(finished.folder.adapter)


def test_data_and_its_origin_are_kept_with_the_run(finished: History) -> None:
    report = json.loads((finished.folder.data / "report.json").read_text(encoding="utf-8"))
    assert (report["trained_rows"], report["eval_rows"]) == (16, 4)
    assert (finished.folder.data / "train.arrow").is_file()
    assert (finished.folder.data / "evaluation.arrow").is_file()


def test_the_hub_token_is_neither_in_the_run_folder_nor_in_a_log(
    home: Path, finished: History
) -> None:
    written = [file for file in home.rglob("*") if file.is_file()]
    assert finished.folder.stdout in written
    assert len(written) > 10
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]


def test_a_new_studio_finds_the_run_and_may_not_stop_it_again(
    home: Path, finished: History
) -> None:
    studio = open_studio(home)
    assert finished.folder.id in [history.folder.id for history in studio.runs.all()]
    assert studio.runs.active() is None
    with pytest.raises(RunError, match="already over"):
        studio.training.stop(finished.folder.id, keep=True)


def test_base_and_adapter_answer_from_a_run(home: Path, finished: History) -> None:
    studio = open_studio(home)
    question = [{"role": "user", "content": "name : Zizzi | area : harbour"}]
    panes = [
        Pane(adapter=None, messages=question),  # type: ignore[arg-type]
        Pane(adapter=finished.folder.id, messages=question),  # type: ignore[arg-type]
    ]
    events = list(studio.answers.ask(finished.folder.id, panes, Sampling(max_new_tokens=8)))
    assert {event["pane"] for event in events if event.get("done")} == {0, 1}
    assert studio.runs.active() is None
    assert Machine.open(studio.settings, isolated=False).accelerator.holder() is None
    zipped = studio.adapters.archive(finished.folder.id, home / "zips")
    assert zipped.stat().st_size > 1000


def test_a_stop_during_training_keeps_what_was_learned(home: Path, endless: Recipe) -> None:
    studio = open_studio(home)
    run = studio.training.start(endless)
    history = studio.runs.history(run)
    until(history, holds=lambda found: found.step >= 2)
    asked = time.monotonic()
    studio.training.stop(run, keep=True)
    finish(studio, run)
    assert time.monotonic() - asked < 60
    assert history.status == "stopped"
    assert history.ending["kept"] is True
    assert history.cause is None
    assert history.summary()["adapter"] == str(history.folder.adapter)


def test_a_stop_while_preparing_ends_it_and_says_that_nothing_was_kept(
    home: Path, endless: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It prepares for so long that a machine may stand still before it is asked to stop.
    monkeypatch.setattr(process, "WORKER", "slow_worker")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("SLOW", "start:sleep")
    studio = open_studio(home)
    run = studio.training.start(endless)
    history = studio.runs.history(run)
    until(history, holds=lambda found: found.stage)
    studio.training.stop(run, keep=True)
    finish(studio, run)
    assert history.status == "stopped"
    assert history.step == 0
    assert history.folder.newest_adapter() is None
    assert "nothing to keep" in str(history.cause)
    # The next one can start at once.
    again = studio.training.start(endless)
    studio.training.stop(again, keep=False)
    assert finish(studio, again).status == "stopped"
    assert studio.runs.history(again).cause is None


def test_a_killed_worker_is_lost_and_its_last_checkpoint_answers(
    home: Path, endless: Recipe
) -> None:
    recipe = replace(endless, training=replace(endless.training, eval_steps=2))
    studio = open_studio(home)
    run = studio.training.start(recipe)
    history = studio.runs.history(run)
    until(history, holds=lambda found: found.folder.checkpoint_steps())
    pid = process.pid_of(history.folder.process)
    assert pid is not None
    os.killpg(pid, signal.SIGKILL)
    until(history, holds=lambda found: found.is_over)
    assert history.status == "lost"
    step = history.folder.checkpoint_steps()[-1]
    assert f"step {step}" in str(history.cause)
    panes = [Pane(adapter=name, text="The quick") for name in (None, run)]
    events = list(studio.answers.ask(run, panes, Sampling(max_new_tokens=4)))
    assert [event["pane"] for event in events if event.get("done") is True] == [0, 1]
    with pytest.raises(RunError, match="already over"):
        studio.training.stop(run, keep=False)


@pytest.mark.usefixtures("signals_put_back")
@pytest.mark.parametrize("why", ["few", "short"])
def test_a_run_that_cannot_work_fails_with_a_sentence(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = tmp_path / "few.jsonl"
    rows = [{"prompt": f"Question {at}", "completion": "An answer"} for at in range(3)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    wrong, said = {
        "few": (
            recipe.with_files([str(file)]),
            "There are 2 rows to learn from, fewer than one batch of 4",
        ),
        "short": (
            recipe.changed(["data.max_length=8"]),
            "At a maximum length of 8 tokens no row keeps any of its answer",
        ),
    }[why]
    folder = create(tmp_path / "home" / "runs", wrong)
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "home"))
    assert worker.main([str(folder.path)]) == 1
    history = History(folder).update()
    assert history.status == "failed"
    assert said in str(history.cause)
    assert "Traceback" not in str(history.cause)
    assert "Traceback" in caplog.text
    assert folder.newest_adapter() is None


def test_what_can_be_seen_at_once_is_refused_at_once_and_all_of_it(
    home: Path, finished: History, recipe: Recipe
) -> None:
    studio = open_studio(home)
    list(studio.models.inspect(recipe.model.source))
    assert studio.models.known(recipe.model.source) is not None
    before = len(studio.runs.all())
    wrong = replace(
        recipe.with_files(["/nowhere/a.txt", "/nowhere/b.txt"]),
        precision="fp16",
        adapter=replace(recipe.adapter, target_modules=("q_proj", "nose_proj")),
    )
    with pytest.raises(RecipeError) as caught:
        studio.training.start(wrong)
    keys = [problem.key for problem in caught.value.problems]
    missing = ["run.file_missing", "run.file_missing"]
    assert keys[:2] == missing
    assert keys[-1] == "model.unknown_targets"
    assert len(studio.runs.all()) == before


def test_a_model_folder_is_known_until_it_changes(
    home: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    import shutil

    studio = open_studio(home)
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    assert studio.models.known(str(folder)) is None
    (found,) = [
        event["result"] for event in studio.models.inspect(str(folder)) if "result" in event
    ]
    assert studio.models.known(str(folder)) == found
    os.utime(folder / "config.json", (1, 1))
    assert studio.models.known(str(folder)) is None
