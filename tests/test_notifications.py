"""Who is told of a run beside the page: a webhook at its end, trackers at every step."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback
from workers import finish, open_studio, until

from lora_studio.cases.machine import Machine
from lora_studio.errors import RecipeError, StudioError
from lora_studio.outlook import look_ahead
from lora_studio.recipe import Recipe, TrackerName
from lora_studio.runs import process
from lora_studio.runs.events import EventWriter, read_events
from lora_studio.runs.folder import RunFolder, create
from lora_studio.runs.history import History
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.training import notices, trackers
from lora_studio.training.notices import Webhook
from lora_studio.training.tracking import Tracking, close, keep_apart

# PEFT asks a transformers model for a name that transformers has deprecated (peft 0.21.2).
pytestmark = [
    pytest.mark.usefixtures("nobody_left"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

SECRET = "T0-secret"
WAIT_S = 120.0


class Listener:
    """A web server on this machine that keeps what it is sent.

    Args:
        answers: Statuses to answer with, in turn; the last one goes on.
    """

    def __init__(self, *answers: int) -> None:
        self.heard: list[dict[str, Any]] = []
        self.kinds: list[str | None] = []
        self.paths: list[str] = []
        self.pause_s = 0.0
        listener, left = self, list(answers or (200,))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                listener.heard.append(json.loads(body))
                listener.kinds.append(self.headers["Content-Type"])
                listener.paths.append(self.path)
                time.sleep(listener.pause_s)
                status = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                self.send_header("Location", f"{listener.url}/elsewhere")
                self.send_header("Retry-After", "3600")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/{SECRET}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Listener]]:
    monkeypatch.setattr(notices, "WAIT_S", 0.01)
    monkeypatch.setattr(notices, "LIMIT_S", (60, 60))  # a machine that stands still is no failure
    open_ = []

    def listen(*answers: int) -> Listener:
        open_.append(Listener(*answers))
        return open_[-1]

    yield listen
    for listener in open_:
        listener.close()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that has come to its second step."""
    folder = create(tmp_path / "runs", Recipe(name="walk"))
    begin = {"event": "stage", "time": 100.0, "stage": "start"}
    evals = [{"event": "eval", "time": 101.0, "step": step, "loss": 3.0 - step} for step in (0, 2)]
    steps = [{"event": "step", "time": 104.0, "step": at, "loss": 2.0 / at} for at in (1, 2)]
    lines = (json.dumps(event) + "\n" for event in (begin, *evals, *steps))
    folder.events.write_text("".join(lines), encoding="utf-8")
    return folder


def ended(folder: RunFolder, url: str, *ends: str) -> None:
    """Write events that end a run, whose webhook is this one."""
    with EventWriter(folder.events) as events:
        events.at_end = Webhook(url, folder, events).tell
        for end in ends:
            events.write(end, **({"kept": False} if end == "stopped" else {}))


def warnings_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [event for event in read_events(folder.events)[0] if event["event"] == "warning"]


# The webhook


def test_a_webhook_is_told_how_a_run_ended(listen: Callable[..., Listener], run: RunFolder) -> None:
    listener = listen()
    ended(run, listener.url, "finished")
    (heard,) = listener.heard
    assert heard.pop("seconds") > 1e9  # from the hundredth second of time until now
    assert heard == {
        "run": "walk-1", "status": "finished", "loss": 1.0, "eval_loss": 1.0, "adapter": None,
    }  # fmt: skip
    assert listener.kinds == ["application/json"]
    assert listener.paths == [f"/{SECRET}"]
    assert warnings_of(run) == []


def test_it_is_told_of_the_end_alone_and_only_once(
    listen: Callable[..., Listener], run: RunFolder
) -> None:
    listener = listen()
    ended(run, listener.url, "stage", "saved", "stopped", "finished")
    assert [heard["status"] for heard in listener.heard] == ["stopped"]


def test_a_run_that_ended_before_its_first_step_has_no_numbers(
    listen: Callable[..., Listener], tmp_path: Path
) -> None:
    folder = create(tmp_path / "runs", Recipe(name="early"))
    listener = listen()
    ended(folder, listener.url, "stopped")
    (heard,) = listener.heard
    assert (heard["loss"], heard["eval_loss"], heard["seconds"]) == (None, None, 0.0)


