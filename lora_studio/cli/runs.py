"""Commands that look at runs."""

from __future__ import annotations

import argparse
import sys

from lora_studio.cli.following import print_remedies
from lora_studio.cli.measuring import print_measured
from lora_studio.cli.parser import Command
from lora_studio.cli.showing import DONE, print_facts, print_json, studio_of
from lora_studio.errors import StudioError
from lora_studio.measuring.measurements import Measured
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.wording import say


def add(command: Command) -> None:
    """Add the commands that look at runs."""
    command("runs", _runs)
    show = command("show", _show)
    show.add_argument("run_id", metavar="RUN")
    show.add_argument("--json", action="store_true")


def _runs(_: argparse.Namespace, settings: Settings) -> int:
    found = studio_of(settings).runs.all()
    if not found:
        print(say("cli.no_runs"), file=sys.stderr)
    for history in found:
        loss = history.summary()["last_train_loss"]
        shown = "–" if loss is None else f"{loss:.3f}"
        print(f"{history.folder.id}\t{history.status}\t{history.step} steps\tloss {shown}")
    return DONE


def _show(options: argparse.Namespace, settings: Settings) -> int:
    studio = studio_of(settings)
    history = studio.runs.history(options.run_id)
    summary = history.summary() | {"resumable_step": history.resumable}
    if options.json:
        print_json(summary)
        return DONE
    warnings = summary.pop("warnings")
    print_facts({name: value for name, value in summary.items() if value != []})
    for found in _measured(studio, options.run_id):
        print_measured(found)
    if history.cause is not None:
        print(history.cause)
    if history.resumable is not None:
        print(say("cli.resume_with", step=history.resumable, run=options.run_id))
    for warning in warnings:
        print(warning)
    print_remedies(studio, options.run_id)
    return DONE


def _measured(studio: Studio, run_id: str) -> list[Measured]:
    """Return what was measured of a run's adapter, if it has one."""
    try:
        return studio.measurements.read_all(run_id)
    except StudioError:
        return []
