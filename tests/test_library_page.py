"""The Library tab in a browser: the table, one entry opened, several side by side, adding."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import App, Visit
from kept import save, write_answering, write_run
from person import SLOW_MS
from playwright.sync_api import Locator, Page, expect

from lora_studio.library.names import PEFT, resolve
from lora_studio.settings import Settings
from lora_studio.wording import say

pytestmark = [
    pytest.mark.ui,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def app(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app with a random two-layer Llama among its models, and no run yet."""
    app = App(tmp_path_factory.mktemp("library-app"))
    app.add_model(tiny_llama)
    with app:
        yield app


@pytest.fixture
def settings(app: App) -> Iterator[Settings]:
    """Three runs, one of them with an adapter that does something."""
    settings = Settings(home=app.home, offline=True)
    base = str(app.home / "models" / "tiny")
    write_run(settings, "poems", "adapter.r=4", f"model.source={base}", losses=(3, 2, 1))
    write_run(settings, "news", "adapter.r=32", f"model.source={base}", losses=(3, 0.25))
    write_answering(settings, "sea", base, r=8, losses=(2.0,))
    yield settings
    for name in ("runs", "adapters", "trash", "library.json"):
        path = app.home / name
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


@pytest.fixture
def open_library(visit: Visit, app: App) -> Open:
    """Open the tab."""

    def opened(locale: str = "en-US", width: int = 1360) -> Page:
        page = visit(app, locale=locale, width=width)
        page.click("#tab-library-button")
        expect(page.locator("#library .count")).not_to_be_empty()
        return page

    return opened


def shows(page: Page, *expected: str) -> None:
    expect(page.locator("#library tbody [data-act=open]")).to_have_text(list(expected))


def row(page: Page, entry: str) -> Locator:
    return page.locator(f'#library tr[data-id="{entry}"]')


def unfold(page: Page, entry: str) -> None:
    row(page, entry).locator("[data-act=open]").click()
    expect(page.locator("#library-sheet h3")).not_to_be_empty()


def test_an_empty_library_offers_the_first_step(open_library: Open) -> None:
    page = open_library()
    nothing = page.locator("#library .nothing")
    expect(nothing).to_contain_text(say("page.library_nothing"))
    nothing.get_by_role("button").click()
    expect(page.locator("#start")).to_be_visible()


def test_what_is_looked_for_is_found_ordered_starred_and_tagged(
    settings: Settings, open_library: Open
) -> None:
    page = open_library()
    shows(page, "sea-1", "news-1", "poems-1")
    search = page.locator("#library .search")
    search.fill("tiny POEMS")
    shows(page, "poems-1")
    expect(page.locator("#library .count")).to_have_text(
        say("page.library_count", found=1, total=3)
    )
    search.fill("nobody")
    expect(page.locator("#library .nothing")).to_be_visible()
    page.locator("#library .nothing").get_by_role("button").click()

    loss = page.locator("#library th.loss")
    loss.get_by_role("button").click()
    shows(page, "news-1", "poems-1", "sea-1")
    expect(loss).to_have_attribute("aria-sort", "ascending")
    loss.get_by_role("button").press("Enter")
    shows(page, "sea-1", "poems-1", "news-1")
    page.locator("#library th.r").get_by_role("button").click()
    shows(page, "poems-1", "sea-1", "news-1")

    star = row(page, "news-1").locator("[data-act=star]")
    star.focus()
    star.press("Enter")
    expect(star).to_have_attribute("aria-pressed", "true")
    expect(star).to_be_focused()
    page.get_by_label(say("page.library_starred")).check()
    shows(page, "news-1")
    page.get_by_label(say("page.library_starred")).uncheck()
    shows(page, "poems-1", "sea-1", "news-1")

    for entry in ("poems-1", "sea-1"):
        row(page, entry).locator("[data-act=pick]").check()
    expect(page.locator("#library .many")).to_have_text("2 chosen")
    page.locator("#library .new-tag").fill("keep")
    page.locator("#library .new-tag").press("Enter")
    expect(row(page, "sea-1").locator(".by-tag")).to_have_text("keep")
    row(page, "sea-1").locator(".by-tag").click()
    shows(page, "poems-1", "sea-1")

    page = open_library()
    expect(row(page, "news-1").locator("[data-act=star]")).to_have_attribute("aria-pressed", "true")
    expect(row(page, "poems-1").locator(".by-tag")).to_have_text("keep")


