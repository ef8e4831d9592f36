"""Views that the browser draws: one scope with what all share, and an end with their element."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from lora_studio.ui.view import PLOTLY, script
from lora_studio.wording import ASSETS

VIEWS = sorted(file.stem for file in ASSETS.glob("*.html"))
FOLLOW = ("learn", "lengths", "library_sheet", "library_together", "live", "nf4")
"""Views that follow the theme, a slider of the page or the table."""
# As Gradio runs a script, in a page that counts who still listens to the document and its theme.
BEGIN = """
(script) => {
  window.heard = 0;
  const count = (owner, name, by) => {
    const real = owner[name];
    owner[name] = function (...rest) { window.heard += by; return real.apply(this, rest); };
  };
  count(MutationObserver.prototype, 'observe', 1);
  count(MutationObserver.prototype, 'disconnect', -1);
  count(document, 'addEventListener', 1);
  count(document, 'removeEventListener', -1);
  const server = new Proxy({}, { get: () => async () => ({ failed: true }) });
  const given = { element: document.querySelector('#view'), trigger() {}, props: { value: '' },
    server, upload: null, watch() {}, ...window.given };
  Function(...Object.keys(given), script)(...Object.values(given));
}
"""
# A server that answers what it was asked when it is told to, to a page whose time flies.
HOLD = """
() => {
  window.asked = []; window.told = [];
  const ask = (name) => () => new Promise((answer) => { asked.push({ name, answer }); });
  const server = new Proxy({}, { get: (_, name) => ask(name) });
  window.given = { server, trigger: (_, data) => told.push(data) };
  const later = window.setTimeout;
  window.setTimeout = (call, ms) => later(call, ms / 100);
  window.words = new Proxy({}, { get: (_, name) => String(name) });
  window.line = (runs, busy) => ({
    words, busy, title: '', why: '', told: '', rows: runs.map((run) => ({ run, about: '' })),
  });
  window.found = (star) => ({
    words, heads: { name: '' }, falling: [], tags: [], count: '', total: 1, found: 1,
    rows: [{ id: 'sea-1', name: 'sea-1', status: '', note: '', tags: [], star }],
  });
}
"""
END = """
async () => {
  document.querySelector('#view').remove();
  document.body.classList.toggle('dark');
  const names = ['input', 'change', 'library-changed'];
  for (const name of names) document.dispatchEvent(new Event(name));
  await new Promise((done) => { setTimeout(done); });
  return window.heard;
}
"""


@pytest.fixture
def blank(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


@pytest.mark.parametrize("name", [*VIEWS, "head"])
def test_a_view_declares_no_name_of_what_all_share(name: str) -> None:
    names = re.findall(
        r"^(?:const|let|(?:async )?function) (\w+)", script(name), flags=re.MULTILINE
    )
    assert "onTheme" in names
    assert sorted(set(names)) == sorted(names)


def test_a_view_fetches_plotly_from_this_server() -> None:
    assert f"'gradio_api/file={PLOTLY}'" in script("live")
    assert PLOTLY.is_file()


@pytest.mark.ui
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_that_is_gone_listens_to_nothing(name: str, blank: Page) -> None:
    html = (ASSETS / f"{name}.html").read_text(encoding="utf-8")
    blank.set_content(f"<div id='view'>{html}</div>")
    blank.evaluate(BEGIN, script(name))
    assert (name in FOLLOW) == (blank.evaluate("() => window.heard") > 0)
    assert blank.evaluate(END) == 0


@pytest.mark.ui
def test_a_loop_goes_on_after_a_failure_and_ends_with_its_view(blank: Page) -> None:
    blank.set_content("<div id='view'></div>")
    looks = "window.looks = 0; every(1, () => { window.looks += 1; throw new Error('offline'); });"
    blank.evaluate(BEGIN, (ASSETS / "view.js").read_text(encoding="utf-8") + looks)
    blank.wait_for_function("() => window.looks > 2")
    blank.evaluate(END)
    seen = blank.evaluate("() => window.looks")
    blank.wait_for_timeout(50)
    assert blank.evaluate("() => window.looks") == seen


def hold(page: Page, name: str) -> None:
    """Begin a view whose server answers when it is told to."""
    page.set_content(
        f"<div id='view'>{(ASSETS / f'{name}.html').read_text(encoding='utf-8')}</div>"
    )
    page.evaluate(HOLD)
    page.evaluate(BEGIN, script(name))


def answer(page: Page, number: int, said: str) -> None:
    """Wait until something is asked, counted from 0, and answer it."""
    page.wait_for_function(f"() => asked.length > {number}")
    page.evaluate(f"() => {{ asked[{number}].answer({said}); }}")


@pytest.mark.ui
def test_a_run_that_has_left_the_line_does_not_come_back_by_an_older_answer(blank: Page) -> None:
    hold(blank, "queue")
    answer(blank, 0, "line(['sea-1'], true)")
    blank.wait_for_function("() => asked.length > 1")
    blank.click("[data-act=leave]")
    answer(blank, 2, "line([], true)")
    answer(blank, 1, "line(['sea-1'], true)")
    blank.wait_for_function("() => asked.length > 3")
    assert blank.evaluate("() => asked.map((one) => one.name)") == ["line", "line", "leave", "line"]
    assert blank.locator("li").count() == 0


@pytest.mark.ui
def test_a_device_that_looks_free_between_two_runs_was_not(blank: Page) -> None:
    hold(blank, "queue")
    for number, busy in enumerate((True, False, True, False, False, False)):
        answer(blank, number, f"line([], {str(busy).lower()})")
    blank.wait_for_function("() => asked.length > 6")
    assert blank.evaluate("() => told") == [{"busy": True}, {"busy": False}]


@pytest.mark.ui
def test_a_table_does_not_show_what_was_found_before_the_last_look(blank: Page) -> None:
    hold(blank, "library")
    answer(blank, 0, "found(false)")
    answer(blank, 1, "{ failed: true }")  # how full the disk is
    blank.wait_for_function("() => asked.length > 2")
    blank.click("tbody [data-act=star]")
    answer(blank, 3, "{ told: '' }")
    answer(blank, 4, "found(true)")
    answer(blank, 2, "found(false)")
    blank.wait_for_function("() => asked.length > 5")
    names = blank.evaluate("() => asked.map((one) => one.name)")
    assert names == ["found", "room", "found", "star", "found", "found"]
    assert blank.locator("tbody [data-act=star]").get_attribute("aria-pressed") == "true"