def test_a_busy_server_is_asked_again_and_not_as_late_as_it_likes(
    listen: Callable[..., Listener], run: RunFolder
) -> None:
    listener = listen(503, 429, 200)
    ended(run, listener.url, "finished")
    assert len(listener.heard) == 3
    assert warnings_of(run) == []


@pytest.mark.parametrize(("status", "times"), [(500, 3), (404, 1), (302, 1)])
def test_what_was_not_taken_is_a_warning_and_the_run_stays_as_it_is(
    listen: Callable[..., Listener], run: RunFolder, status: int, times: int
) -> None:
    listener = listen(status)
    ended(run, listener.url, "finished")
    assert len(listener.heard) == times
    (warning,) = warnings_of(run)
    assert warning["step"] == 2
    assert warning["cause"]["key"] == "training.webhook_failed"
    assert warning["cause"]["values"] == {"reason": str(status)}
    assert History(run).update().status == "finished"


def test_a_server_that_may_have_heard_it_is_not_told_again(
    listen: Callable[..., Listener], run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "LIMIT_S", (1, 0.1))
    listener = listen()
    listener.pause_s = 0.3
    ended(run, listener.url, "finished")
    # Of a second telling the reason would be another one. The listener may only begin to hear.
    assert warnings_of(run)[0]["cause"]["values"] == {"reason": "ReadTimeout"}
    deadline = time.monotonic() + WAIT_S
    while not listener.heard:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(listener.heard) == 1


