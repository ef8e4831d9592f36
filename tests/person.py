"""What a person does on the page, and how long they wait for it."""

from __future__ import annotations

from pathlib import Path

from browser import Witness
from playwright.sync_api import Page, expect

from lora_studio.wording import say

# A busy machine is no bug of the page.
expect.set_options(timeout=30_000)

SLOW_MS = 240_000
"""Milliseconds that a busy machine may take."""
LONG = 20_000
"""Steps that no test waits for."""
BROKEN_OFF = ("AbortError", "Unexpected error Connection errored out")
CURVE = "document.querySelector('#live .plot.loss')?.data?.[0]?.x.length"


def settle(page: Page) -> None:
    """Wait until the page has been filled by the server."""
    expect(page.locator("#total dd").first).to_be_visible(timeout=60_000)


def reload(page: Page, witness: Witness) -> None:
    """Open the page anew; Gradio's client complains of each request that this breaks off."""
    page.reload()
    settle(page)
    witness.complaints = [said for said in witness.complaints if not said.startswith(BROKEN_OFF)]


def unfold(page: Page, card: str) -> None:
    button = page.locator(f"#{card} > button").first
    if "open" not in (button.get_attribute("class") or ""):
        button.click()


def open_shipping(page: Page, name: str) -> Page:
    """Open an adapter of the library, and its ways to elsewhere."""
    page.click("#tab-library-button")
    page.locator(f'#library tr[data-id="{name}"] [data-act=open]').click()
    unfold(page, "ship")
    return page


def choose_tiny(page: Page, language: str = "en") -> None:
    unfold(page, "card-model")
    page.get_by_label(say("page.model_folder", language), exact=True).first.check()
    page.locator("#model-folder input").click()
    page.get_by_role("option", name="tiny").click()
    expect(page.locator("#model-info")).to_contain_text("LlamaForCausalLM", timeout=60_000)


def all_settings(page: Page, language: str = "en") -> None:
    """Open what the simple mode sets by itself."""
    page.locator("#settings-mode").get_by_label(say("page.mode_all", language)).check()
    expect(page.locator("#adapter-details")).to_be_visible()


def put(page: Page, setting: str, value: object) -> None:
    box = page.locator(f"#{setting} input:not([type=range]), #{setting} textarea").first
    box.fill(str(value))
    box.press("Tab")


def value(page: Page, setting: str) -> str:
    return page.locator(f"#{setting} input:not([type=range])").first.input_value()


def add(page: Page, *files: Path) -> None:
    page.set_input_files("#data-files input[type=file]", files)
    expect(page.locator(".ls-strip")).to_be_visible(timeout=60_000)


def start(page: Page, *, name: str, steps: int) -> None:
    put(page, "run-name", name)
    put(page, "max-steps", steps)
    expect(page.locator("#total")).to_contain_text(f"{steps:,}")
    expect(page.locator("#start")).to_be_enabled()
    page.click("#start")


def points_of(page: Page) -> int:
    """Wait for the loss curve; return how many points it has."""
    expect(page.locator("#live .plots")).to_be_visible(timeout=SLOW_MS)
    page.wait_for_function(f"{CURVE} > 0", timeout=SLOW_MS)
    return page.evaluate(CURVE)
