"""Commands that keep things in order: adapters, names, the trash, a lower rank."""

from __future__ import annotations

import argparse
import sys
import time

from lora_studio.cli.parser import Command
from lora_studio.cli.showing import DONE, megabytes, print_json, result_of, studio_of
from lora_studio.errors import StudioError
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.wording import say


def add(command: Command) -> None:
    """Add the commands that keep things in order."""
    adapters = command("adapters", _adapters)
    adapters.add_argument("what", nargs="*", metavar="add PATH|ZIP|HUB_ID")
    adapters.add_argument("--base", default="", help=say("cli.adapters_base"))
    shrink = command("shrink", _shrink)
    shrink.add_argument("name", metavar="NAME")
    shrink.add_argument("--rank", type=int, required=True, metavar="N")
    for added in (adapters, shrink):
        added.add_argument("--json", action="store_true")
    delete = command("delete", _delete)
    delete.add_argument("names", nargs="+", metavar="NAME")
    restore = command("restore", _restore)
    restore.add_argument("name", nargs="?", metavar="NAME")
    rename = command("rename", _rename)
    rename.add_argument("name", metavar="NAME")
    rename.add_argument("new", metavar="NEW")


def _adapters(options: argparse.Namespace, settings: Settings) -> int:
    """List what can answer, or take one in from elsewhere."""
    studio = studio_of(settings)
    if options.what:
        if len(options.what) != 2 or options.what[0] != "add":
            raise StudioError("cli.adapters_usage")
        return _add(options, studio)
    found = [entry for entry in studio.library.entries() if entry.can_answer]
    if options.json:
        print_json([entry.to_dict() for entry in found])
        return DONE
    if not found:
        print(say("cli.no_adapters"), file=sys.stderr)
    for entry in found:
        facts = entry.facts
        loss = "–" if facts.loss is None else f"{facts.loss:.3f}"
        rank = f"r {facts.r}/{facts.lora_alpha}"
        print("\t".join([entry.id, entry.name, facts.base, rank, loss, megabytes(facts.bytes)]))
    return DONE


def _add(options: argparse.Namespace, studio: Studio) -> int:
    found = result_of(studio.adapters.add(options.what[1], base=options.base))
    doubt = studio.library.entry(found["id"]).doubt
    if options.json:
        print_json(found)
        return DONE
    if doubt is not None:
        print(doubt, file=sys.stderr)
    print(found["id"])
    return DONE


def _shrink(options: argparse.Namespace, settings: Settings) -> int:
    """Write it at a lower rank, measure it where there are held-out rows, say what it lost."""
    found = result_of(studio_of(settings).shrinking.shrink(options.name, options.rank))
    unchecked, predicted = found.pop("unchecked"), found.pop("predicted")
    if options.json:
        print_json(found | {"predicted_error": predicted})
        return DONE
    for told in (
        say("cli.shrink_predicted", rank=options.rank, error=predicted),
        say("cli.shrink_done", error=found["error"], size=megabytes(found["bytes"])),
    ):
        print(told, file=sys.stderr)
    if found["loss"] is not None:
        print(say("cli.shrink_loss", **found["loss"]), file=sys.stderr)
    else:
        print(unchecked or say("cli.shrink_unchecked"), file=sys.stderr)
    print(found["id"])
    return DONE


def _delete(options: argparse.Namespace, settings: Settings) -> int:
    studio = studio_of(settings)
    for key in studio.library.delete(options.names):
        print(say("cli.deleted", place=key), file=sys.stderr)
        print(key)
    return DONE


def _restore(options: argparse.Namespace, settings: Settings) -> int:
    """Put back what goes by that name in the trash, or went by it before; or list the trash."""
    studio = studio_of(settings)
    found = studio.library.deleted()
    if options.name is None:
        if not found:
            print(say("cli.trash_empty"), file=sys.stderr)
        for one in found:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.deleted_at))
            print(f"{one.key}\t{one.name}\t{when}\t{megabytes(one.bytes)}")
        return DONE
    keys = [one.key for one in found if options.name in (one.key, one.id)]
    print(studio.library.put_back(keys[:1] or [options.name])[0])
    return DONE


def _rename(options: argparse.Namespace, settings: Settings) -> int:
    studio_of(settings).library.say([options.name], name=options.new)
    return DONE
