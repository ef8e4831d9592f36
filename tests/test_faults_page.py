"""What happens around a page, in real browsers: it is closed, there are two, its app is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from browser import App, Visit, Witness
from person import CURVE, LONG, add, all_settings, choose_tiny, points_of, start
from playwright.sync_api import Page, expect
from workers import until

from lora_studio.runs.events import read_events
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History
from lora_studio.wording import say

pytestmark = pytest.mark.ui
CURVE_BEGINS = CURVE.replace(".length", "[0]")


@pytest.fixture(scope="module")
def apps(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[App]]:
    """Two apps on one home folder."""
    first = App(tmp_path_factory.mktemp("app"))
    home = {"LORA_STUDIO_HOME": str(first.home)}
    other = App(tmp_path_factory.mktemp("other-app"), **home)
    first.add_model(tiny_llama)
    with first, other:
        yield [first, other]


def ready(page: Page, data: Path) -> Page:
    """Choose all that a run needs."""
    choose_tiny(page)
    all_settings(page)
    add(page, data)
    return page


def workers_of(folder: RunFolder) -> list[int]:
    """Return every process that writes a run's events."""
    found = psutil.process_iter(["pid", "open_files"])
    events = str(folder.events)
    return [
        one.info["pid"]
        for one in found
        if events in (file.path for file in one.info["open_files"] or ())
    ]


def starts_of(folder: RunFolder) -> int:
    return sum(event["event"] == "started" for event in read_events(folder.events)[0])


def test_a_run_outlives_its_page_and_two_apps_and_is_started_once_by_them(
    visit: Visit, witness: Witness, apps: list[App], pairs: Path
) -> None:
    one, other = apps
    here, there = (ready(visit(app), pairs) for app in apps)
    start(here, name="First", steps=LONG)
    points_of(here)

    # Its page is closed; a new one shows what was missed meanwhile.
    here.context.close()
    first, second = History(one.run("first-1")), History(one.run("second-1"))
    step = first.update().step
    until(first, holds=lambda found: found.step > step)
    here = visit(one)
    assert points_of(here) > step
    assert here.evaluate(CURVE_BEGINS) == 1
    expect(here.locator("#live .name")).to_have_text("first-1")

    # What one app started, the open page of the other shows; what it starts waits behind.
    expect(there.locator("#live .name")).to_have_text("first-1")
    points_of(there)
    expect(there.locator("#start")).to_have_text(say("page.start_queue"))
    start(there, name="Second", steps=LONG)
    waits = say("page.queue_joined", run="second-1", place=1)
    expect(there.locator("#said")).to_contain_text(waits)
    expect(here.locator("#queue .name")).to_have_text(["second-1"])

    # Paused by the other, it gives way to the next, which two dispatchers start once.
    there.click("#stop-pause")
    until(second, holds=lambda found: found.step)
    paused = first.update().step
    assert first.ending["paused"]
    assert len(workers_of(second.folder)) == 1
    assert starts_of(second.folder) == 1

    # To go on while another trains is to wait.
    expect(there.locator("#resume")).to_be_visible()
    there.click("#resume")
    goes_on = say("page.queue_joined", run="first-1", place=1)
    # The one that told of the pause may still be leaving.
    expect(there.get_by_test_id("toast-body").filter(has_text=goes_on)).to_be_visible()
    expect(there.locator("#live .state")).to_have_text(say("page.status_queued_again"))
    expect(there.locator("#stop-leave")).to_be_visible()
    expect(here.locator("#queue .name")).to_have_text(["first-1"])

    # Both apps die; the next one finds what trains and what waits.
    for app in apps:
        app.kill()
    step = second.update().step
    until(second, holds=lambda found: found.step > step)
    other.start()
    found = visit(other)
    expect(found.locator("#live .name")).to_have_text("second-1")
    expect(found.locator("#queue .name")).to_have_text(["first-1"])
    found.click("#stop-keep")
    until(first, holds=lambda waits: waits.resumes == 1 and waits.step > paused)
    assert len(workers_of(first.folder)) == 1
    assert second.update().ending["kept"]
    assert starts_of(first.folder) == 2
    other.end_runs()
    # An app that is killed answers nobody.
    for page in (here, there, found):
        page.context.close()
    witness.complaints.clear()