def test_what_is_deleted_is_put_back_by_one_click(settings: Settings, open_library: Open) -> None:
    page = open_library()
    unfold(page, "poems-1")
    sheet = page.locator("#library-sheet")
    expect(sheet.locator("dl")).to_contain_text("4 / 32")
    sheet.locator("[name=note]").fill("the best so far")
    sheet.locator("[name=name]").fill("Sea poems <b>1</b>")
    sheet.locator("[name=name]").press("Tab")
    shows(page, "sea-1", "news-1", "Sea poems <b>1</b>")
    expect(row(page, "poems-1").locator(".note")).to_have_text("the best so far")

    sheet.locator("[data-act=delete]").click()
    shows(page, "sea-1", "news-1")
    expect(page.locator("#library .told")).to_contain_text("Sea poems")
    expect(sheet.locator("h3")).to_be_hidden()
    undo = page.locator("#library [data-act=undo]")
    expect(undo).to_be_focused()
    undo.press("Enter")
    shows(page, "sea-1", "news-1", "Sea poems <b>1</b>")
    assert resolve("poems-1", settings).run is not None

    for entry in ("news-1", "sea-1"):
        row(page, entry).locator("[data-act=pick]").check()
    page.locator("#library [data-act=delete-all]").click()
    shows(page, "Sea poems <b>1</b>")
    trash = page.locator("#library .trash")
    trash.locator("summary").click()
    expect(trash.locator("li")).to_have_count(2)
    trash.locator("li").first.get_by_role("button").click()
    expect(trash.locator("li")).to_have_count(1)
    trash.locator("[data-act=empty]").click()
    expect(trash.locator(".sure")).to_contain_text(say("page.library_empty_sure"))
    trash.locator("[data-act=empty-sure]").click()
    expect(trash).to_be_hidden()
    expect(page.locator("#library tbody [data-act=open]")).to_have_count(2)
    assert not list(settings.trash.iterdir())


def test_an_adapter_is_looked_into_and_made_smaller(settings: Settings, open_library: Open) -> None:
    page = open_library()
    unfold(page, "sea-1")
    page.locator("#library-sheet [data-act=xray]").click()
    xray = page.locator("#library-xray")
    cells = xray.locator(".heat button")
    expect(cells).to_have_count(4, timeout=SLOW_MS)  # q and v of two layers
    expect(xray.locator(".lead")).to_have_text(
        re.compile("Rank 8 was asked, 95 % .* lives in [1-8]")
    )
    assert "lora" not in (xray.locator(".bars").get_attribute("aria-label") or "")
    cells.first.focus()
    cells.first.press("ArrowRight")
    expect(cells.nth(1)).to_be_focused()
    cells.nth(1).press("Enter")
    expect(cells.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(xray.locator(".cell")).to_contain_text("model.layers.1.self_attn.q_proj")

    slider = xray.locator("input[type=range]")
    slider.fill("3")
    expect(xray.locator("output")).to_have_text("3")
    predicted = re.search(r"lose ([\d.]+) %", xray.locator(".loses").inner_text())
    assert predicted is not None
    xray.locator(".shrink button").click()
    expect(page.locator("#library-note .good")).to_contain_text("sea-1-r3-a1", timeout=SLOW_MS)
    expect(page.locator("#library-sheet h3")).to_have_text("sea-1-r3-a1")
    expect(page.locator("#library-sheet .origin")).to_contain_text(f"{predicted[1]} %")
    shows(page, "sea-1-r3-a1", "sea-1", "news-1", "poems-1")
    assert resolve("sea-1-r3-a1", settings).source == str(settings.models / "tiny")

    with page.expect_download() as download:
        page.locator("#library-sheet [data-act=download]").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())
        assert not {"about.json", "origin.json"} & set(archive.namelist())


