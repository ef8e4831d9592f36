"""Commands that look into a model or an adapter."""

from __future__ import annotations

import argparse

from lora_studio.cli.parser import Command
from lora_studio.cli.showing import DONE, print_facts, print_json, result_of, studio_of
from lora_studio.models.description import ModelInfo
from lora_studio.settings import Settings
from lora_studio.wording import say


def add(command: Command) -> None:
    """Add the commands that look into a model or an adapter."""
    inspect = command("inspect", _inspect)
    inspect.add_argument("model", metavar="MODEL")
    xray = command("xray", _xray)
    xray.add_argument("run_id", metavar="RUN")
    for added in (inspect, xray):
        added.add_argument("--json", action="store_true")


def _inspect(options: argparse.Namespace, settings: Settings) -> int:
    info: ModelInfo = result_of(studio_of(settings).models.inspect(options.model))
    modules = [
        {name: getattr(group, name) for name in ("name", "count", "d_in", "d_out", "kind")}
        for group in info.modules
    ]
    names = ("architecture", "parameters", "layers", "context_length", "chat_template")
    found = {name: getattr(info, name) for name in names}
    if options.json:
        print_json(found | {"modules": modules})
        return DONE
    print_facts(found)
    for group in modules:
        print("  {name}: {count} × {kind} {d_in} → {d_out}".format(**group))
    return DONE


def _xray(options: argparse.Namespace, settings: Settings) -> int:
    found = result_of(studio_of(settings).adapters.xray(options.run_id))
    if options.json:
        print_json(found)
        return DONE
    print(say("cli.xray_line", rank=found["rank"], effective=found["effective_rank"]))
    if found["beside"]:
        print(say("page.xray_beside", count=found["beside"]))
    for module in found["modules"]:
        share = module["relative_norm"]
        shown = "–" if share is None else f"{share:.2%}"
        print(
            say(
                "cli.xray_module",
                name=module["name"],
                share=shown,
                effective=module["effective_rank"],
                rank=module["rank"],
            )
        )
    return DONE
