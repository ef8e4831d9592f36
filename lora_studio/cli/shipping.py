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
from lora_studio.exports.orders import DTYPES, FORMS, QUANTIZATIONS
from lora_studio.exports.remarks import Remark, on_export, on_place, on_push
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
    _tell(*on_export(found), ("cli.export_size", {"size": megabytes(found["bytes"])}))
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
    _tell(*on_push(found))
    if found["address"] is not None:
        print(found["address"])
        return DONE
    for file in found["files"]:
        about = "~" if file["is_foreseen"] else ""
        print(f"{file['name']}\t{about}{file['bytes']:,}")
    total = megabytes(sum(file["bytes"] for file in found["files"]))
    where, seen = found["repository"], "private" if found["private"] else "public"
    _tell(("cli.push_would", {"where": where, "size": total, "seen": seen}), on_place(found))
    return DONE


def _awaited(events: Generator[dict[str, Any], None, None]) -> Any:
    """Return what comes of some work, None where Ctrl-C ended it and what was half made is gone."""
    try:
        with closing(events):
            return result_of(events)
    except KeyboardInterrupt:
        print(say("shipping.stopped"), file=sys.stderr)
        return None


def _tell(*remarks: Remark) -> None:
    """Print what is said beside the output itself."""
    for key, values in remarks:
        print(say(key, **values), file=sys.stderr)