def test_nobody_listening_is_a_warning_that_does_not_give_the_address_away(
    listen: Callable[..., Listener], run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    listener = listen()
    listener.close()
    with caplog.at_level(logging.DEBUG):
        ended(run, listener.url, "failed")
    assert warnings_of(run)[0]["cause"]["values"] == {"reason": "ConnectionError"}
    assert SECRET not in run.events.read_text(encoding="utf-8") + caplog.text


@pytest.mark.parametrize(
    "address", ["ftp://x.org/a", "file:///etc/passwd", "x.org", "http://", "http://[x"]
)
def test_an_address_that_is_none_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(StudioError, match="LORA_STUDIO_WEBHOOK is not a web address") as caught:
        Settings.from_environment({"LORA_STUDIO_WEBHOOK": address})
    assert address not in str(caught.value.to_dict())


def test_the_address_comes_from_the_environment_and_is_not_shown() -> None:
    settings = Settings.from_environment({"LORA_STUDIO_WEBHOOK": f" https://x.org/{SECRET} "})
    assert settings.webhook == f"https://x.org/{SECRET}"
    assert SECRET not in repr(settings)
    assert Settings.from_environment({}).webhook is None


@pytest.mark.parametrize(
    ("space", "told"), [(None, "https://x.org"), ("me/mine", "https://x.org"), ("all/show", "")]
)
def test_the_owner_of_a_space_for_everybody_is_not_told_of_visitors(
    tmp_path: Path, space: str | None, told: str
) -> None:
    settings = Settings(
        home=tmp_path, webhook="https://x.org", space_id=space, original_space="all/show"
    )
    studio = Studio(settings, Machine.open(settings, isolated=False))
    assert studio.workers.environment(None)["LORA_STUDIO_WEBHOOK"] == told


# Real workers


@pytest.fixture
def recipe(pairs: Path, tiny_llama: Path) -> Recipe:
    """Two steps over the twenty pairs."""
    tree = {
        "model": {"source": str(tiny_llama)},
        "precision": "fp32",
        "data": {"files": [str(pairs)], "eval_fraction": 0.2},
        "adapter": {"r": 4},
        "training": {"max_steps": 2, "eval_steps": 2},
    }
    return Recipe.from_dict(tree)


@pytest.mark.slow
def test_a_worker_tells_once_what_came_of_its_run_and_keeps_the_address_to_itself(
    listen: Callable[..., Listener], recipe: Recipe, tmp_path: Path
) -> None:
    listener = listen()
    studio = open_studio(tmp_path / "home", webhook=listener.url)
    history = finish(studio, studio.training.start(recipe))
    assert history.status == "finished", history.folder.stdout.read_text(encoding="utf-8")
    (heard,) = listener.heard
    assert heard["status"] == "finished"
    assert heard["run"] == history.folder.id
    assert heard["loss"] == history.steps[-1]["loss"]
    assert heard["eval_loss"] == history.evals[-1]["loss"]
    assert heard["adapter"] == str(history.folder.adapter)
    assert 0 < heard["seconds"] < WAIT_S
    files = [file for file in (tmp_path / "home").rglob("*") if file.is_file()]
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


@pytest.mark.slow
def test_a_worker_tells_of_a_failure_and_of_a_stop_before_the_first_step(
    listen: Callable[..., Listener], recipe: Recipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Whom a busy machine lets speak late is not ended by force before.
    monkeypatch.setattr(process, "end", partial(process.end, grace_s=WAIT_S))
    listener = listen()
    studio = open_studio(tmp_path / "home", webhook=listener.url)
    impossible = recipe.changed(["training.per_device_train_batch_size=64"])
    finish(studio, studio.training.start(impossible))
    run = studio.training.start(recipe.changed(["training.max_steps=100000"]))
    until(studio.runs.history(run), holds=lambda history: history.stage)
    studio.training.stop(run, keep=False)
    finish(studio, run)
    assert [heard["status"] for heard in listener.heard] == ["failed", "stopped"]
    assert [heard["adapter"] for heard in listener.heard] == [None, None]


# Trackers


def test_a_tracker_that_is_not_installed_is_named_with_its_package(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    studio = open_studio(tmp_path / "home")
    asked = recipe.changed(["training.report_to=[wandb, trackio, wandb]"])
    problems = look_ahead(asked, None, studio.hardware).problems
    assert [problem.values["package"] for problem in problems] == ["wandb", "trackio"]
    assert "pip install wandb" in str(problems[0])
    with pytest.raises(RecipeError, match="Weights & Biases"):
        studio.training.start(asked)
    assert not look_ahead(recipe, None, studio.hardware).problems


def test_one_of_the_packages_of_a_tracker_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: name == "tensorboardX" or None)
    assert trackers.problems(["tensorboard"]) == []


def test_a_tracker_nobody_knows_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"training\.report_to"):
        Recipe.from_dict({"training": {"report_to": ["mlflow"]}})


@pytest.mark.parametrize(
    ("environ", "network", "mode"),
    [
        ({}, "there", "offline"),
        ({"WANDB_API_KEY": "k"}, "there", None),
        ({"WANDB_API_KEY": "k"}, "off", "offline"),
        ({"WANDB_MODE": "online"}, "off", "online"),
    ],
)
def test_w_and_b_stays_here_unless_it_has_a_key_and_a_network(
    tmp_path: Path, environ: dict[str, str], network: str, mode: str | None
) -> None:
    environ = {"NETRC": str(tmp_path / "none")} | environ
    trackers.prepare(tmp_path, Settings(home=tmp_path, offline=network == "off"), environ)
    assert environ.get("WANDB_MODE") == mode
    assert environ["WANDB_PROJECT"] == "lora-studio"
    assert environ["WANDB_DIR"] == environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "tracking")


def test_a_login_to_w_and_b_is_seen_and_what_is_set_already_stays(tmp_path: Path) -> None:
    login = tmp_path / "netrc"
    login.write_text("machine api.wandb.ai\n  login user\n  password k\n", encoding="utf-8")
    environ = {"NETRC": str(login), "WANDB_DIR": "/elsewhere"}
    trackers.prepare(tmp_path, Settings(home=tmp_path), environ)
    assert "WANDB_MODE" not in environ
    assert environ["WANDB_DIR"] == "/elsewhere"


class Fragile(TrainerCallback):
    """A tracker that breaks at an event."""

    def __init__(self, breaks_at: str = "") -> None:
        self.seen: list[str] = []
        self._breaks_at = breaks_at

    def on_train_begin(self, *_: object, **__: object) -> None:
        self._see("on_train_begin")

    def on_log(self, *_: object, **__: object) -> None:
        self._see("on_log")

    def on_train_end(self, *_: object, **__: object) -> None:
        self._see("on_train_end")

    def _see(self, event: str) -> None:
        self.seen.append(event)
        if event == self._breaks_at:
            raise ConnectionRefusedError("https://api.example.com/key")


