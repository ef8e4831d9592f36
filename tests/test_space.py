"""A Hugging Face Space: visitors apart, little time, a recorded run, and a disk that stays free."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from lora_studio.cases.machine import Machine
from lora_studio.cases.workshop import Workshop
from lora_studio.chat.request import Pane, Sampling
from lora_studio.chat.turns import Turns
from lora_studio.errors import ModelError, RunError, StudioError
from lora_studio.hardware import Hardware
from lora_studio.library.names import RECORDED
from lora_studio.models.starter import REPOSITORY
from lora_studio.recipe import Recipe
from lora_studio.runs import housekeeping, process
from lora_studio.runs.accelerator import Accelerator, Job
from lora_studio.runs.events import EventWriter, read_events
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History
from lora_studio.settings import STARTER, Settings
from lora_studio.studio import Studio
from lora_studio.ui.shelf import Shelf
from lora_studio.wording import LANGUAGES

ROOT = Path(__file__).resolve().parents[1]
ID = "someone/lora-studio"
SPACE = {"SPACE_ID": ID, "SYSTEM": "spaces"}
DUPLICATE = {"SPACE_ID": "me/my-copy", "SYSTEM": "spaces", "LORA_STUDIO_SHOWCASE": ID}
HARDWARE = Hardware(
    device="cpu",
    device_name="a CPU",
    cores=2,
    memory_total_bytes=16 << 30,
    memory_free_bytes=12 << 30,
)
DAY_S = 24 * 3600


class Heavy:
    """Stands in for the heavy processes and notes what it is asked."""

    pid = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def call(self, method: str, **_: Any) -> None:
        self.asked.append(method)

    def stream(self, method: str, **_: Any) -> Iterator[dict[str, Any]]:
        self.asked.append(method)
        yield {"result": "/model"} if method == "fetch" else {"mode": "batched"}

    def interrupt(self, method: str, **_: Any) -> None:
        self.asked.append(method)

    def close(self) -> None:
        self.asked.append("close")

    def open(self) -> None:
        """There is nothing to be let in."""


@pytest.fixture
def heavy() -> Heavy:
    return Heavy()


@pytest.fixture
def space(tmp_path: Path) -> Settings:
    return Settings.from_environment(SPACE | {"LORA_STUDIO_HOME": str(tmp_path / "home")})


def studio_of(settings: Settings, heavy: Heavy) -> Studio:
    workshop = Workshop(lambda: heavy)  # type: ignore[arg-type,return-value]
    machine = Machine(HARDWARE, heavy, heavy, Accelerator(settings.home), Turns(), workshop)  # type: ignore[arg-type]
    return Studio(settings, machine)


@pytest.fixture
def studio(space: Settings, heavy: Heavy) -> Studio:
    return studio_of(space, heavy)


@pytest.fixture
def not_started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Start no worker; hand out the environments that workers would have got."""
    given: list[dict[str, str]] = []

    def start(folder: RunFolder, *, environment: dict[str, str], **_: Any) -> int:
        given.append(environment)
        return 2**22 + 1  # no process has this id

    monkeypatch.setattr(process, "start", start)
    return given


def recipe_of(file: Path, **model: str) -> Recipe:
    return Recipe.from_dict({"model": model, "data": {"files": [str(file)]}})


