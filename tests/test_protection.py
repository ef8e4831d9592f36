"""What comes from outside: other names, other people, other values than the page would send."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import ROOT, App

from lora_studio.cases.machine import Machine
from lora_studio.data.preparation import prepare
from lora_studio.errors import AdapterError, RunError
from lora_studio.models.loading import load_tokenizer
from lora_studio.recipe import DataSpec, Recipe
from lora_studio.runs import folder as run_folder
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.wording import say

EVIL = "<img src=x onerror=alert(1)>"
TOKEN = "hf_nobodymayreadthis"
OUTSIDE = ("../../etc", "../../../../etc/passwd", "/etc/passwd", ".", "..", "real-1/../real-1", "")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app as a person starts it, with one finished run and a small upload limit."""
    started = App(tmp_path_factory.mktemp("app"), LORA_STUDIO_MAX_UPLOAD_MB="1")
    finished_run(started.home / "runs")
    with started:
        yield started


@pytest.fixture
def client(app: App) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=app.url, timeout=60) as opened:
        yield opened


@pytest.fixture
def wire(client: httpx.Client) -> Wire:
    return Wire(client)


def finished_run(runs: Path) -> str:
    """Write the folder of a run that has finished, without an adapter; return its id."""
    folder = run_folder.create(runs, Recipe(name="real"))
    events = [
        {"time": 1.0, "event": "started", "total_steps": 1},
        {"time": 2.0, "event": "finished"},
    ]
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    folder.stdout.write_text("a line of the log\n")
    return folder.id


class Wire:
    """Speaks to the page's handlers by plain HTTP, as anybody can who reaches the port."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.session = secrets.token_hex(8)
        config = client.get("/config").json()
        self._parts = {part["id"]: part["props"] for part in config["components"]}
        self._handlers = {each["api_name"]: each for each in config["dependencies"]}

    def ask(self, part: str, function: str, data: Any) -> httpx.Response:
        """Call a server function of an HTML component."""
        number = next(k for k, props in self._parts.items() if props.get("elem_id") == part)
        body = {"session_hash": self.session, "component_id": number, "fn_name": function}
        return self.client.post("/gradio_api/component_server", json={**body, "data": data})

    def inputs_of(self, handler: str) -> int:
        """Return how many arguments an event handler takes."""
        return len(self._handlers[handler]["inputs"])

    def call(self, handler: str, *values: Any, **changed: Any) -> str:
        """Call an event handler and return all that it answered, as text.

        Args:
            handler: Its name in the page's configuration.
            values: Its arguments; without any, what the page shows.
            changed: Of what the page shows, other values by element id.
        """
        found = self._handlers[handler]
        shown = [self._parts[number] for number in found["inputs"]]
        data = list(values) or [
            changed.get((props.get("elem_id") or "").replace("-", "_"), value(props))
            for props in shown
        ]
        body = {"data": data, "fn_index": found["id"], "session_hash": self.session}
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        said = []
        where = f"/gradio_api/queue/data?session_hash={self.session}"
        with self.client.stream("GET", where) as lines:
            for line in lines.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                said.append(message)
                if message["msg"] == "process_completed":
                    break
        return json.dumps(said, ensure_ascii=False)


def value(props: dict[str, Any]) -> Any:
    """Return what a component holds on a page that was just opened; a text box holds no null."""
    return "" if "max_lines" in props and props.get("value") is None else props.get("value")


def quoted(sentence: str) -> str:
    """Return a sentence as it stands inside JSON."""
    return json.dumps(sentence, ensure_ascii=False)[1:-1]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_a_page_of_another_name_is_refused(client: httpx.Client, host: str):
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/component_server"):
        for method in ("GET", "POST"):
            answer = client.request(method, path, headers={"host": host})
            assert answer.status_code == 400, (method, path)


def test_its_own_names_are_served(app: App, client: httpx.Client):
    for host in (f"127.0.0.1:{app.port}", f"localhost:{app.port}"):
        assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/nothing/here"])
def test_page_and_api_carry_the_security_headers(client: httpx.Client, path: str):
    headers = client.get(path).headers
    rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["connect-src"] == rules["form-action"] == "'self'"
    assert rules["frame-ancestors"] == rules["object-src"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_cannot_make_the_browser_act_here(wire: Wire, site: str):
    loot = {"files": ("loot.txt", b"x")}
    foreign = {"origin": "https://evil.example", "sec-fetch-site": site}
    assert wire.client.post("/gradio_api/upload", files=loot, headers=foreign).status_code == 403
    body = {"data": [], "fn_index": 0, "session_hash": wire.session}
    for path in ("queue/join", "run/watch", "call/stop_discarding", "component_server"):
        answer = wire.client.post(f"/gradio_api/{path}", json=body, headers=foreign)
        assert answer.status_code == 403, path
    assert (
        wire.client.get("/", headers=foreign).status_code == 200
    )  # a link to here may be followed
    own = {"sec-fetch-site": "same-origin"}
    assert wire.client.post("/gradio_api/upload", files=loot, headers=own).status_code == 200


def test_listening_beyond_this_machine_needs_a_password(tmp_path: Path):
    from lora_studio.ui.server import serve

    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(RunError) as refused:
            serve(Settings(home=tmp_path, host=host))
        assert str(refused.value) == say("run.needs_password", host=host)


SPY = """
import json, sys
from pathlib import Path
import gradio
from lora_studio.settings import Settings
from lora_studio.ui.server import serve
names = ("share", "show_error", "server_name", "auth", "max_file_size")
def launch(self, **options):
    print(json.dumps({name: options[name] for name in names}))
