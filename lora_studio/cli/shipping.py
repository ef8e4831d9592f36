"""Commands that take an adapter where it is needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from lora_studio.cli.parser import Command
from lora_studio.cli.showing import DONE, FAILED, megabytes, print_json, result_of, studio_of
from lora_studio.errors import from_dict
from lora_studio.exports.orders import DTYPES, FORMS, QUANTIZATIONS
from lora_studio.settings import Settings
from lora_studio.wording import say


def add(command: Command) -> None:
    """Add the commands that take an adapter where it is needed."""
    export = command("export", _export)
    export.add_argument("name", metavar="RUN")
    export.add_argument("--as", dest="form", choices=FORMS, required=True)
    export.add_argument("--out", type=Path, metavar="PATH", help=say("cli.export_out"))
    export.add_argument("--dtype", choices=DTYPES, help=say("cli.export_dtype"))
    export.add_argument("--quantization", choices=tuple(QUANTIZATIONS), default="f16")
    push = command("push", _push)
    push.add_argument("name", metavar="RUN")
    push.add_argument("--to", dest="repository", required=True, metavar="OWNER/NAME")
    push.add_argument("--merged", action="store_true", help=say("cli.push_merged"))
    push.add_argument("--public", action="store_true", help=say("cli.push_public"))
    push.add_argument("--update", action="store_true", help=say("cli.push_update"))
    push.add_argument("--dry-run", action="store_true", help=say("cli.push_dry"))
    for added in (export, push):
        added.add_argument("--json", action="store_true")


def _export(options: argparse.Namespace, settings: Settings) -> int:
    events = studio_of(settings).shipping.export(
        options.name,
        options.form,
        out=options.out,
        dtype=options.dtype,
        quantization=options.quantization,
    )
    found = _awaited(events)
    if found is None:
        return FAILED
    if options.json:
        print_json(found)
        return DONE
    _tell(found)
    print(found["path"])
    return DONE


def _push(options: argparse.Namespace, settings: Settings) -> int:
    """Bring an adapter to the Hub with the token of the environment, or say what would go."""
    found = _awaited(
        studio_of(settings).shipping.push(
            options.name,
            options.repository,
            merged=options.merged,
            private=not options.public,
            updates=options.update,
            is_dry=options.dry_run,
        )
    )
    if found is None:
        return FAILED
    if options.json:
        print_json(found)
        return DONE
    for note in found["notes"]:
        print(from_dict(note).say("en"), file=sys.stderr)
    if found["address"] is not None:
        print(found["address"])
        return DONE
    for file in found["files"]:
        about = "~" if file["is_foreseen"] else ""
        print(f"{file['name']}\t{about}{file['bytes']:,}")
    total = megabytes(sum(file["bytes"] for file in found["files"]))
    where, seen = found["repository"], "private" if found["private"] else "public"
    print(say("cli.push_would", where=where, size=total, seen=seen), file=sys.stderr)
    key = {True: "cli.push_there", False: "cli.push_new", None: "cli.push_unknown"}
    print(say(key[found["exists"]], where=where), file=sys.stderr)
    return DONE


def _awaited(events: Generator[dict[str, Any], None, None]) -> Any:
    """Return what comes of some work, None where Ctrl-C ended it and what was half made is gone."""
    try:
        with closing(events):
            return result_of(events)
    except KeyboardInterrupt:
        print(say("shipping.stopped"), file=sys.stderr)
        return None


def _tell(found: dict[str, Any]) -> None:
    """Print what was measured of an export, and what is to be said of it."""
    told = [from_dict(note).say("en") for note in found["notes"]]
    if found["check"] is not None:
        told.append(
            say(
                "cli.export_checked",
                check=found["check"]["relative"],
                change=found["change"]["relative"],
                tokens=found["check"]["tokens"],
            )
        )
    again = found["again"]
    if again is not None:
        starts = ", ".join(str(count) for count in again["answers"])
        of = again["answer_tokens"]
        told.append(say("cli.export_again", again=again["relative"], starts=starts, of=of))
    told.append(say("cli.export_size", size=megabytes(found["bytes"])))
    print("\n".join(told), file=sys.stderr)