def grow_old(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


# What a Space is


def test_a_space_is_a_showcase_until_it_is_known_to_be_a_duplicate() -> None:
    unnamed, original, duplicate, home = (
        Settings.from_environment(env)
        for env in (SPACE, SPACE | {"LORA_STUDIO_SHOWCASE": ID}, DUPLICATE, {})
    )
    assert [unnamed.is_showcase, original.is_showcase] == [True, True]
    assert [unnamed.max_training_s, original.max_training_s] == [240, 240]
    assert [duplicate.is_showcase, home.is_showcase] == [False, False]
    assert [duplicate.max_training_s, home.max_training_s] == [None, None]
    assert [settings.most_runs for settings in (original, duplicate, home)] == [5, None, None]


def test_the_owner_of_a_space_can_set_the_time() -> None:
    longer = Settings.from_environment(SPACE | {"LORA_STUDIO_MAX_TRAINING_S": "600"})
    assert longer.max_training_s == 600


def test_the_front_matter_is_what_the_hub_asks_for() -> None:
    _, front, body = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert (card["sdk"], card["app_file"], card["license"]) == ("gradio", "app.py", "apache-2.0")
    assert (ROOT / card["app_file"]).is_file()
    assert card["sdk_version"] == "6.31.0"
    assert isinstance(card["python_version"], str)
    assert {card["colorFrom"], card["colorTo"]} <= colours
    assert card["emoji"]
    assert not card["emoji"].isascii()
    assert len(card["short_description"]) <= 60
    assert card["preload_from_hub"][0].startswith(f"{REPOSITORY} config.json,")
    assert body.lstrip().startswith("# LoRA Studio")


# The recorded run


def test_the_recorded_run_is_whole_small_and_names_no_place_on_a_machine() -> None:
    (folder,) = (file.parent for file in RECORDED.glob("*/recipe.yaml"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_500_000
    for path in files:
        content = path.read_bytes()
        for place in (b"/tmp/", b"/home/", b"/root/", b"/work/", b"site-packages"):
            assert place not in content, path
    history = History(RunFolder(folder)).update()
    assert history.status == "finished"
    assert len(history.steps) == history.total_steps
    assert history.evals[-1]["loss"] < 0.8 * history.evals[0]["loss"]
    assert history.samples
    assert history.cause is None
    recipe = RunFolder(folder).read_recipe()
    assert recipe.model.source == STARTER
    assert (folder / recipe.data.files[0]).is_file()


def test_the_recorded_adapter_fits_the_starter_model() -> None:
    adapter = RECORDED / "lighthouse" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    info = json.loads((ROOT / "assets" / "starter.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == REPOSITORY
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        assert len(file.keys()) == 2 * len(config["target_modules"]) * info["layers"]


def test_a_fresh_visitor_is_offered_the_recorded_run(studio: Studio, heavy: Heavy) -> None:
    visitor = studio.for_visitor("a")
    (history,) = visitor.runs.all()
    assert history.folder.path.parent == RECORDED
    list(visitor.answers.ask(history.folder.id, [], None))  # type: ignore[arg-type]
    assert heavy.asked == ["fetch", "load", "generate"]
    with pytest.raises(RunError, match="cannot be changed"):
        visitor.training.stop(history.folder.id, keep=False)


def test_the_recorded_run_stands_behind_a_visitors_own(
    studio: Studio, pairs: Path, not_started: Any
) -> None:
    visitor = studio.for_visitor("a")
    own = visitor.training.start(recipe_of(pairs))
    assert [history.folder.id for history in visitor.runs.all()] == [own, "lighthouse"]


def test_at_home_there_is_no_recorded_run(settings: Settings, heavy: Heavy) -> None:
    assert studio_of(settings, heavy).runs.all() == []


# Visitors


def test_visitors_see_their_own_runs_and_uploads_only(
    studio: Studio, pairs: Path, not_started: Any
) -> None:
    one, other = studio.for_visitor("one"), studio.for_visitor("other")
    run = one.training.start(recipe_of(pairs))
    Shelf.of(one.settings).keep(pairs)
    with pytest.raises(RunError):
        other.runs.history(run)
    with pytest.raises(RunError):
        other.training.stop(run, keep=False)
    assert Shelf.of(other.settings).paths([Shelf.of(one.settings).keep(pairs)]) == []


@pytest.mark.parametrize("kind", ["training", "compare"])
def test_another_visitors_job_is_not_disturbed_and_not_named(
    studio: Studio, heavy: Heavy, pairs: Path, kind: str, not_started: Any
) -> None:
    Accelerator(studio.settings.home).assign(Job(kind, ("secret-plan-1",), "one"), os.getpid())
    other = studio.for_visitor("other")
    with pytest.raises(RunError) as raised:
        other.training.start(recipe_of(pairs))
    for language in LANGUAGES:
        assert "secret" not in raised.value.say(language)
    assert other.runs.active() is None


def test_a_visitors_stop_ends_their_own_answer_only(studio: Studio, heavy: Heavy) -> None:
    one, other = studio.for_visitor("one"), studio.for_visitor("other")
    panes = [Pane(text="Once")]
    answers = one.answers.ask("lighthouse", panes, Sampling(), asker="tab")
    while "mode" not in next(answers):
        pass
    other.answers.stop("tab")
    assert heavy.asked == ["fetch", "load", "generate"]
    one.answers.stop("tab")
    assert heavy.asked[-1] == "stop"


def test_only_the_starter_model_is_lent_to_everybody(
    studio: Studio, heavy: Heavy, pairs: Path, not_started: Any
) -> None:
    from lora_studio.ui import model_card

    visitor = studio.for_visitor("a")
    recipe = recipe_of(pairs, source="owner/big-model")
    for use in (
        lambda: visitor.training.start(recipe),
        lambda: list(visitor.data.preview(recipe)),
        lambda: list(visitor.models.inspect("owner/big-model")),
        lambda: model_card.source_of("hub", "owner/big-model", None, visitor),
    ):
        with pytest.raises(ModelError, match="starter model only"):
            use()
    assert heavy.asked == []
    assert not_started == []


def test_a_duplicate_takes_other_models_with_the_visitors_token_only(
    tmp_path: Path, heavy: Heavy, pairs: Path, not_started: list[dict[str, str]]
) -> None:
    owner = {"LORA_STUDIO_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_owner"}
    visitor = studio_of(Settings.from_environment(DUPLICATE | owner), heavy).for_visitor("a")
    recipe = recipe_of(pairs, source="owner/big-model")
    visitor.training.start(recipe)
    visitor.training.start(recipe, token="hf_visitor")
    assert [environment["HF_TOKEN"] for environment in not_started] == ["", "hf_visitor"]


def test_the_cookie_opens_a_studio_whose_folder_does_not_give_it_away(studio: Studio) -> None:
    from lora_studio.ui.visitors import COOKIE, Door, new_visitor

    door, cookie = Door(studio), new_visitor()

    def enter(cookies: dict[str, str], session: str = "abc") -> str | None:
        request = SimpleNamespace(cookies=cookies, session_hash=session)
        return door.enter(request).settings.visitor  # type: ignore[arg-type]

    mine = enter({COOKIE: cookie})
    assert mine == enter({COOKIE: cookie}, "another tab")
    assert cookie not in str(mine)
    assert enter({}) == enter({COOKIE: "../../etc"}) == "tab-abc"
    assert enter({}, "../" + "x" * 400) == "tab-" + "x" * 32


def test_a_space_may_be_framed_by_the_hub_under_any_name(space: Settings) -> None:
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from lora_studio.ui.server import _middleware

    page = Route("/", lambda _: HTMLResponse("<html><head></head></html>"))
    app = Starlette(routes=[page], middleware=_middleware(space))
    answer = TestClient(app, base_url="https://someone-lora-studio.hf.space").get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.endswith("frame-ancestors https://huggingface.co")
    assert "Partitioned" in answer.headers["set-cookie"]


LINKS = """
import json, os, threading
from lora_studio.settings import Settings
from lora_studio.cases.machine import Machine
from lora_studio.chat.request import Pane, Sampling
from lora_studio.chat.turns import Turns
from lora_studio.studio import Studio
from lora_studio.ui.page import build_page
settings = Settings.from_environment()
blocks = build_page(Studio(settings, Machine.open(settings, isolated=True))).blocks.values()
buttons = [block for block in blocks if block.get_block_name() == "button" and block.link]
print(json.dumps([[button.link, button.link_target] for button in buttons]))
"""


@pytest.mark.parametrize(
    ("environment", "links"),
    [
        (SPACE, [[f"https://huggingface.co/spaces/{ID}?duplicate=true", "_blank"]]),
        (DUPLICATE, []),
    ],
)
def test_a_showcase_offers_a_duplicate_in_a_window_of_its_own(
    tmp_path: Path, environment: dict[str, str], links: list[list[str]]
) -> None:
    # In a process of its own: Gradio leaves event loops open behind a page that is never served.
    done = subprocess.run(
        [sys.executable, "-c", LINKS],
        env=os.environ | environment | {"LORA_STUDIO_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == links


def test_the_starter_model_is_fetched_before_anybody_asks(studio: Studio, heavy: Heavy) -> None:
    studio.models.fetch_starter()
    assert heavy.asked == ["fetch"]


# Time


def test_the_worker_is_told_the_time_it_has(
    studio: Studio, pairs: Path, not_started: list[dict[str, str]]
) -> None:
    studio.for_visitor("a").training.start(recipe_of(pairs))
    told = Settings.from_environment(SPACE | not_started[0])
    assert told.max_training_s == 240
    assert told.home == studio.settings.home


@pytest.mark.slow
def test_a_training_is_cut_short_and_what_it_learned_is_kept(
    tmp_path: Path, heavy: Heavy, tiny_llama: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    model = home / "models" / "tiny"
    shutil.copytree(tiny_llama, model)
    environment = DUPLICATE | {"LORA_STUDIO_HOME": str(home), "LORA_STUDIO_MAX_TRAINING_S": "2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    visitor = studio_of(Settings.from_environment(), heavy).for_visitor("a")
    recipe = recipe_of(pairs, source=str(model)).changed(["training.max_steps=100000"])
    history = visitor.runs.history(visitor.training.start(recipe))
    deadline = time.monotonic() + 180
    while not history.update().is_over and time.monotonic() < deadline:
        time.sleep(0.2)
    assert history.status == "stopped", history.folder.stdout.read_text()
    assert history.ending["kept"]
    assert history.ending["timed_out"]
    assert history.folder.newest_adapter() is not None


def test_a_first_step_without_end_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_studio.training import worker

    left = threading.Event()
    monkeypatch.setattr(worker.ranks.os, "_exit", lambda _: left.set())
    monkeypatch.setattr(worker, "HARD_LIMIT", 0.05)
    monkeypatch.setattr(worker, "PREPARING_S", 0)
    with EventWriter(tmp_path / "events.jsonl") as events:
        worker._hard_limit(events, None)
        worker._hard_limit(events, 1)
        assert left.wait(60)
    (ended,) = read_events(tmp_path / "events.jsonl")[0]
    assert ended | {"time": 0} == {"time": 0, "event": "stopped", "kept": False, "timed_out": True}


# Room


def test_a_visitors_oldest_runs_make_room(studio: Studio, pairs: Path, not_started: Any) -> None:
    visitor = studio.for_visitor("a")
    started = []
    for number in range(7):
        started.append(visitor.training.start(recipe_of(pairs)))
        grow_old(visitor.settings.runs / started[-1], 100 - number)
    left = {path.name for path in visitor.settings.runs.iterdir()}
    assert left == set(started[-5:])


def test_a_shelf_with_a_limit_forgets_the_oldest_and_one_without_keeps_all(tmp_path: Path) -> None:
    def fill(shelf: Shelf) -> list[str]:
        names = []
        for number in range(4):
            names.append(shelf.keep_text(f"text {number}", "text.txt"))
            grow_old(Path(shelf.paths(names[-1:])[0]).parent, 100 - number)
        return [Path(path).read_text() for path in shelf.paths(names)]

    assert fill(Shelf(tmp_path / "few", most=2)) == ["text 2", "text 3"]
    assert len(fill(Shelf(tmp_path / "all"))) == 4


def test_who_was_not_seen_for_a_day_is_forgotten(studio: Studio) -> None:
    for name in ("gone", "here"):
        studio.settings.for_visitor(name).private.mkdir(parents=True)
        grow_old(studio.settings.visitors / name, 2 * DAY_S)
    studio.for_visitor("here")
    assert [path.name for path in studio.settings.visitors.iterdir()] == ["here"]


def test_a_duplicate_forgets_nobody(tmp_path: Path, heavy: Heavy) -> None:
    settings = Settings.from_environment(DUPLICATE | {"LORA_STUDIO_HOME": str(tmp_path)})
    (settings.visitors / "gone").mkdir(parents=True)
    grow_old(settings.visitors / "gone", 20 * DAY_S)
    studio_of(settings, heavy).for_visitor("here")
    assert (settings.visitors / "gone").is_dir()


def test_a_full_disk_forgets_those_who_are_away_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, away_s in (("away", 3600), ("here", 60)):
        (tmp_path / name).mkdir()
        grow_old(tmp_path / name, away_s)
    housekeeping.drop_unseen(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    housekeeping.drop_unseen(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_space_remembers_a_limited_number_of_visitors(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.studio.MOST_VISITORS", 2)
    first = studio.for_visitor("first")
    studio.for_visitor("second")
    assert studio.for_visitor("first") is first
    studio.for_visitor("third")
    assert studio.for_visitor("first") is first
    assert len(studio._visitors) == 2


def test_what_the_page_shows_is_a_copy_where_gradio_may_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    from lora_studio.ui import outgoing

    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    old = outgoing.fresh_folder()
    grow_old(old, 2 * outgoing.TAKEN_S)
    kept = tmp_path / "home" / "rows.jsonl"
    kept.parent.mkdir()
    kept.write_text("{}")
    (shown,) = outgoing.lend([str(kept)])
    assert Path(shown).name == "rows.jsonl"
    assert place in Path(shown).parents
    assert Path(shown).read_text() == "{}"
    assert not old.exists()


def test_a_space_without_a_network_still_starts(studio: Studio, heavy: Heavy, caplog: Any) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise StudioError("model.starter_unreachable", package="a-package")

    heavy.stream = fail  # type: ignore[method-assign]
    studio.models.fetch_starter()
    assert "a-package" in caplog.text