gradio.Blocks.launch = launch
home = Path(sys.argv[1])
serve(Settings(home=home, host="0.0.0.0", auth=("me", "secret"), max_upload_mb=3), block=False)
"""


def test_the_page_is_never_shared_and_shows_no_traceback(tmp_path: Path):
    command = [sys.executable, "-c", SPY, str(tmp_path)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    given = json.loads(printed.splitlines()[-1])
    assert (given["share"], given["show_error"]) == (False, False)
    assert (given["server_name"], given["auth"]) == ("0.0.0.0", ["me", "secret"])
    assert given["max_file_size"] == 3_000_000


def test_a_file_over_the_limit_is_refused(client: httpx.Client):
    big = {"files": ("big.txt", b"a" * 1_500_000)}
    assert client.post("/gradio_api/upload", files=big).status_code == 413
    small = {"files": ("small.txt", b"a" * 500_000)}
    assert client.post("/gradio_api/upload", files=small).status_code == 200


NO_RUNS = (None, ["real-1"], {"a": 1}, "x" * 99_999, *OUTSIDE)


@pytest.mark.parametrize("junk", [None, [], "", 5, {}, *({"run": run} for run in NO_RUNS)])
def test_server_functions_answer_junk_with_nothing(wire: Wire, junk: Any):
    answer = wire.ask("live", "delta", junk)
    assert answer.status_code == 200
    assert answer.json() == {"run": "", "app": answer.json()["app"]}
    answer = wire.ask("live", "log_tail", junk)
    assert (answer.status_code, answer.json()) == (200, "")
    for function in ("line", "move", "leave"):
        answer = wire.ask("queue", function, junk)
        assert (answer.status_code, answer.json()["rows"]) == (200, [])
    answer = wire.ask("head", "glance", junk)
    assert (answer.status_code, answer.json()["run"]) == (200, "")


@pytest.mark.parametrize("cursor", [-1, 10**12, 1.5, True, "1", None, [], {}])
def test_a_cursor_of_any_kind_is_no_accident(wire: Wire, cursor: Any):
    query = {"run": "real-1", "steps": cursor, "evals": cursor, "samples": cursor}
    answer = wire.ask("live", "delta", query)
    assert (answer.status_code, answer.json()["run"]) == (200, "real-1")
    assert answer.json()["status"] == "finished"


def test_only_what_is_offered_can_be_called(wire: Wire):
    for function in ("__init__", "postprocess", "get_config", "nothing"):
        assert wire.ask("live", function, {}).status_code == 404


@pytest.mark.parametrize("run", OUTSIDE)
def test_a_run_outside_the_runs_folder_does_not_exist(wire: Wire, tmp_path: Path, run: str):
    settings = Settings(home=tmp_path)
    finished_run(settings.runs)
    studio = Studio(settings, Machine.open(settings, isolated=True))
    acts = (
        studio.runs.history,
        lambda run: studio.training.stop(run, keep=False),
        studio.training.pause,
        studio.line.remove,
    )
    for act in acts:
        with pytest.raises(RunError) as refused:
            act(run)
        assert refused.value.key == "run.unknown"
    with pytest.raises(AdapterError) as unknown:
        studio.adapters.archive(run, tmp_path)
    assert unknown.value.key == "library.unknown"
    for handler in (
        "stop_keeping", "stop_pausing", "stop_discarding", "leave_queue", "pack", "describe",
    ):  # fmt: skip
        assert "root:" not in wire.call(handler, run)


def test_values_that_the_page_would_never_send_are_refused_in_words(wire: Wire, app: App):
    runs = len(app.runs())
    no_rank = say("recipe.out_of_range", name="adapter.r", value=0, low=1, high=256)
    assert quoted(no_rank) in wire.call("begin", r=0)
    low, high = 1e-8, 1
    for value in (-1, 5, 0):
        name = "training.learning_rate"
        sentence = say("recipe.out_of_range", name=name, value=float(value), low=low, high=high)
        assert quoted(sentence) in wire.call("begin", learning_rate=value)
    assert quoted(say("run.no_data")) in wire.call("begin")
    for junk in ("many", [1], {"a": 1}, "1; rm -rf"):
        wire.call("begin", max_steps=junk)
        wire.call("begin", seed=junk, target_modules=junk)
    assert len(app.runs()) == runs


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "~/secret"])
def test_a_path_from_the_page_is_never_used_as_a_path(wire: Wire, app: App, path: str):
    assert "not in the list" in wire.call("choose_model", "folder", "", path, "")
    asked = wire.call("choose_model", "hub", path, None, "")
    assert quoted(say("page.no_repo", repo=path)) in asked
    # A file that was not uploaded, and a source and names where the page holds its own.
    stolen = {"path": path, "meta": {"_type": "gradio.FileData"}}
    wire.call("take_files", [stolen])
    wire.call("read_recipe", stolen)
    values = ["", path, [path], {"train_rows": 9}]
    found = wire.call("begin", *values, *[None] * 23)
    assert "root:" not in found
    shelved = [file.name for file in (app.home / "uploads").rglob("*") if file.is_file()]
    assert "passwd" not in shelved
    assert len(app.runs()) == 1


def test_an_uploads_name_stays_a_name(wire: Wire, app: App):
    for name in ("../../../escaped.txt", "/tmp/escaped.txt", "..\\..\\escaped.txt"):
        files = {"files": (name, b"some text to learn from")}
        path = wire.client.post("/gradio_api/upload", files=files).json()[0]
        wire.call("take_files", [{"path": path, "meta": {"_type": "gradio.FileData"}}])
    kept = [file for file in app.home.rglob("*escaped*") if file.is_file()]
    assert kept
    assert all(file.parent.parent == app.home / "uploads" for file in kept)
    wire.call("add_text", "../../pasted text", None)
    assert list((app.home / "uploads").glob("*/pasted-text.txt"))


class Tags(HTMLParser):
    """The tags, attributes and text of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_markup_in_rows_columns_and_names_is_shown_as_text(tiny_llama: Path, tmp_path: Path):
    from lora_studio.ui import data_rows, data_view, render
    from lora_studio.ui.language import Voice

    rows = [
        {"prompt": f"{EVIL} {number}", "completion": EVIL, f"{EVIL}column": "x"}
        for number in range(12)
    ]
    file = tmp_path / f"{EVIL}.jsonl"
    file.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "completion": ""}])
    )
    found = prepare(DataSpec(files=(str(file),)), load_tokenizer(tiny_llama), 0).report.to_dict()

    rows_shown = [data_rows.sample(row, Voice(None)) for row in found["samples"]]
    shown = Tags(data_view.summary(found, Voice(None)) + "".join(rows_shown))

    assert shown.tags <= {"p", "dl", "div", "dt", "dd", "span", "i", "h4"}
    assert shown.attributes <= {"class", "role", "tabindex", "aria-label"}
    assert f"{EVIL} 0" in shown.text or EVIL in shown.text
    assert f"{EVIL}.jsonl" in shown.text
    assert f"{EVIL}column" in shown.text
    problem = RunError("run.unknown", run=EVIL)
    assert Tags(render.problem(problem, Voice(None))).tags == {"div"}


def test_a_runs_name_becomes_a_plain_folder_name(tmp_path: Path):
    for name in (EVIL, "../../../etc/passwd", "..", "/", "a\nb\0c", "CON", "이름 / 둘"):
        folder = run_folder.create(tmp_path / "runs", Recipe(name=name))
        assert folder.path.parent == tmp_path / "runs"
        assert not set(folder.id) & set("<>/\\.\0\n\"'& ")


def test_a_token_in_the_page_is_not_written_down(wire: Wire, app: App):
    wire.call("choose_model", "hub", "nobody/nothing", None, TOKEN)
    wire.call("begin", *[TOKEN, "", [], None, *[None] * 99][: wire.inputs_of("begin")])
    wire.call("choose_model", "hub", "nobody/nothing", None, f"{TOKEN} with a space")
    assert TOKEN not in app.log.read_text()
    assert not [
        file
        for file in app.home.rglob("*")
        if file.is_file() and TOKEN in file.read_text("latin-1")
    ]
