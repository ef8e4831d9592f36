"""What all commands share: a studio, a bar that shows progress, how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from lora_studio.cases.machine import Machine
from lora_studio.errors import DatasetError, RecipeError, StudioError
from lora_studio.models.hub import IN_BYTES
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.wording import say

DONE, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; a run or model failed; a bad recipe or usage, with all problems listed;
Ctrl-C, as shells have it."""
USAGE = ("settings.not_whole", "chat.bad_sampling", "cli.adapters_usage")


def result_of(events: Iterable[dict[str, Any]]) -> Any:
    """Show the stages of what takes a while and return its result."""
    found = None
    with tqdm(file=sys.stderr, leave=False, disable=None) as bar:
        for event in events:
            if "result" in event:
                found = event["result"]
            elif "stage" in event:  # else it says that others are before
                _draw(bar, event)
    return found


def _draw(bar: tqdm[Any], event: dict[str, Any]) -> None:
    stage, seconds = event["stage"], event.get("seconds_left")
    bar.set_description_str(say(f"page.stage_{stage}"), refresh=False)
    bar.unit, bar.unit_scale = ("B", True) if stage in IN_BYTES else ("it", False)
    bar.total, bar.n = event["total"] or None, event["done"]
    left = "" if seconds is None else say("cli.evaluate_left", seconds=round(seconds))
    bar.set_postfix_str(left, refresh=False)
    bar.refresh()


def print_json(found: Any) -> None:
    """Print what a program reads."""
    print(json.dumps(found, ensure_ascii=False))


def print_facts(found: dict[str, Any]) -> None:
    """Print names and values for a person."""
    for name, value in found.items():
        print(f"{name}: {value}")


def megabytes(size: int) -> str:
    """Return a size in bytes as a person reads it."""
    return f"{size / 1e6:,.0f} MB"


def code_of(error: StudioError) -> int:
    """Return 2 for what the person who typed can mend: recipe, data, environment, options."""
    mendable = isinstance(error, (RecipeError, DatasetError))
    return UNUSABLE if mendable or error.key in USAGE else FAILED


def studio_of(settings: Settings) -> Studio:
    """Return the studio of whoever types; heavy libraries run in this very process."""
    return Studio(settings, Machine.open(settings, isolated=False))
