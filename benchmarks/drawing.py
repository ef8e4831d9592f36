"""What the page's drawing of answers costs the model, on a machine that runs both.

    python -m benchmarks.drawing HOME [--rounds 3] [--paces 6 12 24]

HOME is a home folder whose newest adapter is compared with its base. The page is opened in
Chromium, and both continue a count for as many tokens as asked, at several paces in turns, so that
whatever else the machine does meets them all. A pace is how many panes are drawn in a second; what
is printed is what the page says of an answer's speed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.startup import PATIENCE_S, ROOT, chromium_browser, fetch, free_port

PACED = """
import sys
from lora_studio.cli.main import main
from lora_studio.ui import asking
asking.PANE_EVERY_S = 1 / float(sys.argv[1])
sys.exit(main(["serve", "--port", sys.argv[2]]))
"""
COUNT = "1, 2, 3, 4, 5, 6,"
WARM_TOKENS = 8


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--paces", type=float, nargs="+", default=[6, 8, 12, 24])
    options = parser.parse_args()
    found: dict[float, list[float]] = {pace: [] for pace in options.paces}
    for _ in range(options.rounds):
        for pace in options.paces:
            found[pace].append(speed(options.home, pace, options.tokens))
            print(f"{pace:5.1f} panes a second: {found[pace][-1]:6.1f} tokens/s each", flush=True)
    print(f"\nmedians of {options.rounds}")
    for pace, speeds in found.items():
        print(f"{pace:5.1f} panes a second: {statistics.median(speeds):6.1f} tokens/s each")
    return 0


def speed(home: Path, pace: float, tokens: int) -> float:
    """Ask once for a few tokens, then for all; return tokens per second of the base."""
    port = free_port()
    environment = os.environ | {"LORA_STUDIO_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment["LORA_STUDIO_READY_WORKER"] = "0"
    command = [sys.executable, "-c", PACED, str(pace), str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        fetch(f"http://127.0.0.1:{port}", process)
        return ask(f"http://127.0.0.1:{port}", tokens)
    finally:
        process.terminate()
        process.wait()


def ask(address: str, tokens: int) -> float:
    """Have base and adapter continue a count on the page."""
    with chromium_browser() as browser:
        page = browser.new_page(viewport={"width": 1360, "height": 1400}, locale="en-US")
        page.set_default_timeout(PATIENCE_S * 1000)
        page.goto(address)
        page.click("#tab-compare-button")
        page.wait_for_function("document.querySelector('#compare-run input')?.value")
        page.click("#compare-more > button")
        page.get_by_label("continue the text", exact=True).check()
        for wanted in (WARM_TOKENS, tokens):
            page.fill("#max-new-tokens input[type=number]", str(wanted))
            page.press("#max-new-tokens input[type=number]", "Tab")
            page.fill("#question textarea", COUNT)
            page.click("#send")
            page.wait_for_selector(f"#pane-0-rate:has-text('· {wanted} tokens')")
        return float(page.inner_text("#pane-0-rate").split()[0])


if __name__ == "__main__":
    sys.exit(main())