def test_runs_stand_side_by_side(settings: Settings, open_library: Open) -> None:
    page = open_library()
    for entry in ("poems-1", "news-1"):
        row(page, entry).locator("[data-act=pick]").check()
    together = page.locator("#library-together")
    expect(together.locator(".differences")).to_contain_text("adapter.r")
    expect(together.locator(".differences tr")).to_have_count(4)  # title, name, files, r
    expect(together.locator(".answers")).to_contain_text("news says hello")
    page.wait_for_function("document.querySelector('#library-together .plot')?.data?.length === 4")
    label = together.locator(".plot").get_attribute("aria-label") or ""
    assert "poems-1: training loss 1.000, held-out loss 1.500" in label
    page.locator("#library [data-act=clear]").click()
    expect(together.locator(".title")).to_be_hidden()


def test_an_adapter_comes_in_as_a_zip_or_says_why_not(
    settings: Settings, open_library: Open, tmp_path: Path
) -> None:
    page = open_library()
    folder = save(str(settings.models / "tiny"), tmp_path / "harbour")
    good, bad = tmp_path / "harbour.zip", tmp_path / "bad.zip"
    with zipfile.ZipFile(good, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"harbour/{file.name}")
    bad.write_bytes(b"no zip")
    page.locator("#library-add > button").click()
    page.click("#add-go")
    expect(page.locator("#add-said .bad")).to_contain_text(say("library.nothing_given"))
    page.set_input_files("#add-zip input[type=file]", bad)
    expect(page.locator("#add-zip .file-preview")).to_contain_text("bad")  # it has arrived
    page.click("#add-go")
    expect(page.locator("#add-said .bad")).to_contain_text("bad.zip", timeout=SLOW_MS)
    shows(page, "sea-1", "news-1", "poems-1")
    page.locator("#add-zip").get_by_label("Remove this file").or_(
        page.locator("#add-zip [aria-label=Clear]")
    ).first.click()
    page.set_input_files("#add-zip input[type=file]", good)
    expect(page.locator("#add-zip .file-preview")).to_contain_text("harbour")
    page.click("#add-go")
    expect(page.locator("#add-said .good")).to_contain_text("harbour-a1", timeout=SLOW_MS)
    shows(page, "harbour-a1", "sea-1", "news-1", "poems-1")
    expect(page.locator("#library-sheet .origin")).to_contain_text("harbour.zip")
    assert (settings.adapters / "harbour-a1" / PEFT).is_dir()


def test_settings_are_reused_and_an_adapter_is_compared(
    settings: Settings, open_library: Open
) -> None:
    page = open_library()
    unfold(page, "poems-1")
    page.locator("#library-sheet [data-act=reuse]").click()
    expect(page.locator("#start")).to_be_visible()
    expect(page.get_by_role("slider", name="(r)").first).to_have_value("4")
    page.click("#tab-library-button")
    page.locator("#library-sheet [data-act=compare]").click()
    expect(page.locator("#compare-run input")).to_have_value("poems-1")


def test_the_library_in_korean_on_a_phone(settings: Settings, open_library: Open) -> None:
    page = open_library("ko-KR", 390)
    expect(page.locator("#library .search")).to_have_attribute(
        "placeholder", say("page.library_search", "ko")
    )
    expect(page.locator("#library th.loss")).to_have_text("검증 손실")
    unfold(page, "sea-1")
    expect(page.locator("#library-sheet dl")).to_contain_text("끝남")
    page.locator("#library-sheet [data-act=xray]").click()
    expect(page.locator("#library-xray .lead")).to_contain_text("랭크 8", timeout=SLOW_MS)
    page.locator("#library-sheet [data-act=delete]").click()
    expect(page.locator("#library .told")).to_contain_text("휴지통")
    page.locator("#library [data-act=undo]").click()
    expect(page.locator("#library .told")).to_contain_text("되돌렸어요: sea-1")
    shows(page, "sea-1", "news-1", "poems-1")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "nothing stands out to the side"
