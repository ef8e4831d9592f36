"""How long does the library take to list many runs?

    python -m benchmarks.library --runs 500 --steps 500

Writes finished runs into a temporary home and times, in processor seconds: the first look ever,
one after a restart of the app, one while the page is open, and a search with another order.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lora_studio.library.entries import Table, matching, ordered
from lora_studio.recipe import Recipe
from lora_studio.runs.folder import WEIGHTS, create
from lora_studio.settings import Settings

STEP = {"loss": 1.5, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_s": 100.0,
        "memory_bytes": 1e9, "seconds_left": 1.0, "seconds": 1.0, "tokens": 1000}  # fmt: skip


def fill(settings: Settings, runs: int, steps: int) -> None:
    """Write finished runs as their workers leave them."""
    events = [{"event": "started", "precision": "fp32", "total_steps": steps}]
    events += [{"event": "step", "step": step} | STEP for step in range(1, steps + 1)]
    events += [{"event": "eval", "step": step, "loss": 1.4} for step in range(0, steps + 1, 50)]
    events += [{"event": "finished"}]
    text = "".join(json.dumps({"time": 1.0 + at} | one) + "\n" for at, one in enumerate(events))
    for number in range(runs):
        run = create(settings.runs, Recipe.from_dict({"name": f"poems-{number % 7}"}))
        run.events.write_text(text, encoding="utf-8")
        run.process.write_text('{"pid": 4194305, "started": 0}', encoding="utf-8")
        run.adapter.mkdir()
        (run.adapter / WEIGHTS).write_bytes(b"weights")


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of some work."""
    before = time.process_time()
    work()
    return time.process_time() - before


def main() -> None:
    """Print the times as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home))
        fill(settings, options.runs, options.steps)
        first = seconds(Table(settings).entries)
        table = Table(settings)
        restart, again = seconds(table.entries), seconds(table.entries)
        found = table.entries()
        search = seconds(lambda: ordered(matching(found, "poems 3"), "loss", falling=False))
    times = {"first": first, "after_restart": restart, "again": again, "search": search}
    print(json.dumps({name: round(value, 4) for name, value in times.items()}))


if __name__ == "__main__":
    main()
