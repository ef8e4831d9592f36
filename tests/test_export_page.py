"""Exporting from the page: a zip, a merged model, and stopping one."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def app(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app with a tiny Llama, an adapter of it, and what a killed export left."""
    app = App(tmp_path_factory.mktemp("export-app"))
    base = app.add_model(tiny_llama)
    write_answering(Settings(home=app.home, offline=True), "sea", base)
    (app.home / "exports" / ".sea-1-gguf.exporting-x" / "half").mkdir(parents=True)
    with app:
        yield app


@pytest.fixture
def page(visit: Visit, app: App) -> Page:
    return open_shipping(visit(app), "sea-1")


def test_a_zip_and_a_merged_model_are_made_and_a_stopped_export_leaves_nothing(
    page: Page, app: App
) -> None:
    exports = app.home / "exports"
    assert list(exports.iterdir()) == []  # swept when the app began
    found = page.locator("#ship-found pre")
    page.locator("#ship-form").get_by_text(say("page.ship_zip"), exact=True).click()
    page.click("#ship-start")
    expect(found).to_contain_text("sea-1-adapter.zip", timeout=SLOW_MS)
    assert zipfile.is_zipfile(exports / "sea-1-adapter.zip")

    page.locator("#ship-form").get_by_text(say("page.ship_merged"), exact=True).click()
    page.click("#ship-start")
    expect(page.locator("#ship-stop")).to_be_enabled()
    page.click("#ship-stop")
    expect(page.locator("#ship-note")).to_contain_text(say("shipping.stopped"), timeout=SLOW_MS)
    assert [one.name for one in exports.iterdir()] == ["sea-1-adapter.zip"]
    expect(page.locator("#ship-stop")).to_be_disabled()
    expect(page.locator("#ship-stop")).to_have_text(say("page.stop"))

    page.click("#ship-start")
    expect(found).to_contain_text("sea-1-merged", timeout=SLOW_MS)
    expect(page.locator("#ship-note")).to_have_text("")
    assert (exports / "sea-1-merged" / "model.safetensors").is_file()
    assert sorted(one.name for one in exports.iterdir()) == ["sea-1-adapter.zip", "sea-1-merged"]
