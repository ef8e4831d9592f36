"""Bringing an adapter to the Hub from the page, and signing in where the page is a Space."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from browser import App, Visit
from gradio.helpers import special_args
from kept import write_answering
from local_hub import Hub
from person import SLOW_MS, open_shipping, put
from playwright.sync_api import expect

from lora_studio.settings import Settings
from lora_studio.ui.ship_panel import ShipPanel
from lora_studio.wording import say

pytestmark = pytest.mark.ui
ROOT = Path(__file__).resolve().parents[1]
TOKEN = "hf_right"
SPACE = {"SYSTEM": "spaces", "SPACE_ID": "someone/lora-studio", "SPACE_HOST": "some.hf.space"}
OAUTH = {
    "OAUTH_CLIENT_ID": "the-app",
    "OAUTH_CLIENT_SECRET": "secret",
    "OAUTH_SCOPES": "openid profile contribute-repos",
    "OPENID_PROVIDER_URL": "http://127.0.0.1:1",
}
# As `local_hub.be_patient` has it.
PATIENCE = f"""
import sys
sys.path.append({str(ROOT)!r})
from lora_studio.models import hub
hub.ANSWER_WITHIN_S = 120.0
"""
PATIENT = {"HF_HUB_ETAG_TIMEOUT": "120", "HF_HUB_DOWNLOAD_TIMEOUT": "120"}
BUTTONS = """
import json, sys
import gradio as gr
from lora_studio.cases.machine import Machine
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.ui.page import build_page
found = []
for environment in json.loads(sys.argv[1]):
    settings = Settings.from_environment(environment)
    page = build_page(Studio(settings, Machine.open(settings, isolated=True)))
    found.append(sum(isinstance(block, gr.LoginButton) for block in page.blocks.values()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    server = Hub(tmp_path_factory.mktemp("hub"))
    server.token = TOKEN
    yield server
    server.go_away()


@pytest.fixture(scope="module")
def app(hub: Hub, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app of a person with a token, for whom the Hub is the stand-in."""
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    folder = tmp_path_factory.mktemp("ship-app")
    app = App(folder, first=PATIENCE, HF_TOKEN=TOKEN, **online, **PATIENT)
    base = app.add_model(tiny_llama)
    plan = {"train_rows": 9, "held_out_rows": 1, "target_modules": ["q_proj"], "labels": []}
    write_answering(Settings(home=app.home), "sea", base, **plan)
    with app:
        yield app


def test_every_file_is_shown_before_it_leaves_and_then_it_leaves(
    visit: Visit, app: App, hub: Hub
) -> None:
    page = open_shipping(visit(app), "sea-1")
    put(page, "push-to", "owner/sea")
    page.click("#push-look")
    said = page.locator("#push-said")
    would = say("page.push_would", where="owner/sea", seen="private")
    new = say("shipping.place_new", where="owner/sea")
    expect(said).to_contain_text(f"{would} {new}", timeout=SLOW_MS)
    names = said.locator("td:first-child").all_inner_texts()
    assert names == sorted(names)
    assert {"README.md", "adapter_model.safetensors", "curves.png", "recipe.yaml"} <= set(names)
    said.locator("summary").click()
    expect(said.locator("pre")).to_contain_text("# sea-1")
    assert hub.made == {}

    # The merged model is not made for a look.
    page.locator("#push-merged input").check()
    page.click("#push-look")
    expect(said).to_contain_text("model.safetensors≈", timeout=SLOW_MS)
    assert not (app.home / "exports").exists()
    page.locator("#push-merged input").uncheck()

    page.click("#push-start")
    expect(said.locator("a")).to_have_text(f"{hub.url}/owner/sea", timeout=SLOW_MS)
    expect(said).to_contain_text(say("page.push_done", seen="private"))
    assert hub.made["owner/sea"].asked["visibility"] == "private"
    assert set(hub.made["owner/sea"].files) == set(names)
    page.click("#push-start")
    there = say("shipping.repository_exists", repository="owner/sea")
    expect(said).to_contain_text(there, timeout=SLOW_MS)
    assert TOKEN not in page.content()
    assert TOKEN not in app.log.read_text()


def test_what_would_leave_is_said_in_korean(visit: Visit, app: App) -> None:
    page = open_shipping(visit(app, locale="ko-KR"), "sea-1")
    put(page, "push-to", "owner/바다")
    page.click("#push-look")
    said = page.locator("#push-said")
    expect(said).to_contain_text("Hub에서 쓸 수 없는 이름", timeout=SLOW_MS)
    put(page, "push-to", "owner/bada")
    page.click("#push-look")
    would = say("page.push_would", "ko", where="owner/bada", seen="비공개")
    expect(said).to_contain_text(would, timeout=SLOW_MS)
    expect(page.locator("#push-updates")).to_contain_text(say("page.push_updates", "ko"))


def test_only_a_space_that_the_hub_made_known_lets_people_sign_in(tmp_path: Path) -> None:
    environments = [{}, OAUTH, SPACE, SPACE | OAUTH]
    home = {"LORA_STUDIO_HOME": str(tmp_path)}
    # In a process of its own: Gradio reads the environment when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", BUTTONS, json.dumps([one | home for one in environments])],
        env=os.environ | SPACE | OAUTH, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0, 0, 1]


def test_a_space_sends_people_to_the_hub_to_sign_in(hub: Hub, tmp_path: Path) -> None:
    space = App(tmp_path, **SPACE | OAUTH | {"OPENID_PROVIDER_URL": hub.url})
    try:
        space.start()
        answer = httpx.get(f"{space.url}/login/huggingface", follow_redirects=False)
        assert answer.is_redirect
        asked = httpx.URL(answer.headers["location"])
        assert str(asked).startswith(f"{hub.url}/oauth/authorize?")
        assert asked.params["scope"] == OAUTH["OAUTH_SCOPES"]
        assert asked.params["client_id"] == "the-app"
    finally:
        space.end()


@pytest.mark.parametrize(
    ("session", "token"),
    [
        ({"access_token": "hf_signed", "scope": "", "expires_at": 9e9}, "hf_signed"),
        ({"access_token": "hf_signed", "scope": "", "expires_at": 1}, "hf_typed"),
        (None, "hf_typed"),
    ],
)
def test_who_is_signed_in_pushes_as_themselves(session: dict[str, Any] | None, token: str) -> None:
    given: list[Any] = []

    def push(*_: object, **about: Any) -> Iterator[dict[str, Any]]:
        given.append(about["token"])
        yield from ()

    studio = SimpleNamespace(shipping=SimpleNamespace(push=push))
    panel = ShipPanel.__new__(ShipPanel)
    panel.door = SimpleNamespace(enter=lambda _: studio)  # type: ignore[assignment]
    request = gr.Request(session={"oauth_info": session} if session else {})
    request.cookies, request.headers = {}, {}  # type: ignore[attr-defined]
    typed = ["sea-1", "owner/sea", False, False, False, "hf_typed"]
    for handler in (panel.bring, panel.show_push):
        filled = special_args(handler, list(typed), request)[0]
        list(handler(*filled))
    assert given == [token, token]
