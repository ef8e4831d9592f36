"""Exporting from the page: a zip, a merged model, and stopping one."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import App, Visit
from kept import write_answering
from person import SLOW_MS, open_shipping
from playwright.sync_api import Page, expect

from lora_studio.settings import Settings
from lora_studio.wording import say

pytestmark = pytest.mark.ui
# An export that has its place to itself asks how much room there is: it waits for that at a gate.
GATE = """
import multiprocessing, pathlib, shutil, time
gate, usage = pathlib.Path({gate!r}), shutil.disk_usage
def wait(folder):
    while multiprocessing.parent_process() and gate.exists():
        time.sleep(0.05)
    return usage(folder)
shutil.disk_usage = wait
"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports wait while this file is there."""
    return tmp_path_factory.mktemp("gate") / "shut"


@pytest.fixture(scope="module")
def app(tiny_llama: Path, gate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app with a tiny Llama, an adapter of it, and what a killed export left."""
    app = App(tmp_path_factory.mktemp("export-app"), first=GATE.format(gate=str(gate)))
    base = app.add_model(tiny_llama)
    write_answering(Settings(home=app.home, offline=True), "sea", base)
    (app.home / "exports" / ".sea-1-gguf.exporting-x" / "half").mkdir(parents=True)
    with app:
        yield app


@pytest.fixture
def page(visit: Visit, app: App) -> Page:
    return open_shipping(visit(app), "sea-1")


def until_there(file: Path) -> None:
    deadline = time.monotonic() + SLOW_MS / 1000
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_zip_and_a_merged_model_are_made_and_a_stopped_export_leaves_nothing(
    page: Page, app: App, gate: Path
) -> None:
    exports = app.home / "exports"
    assert list(exports.iterdir()) == []  # swept when the app began
    found = page.locator("#ship-found pre")
    page.locator("#ship-form").get_by_text(say("page.ship_zip"), exact=True).click()
    page.click("#ship-start")
    expect(found).to_contain_text("sea-1-adapter.zip", timeout=SLOW_MS)
    assert zipfile.is_zipfile(exports / "sea-1-adapter.zip")

    page.locator("#ship-form").get_by_text(say("page.ship_merged"), exact=True).click()
    gate.touch()
    page.click("#ship-start")
    until_there(exports / ".sea-1-merged.lock")
    page.click("#ship-stop")
    expect(page.locator("#ship-stop")).to_have_text(say("page.ship_stopping"))
    gate.unlink()
    expect(page.locator("#ship-note")).to_contain_text(say("shipping.stopped"), timeout=SLOW_MS)
    assert [one.name for one in exports.iterdir()] == ["sea-1-adapter.zip"]
    expect(page.locator("#ship-stop")).to_be_disabled()
    expect(page.locator("#ship-stop")).to_have_text(say("page.stop"))

    page.click("#ship-start")
    expect(found).to_contain_text("sea-1-merged", timeout=SLOW_MS)
    expect(page.locator("#ship-note")).to_have_text("")
    assert (exports / "sea-1-merged" / "model.safetensors").is_file()
    assert sorted(one.name for one in exports.iterdir()) == ["sea-1-adapter.zip", "sea-1-merged"]
