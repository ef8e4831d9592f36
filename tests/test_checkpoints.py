"""A run that was broken off goes on to the very same end, and only from what is whole."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainings import work
from transformers import TrainerCallback
from workers import open_studio, until

from lora_studio.cli.main import main
from lora_studio.errors import RunError
from lora_studio.recipe import Recipe
from lora_studio.runs import process
from lora_studio.runs.checkpoints import (
    MANIFEST,
    drop_after,
    drop_old,
    is_whole,
    newest_known,
    newest_whole,
    seal,
)
from lora_studio.runs.events import EventWriter, read_events
from lora_studio.runs.folder import WEIGHTS, RunFolder, create
from lora_studio.runs.history import History
from lora_studio.settings import Settings
from lora_studio.training.resumable import TRAINED
from lora_studio.training.session import Session
from lora_studio.ui.language import Voice
from lora_studio.ui.live import news

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

CASES = {
    "plain": ("tiny_llama", ()),
    "of many methods": (
        "tiny_llama",
        ("training.loraplus_lr_ratio=16", "adapter.use_rslora=true", "adapter.use_dora=true"),
    ),
    "pissa": ("tiny_gpt2", ("adapter.init_lora_weights=pissa", "adapter.rank_pattern={c_attn: 2}")),
    "eva": ("tiny_llama", ("adapter.init_lora_weights=eva",)),
    "loftq": ("tiny_llama", ("adapter.init_lora_weights=loftq", "precision=nf4")),
    "with whole layers": ("tiny_gpt2", ("adapter.bias=all", "adapter.modules_to_save=[wte]")),
    "that sorts": (
        "tiny_llama",
        ("data.format=classification", "data.columns={text: question, label: label}"),
    ),
}


class Training:
    """A training built in this process, from its beginning or from a checkpoint."""

    def __init__(self, folder: RunFolder, settings: Settings, start: int | None = None) -> None:
        self.folder = folder
        self.events = EventWriter(folder.events)
        if start is not None:
            self.events.write("resumed", step=start)
        recipe = folder.read_recipe()
        self.session = Session(recipe, settings, lambda *_: None, start=start)
        self.reporter = self.session.build(folder, self.events)
        self.reporter._questions = {}  # answering takes longer than learning here
        self.trainer = self.session._trainer

    @property
    def history(self) -> History:
        return History(self.folder).update()

    def train(self) -> None:
        self.session.train()
        if self.folder.stop_wish() is not None:
            self.session.save_stopped()

    def adapter(self) -> bytes:
        return (self.session.save(self.folder) / WEIGHTS).read_bytes()

    def measures(self, losses: Sequence[float]) -> None:
        """Have evaluations find these losses, one after the other."""
        measure, found = self.trainer.evaluation_loop, iter(losses)

        def loop(*args: Any, **kwargs: Any) -> Any:
            output = measure(*args, **kwargs)
            output.metrics["eval_loss"] = next(found)
            return output

        self.trainer.evaluation_loop = loop


class Asks(TrainerCallback):
    """Somebody who asks a run to pause: after a step, or within the evaluation after it."""

    def __init__(self, folder: RunFolder, step: int, *, evaluating: bool = False) -> None:
        self._folder = folder
        self._step = step
        self._evaluating = evaluating

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ask(state, here=not self._evaluating)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ask(state, here=self._evaluating)

    def _ask(self, state: Any, *, here: bool) -> None:
        if here and state.global_step == self._step:
            process.request_stop(self._folder, "pause")


Make = Callable[..., Training]
Resume = Callable[[Training], Training]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twenty texts, some longer, each with a question, an answer and a label."""
    places = ["Cotto", "The Mill", "Zizzi by the old harbour", "Aromi", "The Vaults"]
    areas = ["riverside", "city centre", "old town", "harbour"]
    entries = [
        {"question": f"{place} {area}", "answer": f"{place} is in the {area}", "label": area}
        for place in places
        for area in areas
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return file


@pytest.fixture
def make(
    settings: Settings, rows: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Make]:
    """Build a run of seven steps, four to an epoch; settings are given as on the command line."""
    made: list[Training] = []

    def build(*changes: str, model: str = "tiny_llama") -> Training:
        base = {
            "name": "test",
            "model": {"source": str(request.getfixturevalue(model))},
            "precision": "fp32",
            "data": {"files": [str(rows)], "eval_fraction": 0.2},
            "adapter": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
            "training": {
                "max_steps": 7, "learning_rate": 0.01, "warmup_ratio": 0, "eval_steps": 2,
                "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
            },
        }  # fmt: skip
        recipe = Recipe.from_dict(base).changed(changes)
        made.append(Training(create(tmp_path / "runs", recipe), settings))
        return made[-1]

    yield build
    for training in made:
        training.events.close()


@pytest.fixture
def resume(settings: Settings) -> Iterator[Resume]:
    """Build the same run anew, as another process would, from its newest whole checkpoint."""
    made: list[Training] = []

    def build(training: Training) -> Training:
        training.folder.stop.unlink(missing_ok=True)
        step = newest_whole(training.folder)
        assert step is not None
        drop_after(training.folder, step)
        made.append(Training(training.folder, settings, step))
        return made[-1]

    yield build
    for training in made:
        training.events.close()


def curve(history: History) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    steps, evals = (
        [(e["step"], e["loss"]) for e in part] for part in (history.steps, history.evals)
    )
    return steps, evals


def pause(training: Training, step: int, **how: Any) -> None:
    training.trainer.callback_handler.callbacks.insert(0, Asks(training.folder, step, **how))


# Going on


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_to_the_same_bits(make: Make, resume: Resume, case: str) -> None:
    """Dropout, two passes a step, and a stop in the middle of an epoch."""
    model, changes = CASES[case]
    whole = make(*changes, model=model)
    whole.train()
    expected = whole.adapter()
    broken = make(*changes, model=model)
    pause(broken, 3)
    broken.train()
    assert [step for step, _ in curve(broken.history)[0]] == [1, 2, 3]
    resumed = resume(broken)
    torch.manual_seed(999)  # whatever another process has drawn
    resumed.train()
    assert curve(resumed.history) == curve(whole.history)
    assert len(resumed.history.steps) == 7
    assert resumed.adapter() == expected
    before, after = (History(one.folder).update().steps[-1] for one in (whole, resumed))
    assert after["tokens_seen"] == before["tokens_seen"]


def test_a_pause_within_the_first_measurement_is_made_up_for(make: Make, resume: Resume) -> None:
    whole = make()
    whole.train()
    broken = make()
    pause(broken, 0, evaluating=True)
    broken.train()
    assert curve(broken.history)[1] == []
    assert broken.folder.checkpoint_steps() == [1]
    resumed = resume(broken)
    resumed.train()
    assert curve(resumed.history) == curve(whole.history)
    assert resumed.adapter() == whole.adapter()


@pytest.mark.parametrize(
    ("step", "changes"),
    [(4, ()), (5, ()), (5, ("training.packing=false",))],
    ids=["end", "later", "later, by length"],
)
def test_an_epochs_end_and_a_later_epoch_are_as_good_a_place(
    make: Make, resume: Resume, step: int, changes: tuple[str, ...]
) -> None:
    whole = make(*changes)
    whole.train()
    broken = make(*changes)
    pause(broken, step)
    broken.train()
    resumed = resume(broken)
    resumed.train()
    assert curve(resumed.history) == curve(whole.history)
    assert resumed.adapter() == whole.adapter()


def test_a_pause_within_an_evaluation_loses_neither_the_step_nor_the_evaluation(
    make: Make, resume: Resume
) -> None:
    whole = make()
    whole.train()
    broken = make()
    pause(broken, 4, evaluating=True)
    broken.train()
    assert [event["step"] for event in broken.history.evals] == [0, 2]
    assert newest_whole(broken.folder) == 4
    resumed = resume(broken)
    resumed.train()
    assert curve(resumed.history) == curve(whole.history)
    assert resumed.adapter() == whole.adapter()


def test_a_run_may_be_broken_off_again_and_again(make: Make, resume: Resume) -> None:
    whole = make()
    whole.train()
    broken = make()
    for step in (1, 2, 6):
        pause(broken, step)
        broken.train()
        broken = resume(broken)
    broken.train()
    assert curve(broken.history) == curve(whole.history)
    assert broken.adapter() == whole.adapter()
    assert broken.history.resumes == 3


def test_a_run_that_ended_before_its_adapter_was_written_only_writes_it(
    make: Make, resume: Resume
) -> None:
    whole = make()
    whole.train()
    expected = whole.adapter()
    resumed = resume(whole)
    resumed.train()
    assert resumed.session.steps == 7
    assert len(resumed.history.steps) == 7
    assert resumed.adapter() == expected


def test_rows_that_changed_since_are_refused(make: Make, resume: Resume, rows: Path) -> None:
    broken = make("training.max_steps=2")
    broken.train()
    text = rows.read_text(encoding="utf-8")
    rows.write_text(text.replace("Aromi", "Amori"), encoding="utf-8")
    with pytest.raises(RunError, match="not what it was when it began"):
        resume(broken)
    rows.write_text(text, encoding="utf-8")
    resume(broken)


def test_a_checkpoint_of_another_model_is_refused(make: Make, resume: Resume) -> None:
    broken = make()
    pause(broken, 1)
    broken.train()
    place = broken.folder.checkpoint(1)
    other = make("adapter.r=2")
    with pytest.raises(RunError, match="lora_A"):
        other.trainer.read_weights(place)
    with pytest.raises(RunError, match="not what it was"):
        make("adapter.target_modules=[q_proj]").trainer.read_weights(place)


def test_a_full_disk_leaves_the_checkpoints_that_were_there(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make()
    write = run.trainer._save_rng_state

    def full(folder: str) -> None:
        if run.trainer.state.global_step > 2:
            raise OSError(28, "No space left on device")
        write(folder)

    monkeypatch.setattr(run.trainer, "_save_rng_state", full)
    with pytest.raises(OSError, match="No space"):
        run.train()
    assert [place.name for place in run.folder.checkpoints.iterdir()] == ["checkpoint-2"]
    assert newest_whole(run.folder) == 2


# The best


def test_the_newest_and_the_best_are_kept_and_the_adapter_is_the_best(make: Make) -> None:
    run = make("training.save_total_limit=1")
    run.measures([5.0, 3.0, 1.0, 2.0, 4.0])
    run.train()
    assert run.folder.checkpoint_steps() == [4, 7]
    best = (run.folder.checkpoint(4) / WEIGHTS).read_bytes()
    assert run.adapter() == best
    assert run.session.best_step == 4
    assert "4 of 7, where the held-out loss was lowest" in run.folder.adapter.joinpath(
        "README.md"
    ).read_text(encoding="utf-8")
    written = [e for e in read_events(run.folder.events)[0] if e["event"] == "checkpoint"]
    assert [(e["step"], e["best"]) for e in written] == [
        (2, True),
        (4, True),
        (6, False),
        (7, False),
    ]
    assert all(e["bytes"] > 10_000 for e in written)
    assert run.history.best is not None
    assert run.history.best["step"] == 4


def test_a_checkpoint_that_the_disk_has_no_room_to_seal_gives_its_own_back(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = make()
    monkeypatch.setattr("lora_studio.training.checkpoints.seal", full)
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert list(run.folder.checkpoints.iterdir()) == []


def test_the_last_adapter_is_taken_where_that_is_wanted(make: Make) -> None:
    run = make("training.load_best_model_at_end=false")
    run.measures([5.0, 3.0, 1.0, 2.0, 4.0])
    run.train()
    assert run.adapter() == (run.folder.checkpoint(7) / WEIGHTS).read_bytes()
    assert run.session.best_step is None


def test_what_was_learned_after_the_best_and_not_measured_yet_is_kept(make: Make) -> None:
    run = make()
    run.measures([5.0, 3.0, 1.0])
    pause(run, 5)
    run.train()
    assert run.adapter() == (run.folder.checkpoint(5) / WEIGHTS).read_bytes()


def test_a_best_checkpoint_that_is_damaged_is_not_taken(make: Make) -> None:
    run = make()
    run.measures([5.0, 3.0, 1.0, 2.0, 4.0])
    run.train()
    (run.folder.checkpoint(4) / TRAINED).write_bytes(b"")
    assert run.adapter() == (run.folder.checkpoint(7) / WEIGHTS).read_bytes()


def test_a_new_best_between_two_checkpoints_is_written_too(make: Make) -> None:
    run = make("training.save_steps=3", "training.save_total_limit=9")
    run.measures([5.0, 4.0, 3.0, 3.5, 4.0])
    run.train()
    assert run.folder.checkpoint_steps() == [2, 3, 4, 6, 7]


def test_a_run_stops_after_so_many_measurements_without_a_lower_loss(make: Make) -> None:
    run = make("training.early_stopping_patience=2", "training.max_steps=50")
    run.measures([5.0, 2.0, 3.0, 1.0, 1.5, 1.0, 0.5])
    run.train()
    assert run.session.steps == 10
    assert (run.history.early["step"], run.history.early["best_step"]) == (10, 6)
    assert run.history.summary()["early_stopped"] == 10
    assert run.adapter() == (run.folder.checkpoint(6) / WEIGHTS).read_bytes()
    card = (run.folder.adapter / "README.md").read_text(encoding="utf-8")
    assert "6 of 10, where the held-out loss was lowest; stopped early of 50" in card


def test_patience_lasts_over_a_pause(make: Make, resume: Resume) -> None:
    run = make("training.early_stopping_patience=2", "training.max_steps=50")
    run.measures([5.0, 1.0, 2.0])
    pause(run, 5)
    run.train()
    resumed = resume(run)
    resumed.measures([3.0])
    resumed.train()
    assert resumed.history.early["step"] == 6


def test_a_model_that_reads_its_weights_has_them_to_the_last_bit(make: Make) -> None:
    run = make("training.max_steps=2")
    run.train()
    stored = load_file(run.folder.checkpoint(2) / TRAINED)
    trained = {name for name, one in run.trainer.model.named_parameters() if one.requires_grad}
    assert stored.keys() == trained
    with torch.no_grad():
        for name, one in run.trainer.model.named_parameters():
            if name in trained:
                one.add_(1)
    run.trainer.read_weights(run.folder.checkpoint(2))
    for name, one in run.trainer.model.named_parameters():
        assert name not in trained or torch.equal(one, stored[name])


# What is whole


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return create(tmp_path / "runs", Recipe(name="a run"))


def written(folder: RunFolder, step: int) -> Path:
    place = folder.checkpoint(step)
    place.mkdir(parents=True)
    for name in (WEIGHTS, "trainer_state.json", "optimizer.pt"):
        (place / name).write_bytes(f"{name} {step}".encode())
    initial = folder.checkpoints / "initial"
    initial.mkdir(exist_ok=True)
    (initial / WEIGHTS).write_bytes(b"initial")
    assert seal(place, needs=[initial / WEIGHTS]) > 50
    return place


def test_a_checkpoint_is_whole_when_every_file_is_as_it_was_written(folder: RunFolder) -> None:
    place = written(folder, 10)
    assert is_whole(place)
    moments = itertools.count(1)

    def write(file: Path, content: bytes) -> None:
        """Write at another moment than ever before: some kernels tell them apart by 10 ms."""
        file.write_bytes(content)
        now = next(moments)
        os.utime(file, ns=(now, now))

    files = [place / "optimizer.pt", place / WEIGHTS, folder.checkpoints / "initial" / WEIGHTS]
    for file in files:
        content = file.read_bytes()
        for damaged in (content[:-1] + b"?", content[:-1], b""):
            write(file, damaged)
            assert not is_whole(place), file
            assert newest_known(folder) is None
        file.unlink()
        assert not is_whole(place), file
        write(file, content)
        assert is_whole(place)
        assert newest_known(folder) == 10


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"files": {}}', '{"files": {"a": 1}}'])
def test_a_manifest_that_says_nothing_makes_nothing_whole(folder: RunFolder, manifest: str) -> None:
    place = written(folder, 10)
    (place / MANIFEST).write_text(manifest, encoding="utf-8")
    assert not is_whole(place)
    (place / MANIFEST).unlink()
    assert not is_whole(place)
    assert folder.checkpoint_steps() == [10], "of an earlier version: an adapter, and no more"


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(folder: RunFolder) -> None:
    for step in (8, 9, 10):
        written(folder, step)
    (folder.checkpoint(10) / "optimizer.pt").write_bytes(b"?")
    assert newest_whole(folder) == newest_known(folder) == 9
    half = folder.checkpoints / "partial-11"
    half.mkdir()
    drop_after(folder, 9)
    assert folder.checkpoint_steps() == [8, 9]
    assert not half.exists()
    assert (folder.checkpoints / "initial" / WEIGHTS).exists()


def test_of_old_checkpoints_the_best_stays(folder: RunFolder) -> None:
    for step in (2, 4, 10, 12):
        written(folder, step)
    drop_old(folder, keep=2, best=2)
    assert folder.checkpoint_steps() == [2, 10, 12]
    drop_old(folder, keep=1, best=None)
    assert folder.checkpoint_steps() == [12]
    assert not list(folder.checkpoints.glob("partial-*"))


# What the page reads


def tell(folder: RunFolder, *events: tuple[str, dict[str, Any]]) -> None:
    with EventWriter(folder.events) as out:
        for kind, fields in events:
            out.write(kind, **fields)


def test_a_run_that_goes_on_forgets_what_came_after_its_checkpoint(folder: RunFolder) -> None:
    steps = [("step", {"step": at, "loss": 5.0 - at, "tokens_per_s": 1.0}) for at in (1, 2, 3)]
    tell(
        folder,
        *steps,
        ("eval", {"step": 2, "loss": 3.0}),
        ("eval", {"step": 3, "loss": 2.0}),
        ("sample", {"step": 3, "prompt": "a", "answer": "b"}),
        ("early_stopped", {"step": 3, "best_step": 2}),
        ("stage", {"stage": "save"}),
        ("stopped", {"kept": True}),
    )
    history = History(folder).update()
    assert history.status == "stopped"
    tell(folder, ("resumed", {"step": 2}))
    history.update()
    assert [event["step"] for event in history.steps] == [1, 2]
    assert [event["step"] for event in history.evals] == [2]
    assert history.samples == []
    assert (history.ending, history.early, history.stage, history.resumes) == ({}, {}, {}, 1)
    assert history.status != "stopped"


def test_an_ended_run_prepares_again_before_its_new_worker_says_a_word(folder: RunFolder) -> None:
    tell(
        folder, ("stage", {"stage": "train"}), ("failed", {"cause": RunError("run.lost").to_dict()})
    )
    process.write_identity(folder.process, os.getpid())
    history = History(folder).update()
    assert history.status == "failed"
    size = folder.events.stat().st_size
    process.write_identity(folder.process, os.getpid(), written=size)
    assert history.status == "preparing"
    assert not history.is_over
    assert history.resumable is None
    tell(folder, ("stopped", {"kept": False}))
    assert history.update().status == "stopped"
    process.write_identity(folder.process, 2**22 - 3, written=folder.events.stat().st_size)
    assert history.update().status == "lost", "the new worker died without a word"


def test_only_a_run_that_was_broken_off_is_offered_to_go_on(folder: RunFolder) -> None:
    written(folder, 10)
    tell(folder, ("step", {"step": 10, "loss": 1.0}), ("stopped", {"kept": False, "paused": True}))
    history = History(folder).update()
    assert history.resumable == 10
    process.request_stop(folder, "discard")
    assert history.resumable is None
    folder.stop.unlink()
    (folder.checkpoint(10) / WEIGHTS).write_bytes(b"?")
    assert history.resumable is None
    written(folder, 9)
    assert history.resumable == 9
    tell(folder, ("finished", {}))
    assert history.update().resumable is None


def test_a_line_torn_by_a_crash_does_not_swallow_the_next_workers_first(folder: RunFolder) -> None:
    tell(folder, ("step", {"step": 1}))
    with folder.events.open("ab") as out:
        out.write(b'{"time": 1, "event": "st')
    history = History(folder).update()
    tell(folder, ("resumed", {"step": 1}))
    assert [event["event"] for event in read_events(folder.events)[0]] == ["step", "resumed"]
    assert history.update().resumes == 1


def test_the_page_tells_of_the_best_of_an_early_end_and_of_what_can_go_on(
    folder: RunFolder,
) -> None:
    losses = [(0, 3.0), (4, 1.0), (8, 2.0)]
    evals = [
        ("eval", {"step": step, "loss": loss, "perplexity": math.exp(loss)})
        for step, loss in losses
    ]
    step = {"loss": 1.0, "tokens_per_s": 1.0, "memory_bytes": 9, "seconds_left": 1.0}
    tell(folder, ("started", {"total_steps": 20}), *evals, ("step", step | {"step": 8}))
    written(folder, 8)
    process.write_identity(folder.process, 2**22 - 3)
    history = History(folder).update()
    told = news(history, [0, 0, 0], Voice(None))
    assert told["state"] == "Lost · It can go on from step 8."
    assert (told["best"], told["early"], told["resumes"]) == ([4, 1.0], None, 0)
    assert ["best held-out loss", "1.000 · step 4"] in told["tiles"]
    tell(
        folder,
        ("resumed", {"step": 8}),
        ("early_stopped", {"step": 8, "best_step": 4}),
        ("saved", {"adapter": "adapter", "bytes": 1, "best_step": 4}),
        ("finished", {}),
    )
    told = news(history.update(), [0, 0, 0], Voice(None))
    assert told["state"] == (
        "Finished. Held-out perplexity 20.1 → 2.72. It stopped early, at step 8, since the "
        "held-out loss fell no further. The adapter is the one of step 4, where the held-out loss "
        "was lowest."
    )
    assert (told["early"], told["resumes"]) == (8, 1)
    assert history.summary()["adapter_step"] == 4


# Through the studio


def test_what_cannot_go_on_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = open_studio(tmp_path)
    folder = create(studio.settings.runs, Recipe(name="a run"))
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path))
    with pytest.raises(RunError, match="still going"):
        studio.training.resume("a-run-1")
    tell(folder, ("stopped", {"kept": True}))
    assert main(["resume", "a-run-1"]) == 1
    assert "no checkpoint to go on from" in capsys.readouterr().err
    written(folder, 3)
    assert main(["show", "a-run-1"]) == 0
    assert "To go on from step 3: resume a-run-1" in capsys.readouterr().out
    tell(folder, ("finished", {}))
    with pytest.raises(RunError, match="already over"):
        studio.training.resume("a-run-1")
    with pytest.raises(RunError, match="no run called"):
        studio.training.resume("../a-run-1")