@pytest.mark.parametrize("at", ["on_train_begin", "on_log", "on_train_end"])
def test_a_tracker_that_breaks_is_left_out_with_a_warning(run: RunFolder, at: str) -> None:
    fragile = Fragile(at)
    with EventWriter(run.events) as events:
        tracking = Tracking(fragile, "Fragile", events)
        state = SimpleNamespace(global_step=2)
        for event in ("on_train_begin", "on_log", "on_log", "on_train_end", "on_train_end"):
            getattr(tracking, event)(None, state, None)
    assert fragile.seen[-1] == at
    assert fragile.seen.count(at) == 1
    (warning,) = warnings_of(run)
    assert warning["step"] == 2
    assert warning["cause"]["values"] == {"tracker": "Fragile", "kind": "ConnectionRefusedError"}


def test_only_the_librarys_trackers_are_kept_apart_and_an_open_one_is_closed_once(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.training.tracking.CALLBACKS", {Fragile: "Fragile"})
    own, tracker = TrainerCallback(), Fragile()
    trainer = SimpleNamespace(
        callback_handler=SimpleNamespace(callbacks=[own, tracker]),
        args=None, state=SimpleNamespace(global_step=1), control=None, model=None,
    )  # fmt: skip
    with EventWriter(run.events) as events:
        keep_apart(trainer, events)
    assert trainer.callback_handler.callbacks[0] is own
    close(trainer)
    close(trainer)
    assert tracker.seen == ["on_train_end"]


SUMMARY_WRITER = """
import json, pathlib

class SummaryWriter:
    def __init__(self, log_dir):
        self.file = pathlib.Path(log_dir) / "scalars.jsonl"

    def add_text(self, name, text, step=0):
        self.write([name, text, step])

    def add_scalar(self, name, value, step):
        self.write([name, value, step])

    def write(self, entry):
        with self.file.open("a") as lines:
            print(json.dumps(entry), file=lines)

    def flush(self): ...

    def close(self):
        self.write(["closed", "", 0])
"""


@pytest.mark.slow
def test_a_tracker_is_told_the_runs_name_and_every_step_by_the_trainer(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "tensorboardX.py").write_text(SUMMARY_WRITER, encoding="utf-8")
    (library / "tensorboard.py").write_text("raise ImportError", encoding="utf-8")
    monkeypatch.syspath_prepend(library)
    monkeypatch.setenv("PYTHONPATH", str(library))
    studio = open_studio(tmp_path / "home")
    history = finish(
        studio,
        studio.training.start(
            replace(recipe, name="curve").changed(["training.report_to=[tensorboard]"])
        ),
    )
    log = history.folder.stdout.read_text(encoding="utf-8")
    assert history.status == "finished", log
    written = (history.folder.path / "tracking/scalars.jsonl").read_text(encoding="utf-8")
    entries = [json.loads(line) for line in written.splitlines()]
    losses = {step: value for name, value, step in entries if name == "train/loss"}
    assert losses == pytest.approx({e["step"]: e["loss"] for e in history.steps}, abs=1e-4)
    assert {step for name, _, step in entries if name == "eval/loss"} == {0, 2}
    (arguments,) = [json.loads(text) for name, text, _ in entries if name == "args"]
    assert arguments["run_name"] == "curve-1"
    assert entries[-1][0] == "closed"
    assert warnings_of(history.folder) == []


WRITES = {
    "tensorboard": "home/runs/*/tracking/events.out.tfevents.*",
    "trackio": "trackio/lora-studio*.db",
    "wandb": "home/runs/*/tracking/wandb/offline-run-*/*.wandb",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_real_tracker_writes_to_this_machine_and_needs_no_network(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: TrackerName
) -> None:
    if trackers.problems([name]):
        pytest.skip(f"{trackers.TRACKERS[name].title} is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    studio = open_studio(tmp_path / "home")
    reported = recipe.changed([f"training.report_to=[{name}]"])
    history = finish(studio, studio.training.start(reported))
    log = history.folder.stdout.read_text(encoding="utf-8")
    assert history.status == "finished", log
    assert warnings_of(history.folder) == [], log
    assert list(tmp_path.glob(WRITES[name])), list(tmp_path.rglob("*"))
