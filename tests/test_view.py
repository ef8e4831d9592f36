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
    server, upload: null, watch() {} };
  Function(...Object.keys(given), script)(...Object.values(given));
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