@pytest.mark.slow
@pytest.mark.usefixtures("nobody_left", "signals_put_back")
def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint_to_the_same_end(
    tmp_path: Path, tiny_llama: Path, rows: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tree = {
        "name": "run",
        "model": {"source": str(tiny_llama)},
        "precision": "fp32",
        "data": {"files": [str(rows)], "eval_fraction": 0.2},
        "adapter": {"r": 4, "lora_dropout": 0.1},
        "training": {"max_steps": 30, "eval_steps": 10, "save_steps": 2, "learning_rate": 0.01},
        "prompts": ["Who?"],
    }
    recipe = Recipe.from_dict(tree)
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    studio = open_studio(tmp_path / "home")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums in the same order as in this process
    whole = work(create(studio.settings.runs, recipe), studio.settings)
    capsys.readouterr()  # the library's own lines
    with monkeypatch.context() as slow:
        # It waits behind its second checkpoint: a machine may stand still before it is killed.
        slow.setattr(process, "WORKER", "slow_worker")
        slow.setenv("PYTHONPATH", str(Path(__file__).parent))
        slow.setenv("SLOW", "checkpoint:sleep:2")
        broken = studio.training.start(recipe)
    history = studio.runs.history(broken)
    until(history, holds=lambda found: len(found.folder.checkpoint_steps()) > 1)
    pid = process.pid_of(history.folder.process)
    assert pid is not None
    os.killpg(pid, signal.SIGKILL)
    until(history, holds=lambda found: found.is_over)
    assert history.status == "lost"
    assert history.resumable is not None
    newest = history.folder.checkpoint_steps()[-1]
    (history.folder.checkpoint(newest) / "optimizer.pt").write_bytes(b"torn")
    before = history.resumable
    assert before is not None
    assert before < newest
    assert main(["resume", broken]) == 0
    assert capsys.readouterr().out.strip() == broken
    history.update()
    assert (history.status, history.resumes) == ("finished", 1)
    assert whole.status == "finished"
    assert curve(history) == curve(whole)
    adapters = [(run.folder.adapter / WEIGHTS).read_bytes() for run in (whole, history)]
    assert adapters[0] == adapters[1]
