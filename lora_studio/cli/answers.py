"""The command that asks base and adapter."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lora_studio.chat.request import Pane, Sampling, finished
from lora_studio.cli.parser import Command
from lora_studio.cli.showing import DONE, print_facts, print_json, studio_of
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.wording import say


def add(command: Command) -> None:
    """Add the command that asks base and adapter."""
    ask = command("ask", _ask)
    ask.add_argument("run_id", metavar="RUN")
    ask.add_argument("question")
    ask.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    ask.add_argument("--greedy", action="store_true")
    ask.add_argument("--json", action="store_true")


def _ask(options: argparse.Namespace, settings: Settings) -> int:
    sampling = Sampling(greedy=options.greedy, max_new_tokens=options.max_new_tokens)
    studio = studio_of(settings)
    if studio.answers.labels(options.run_id):
        return _classify(options, studio)
    question = [{"role": "user", "content": options.question}]
    panes = [
        Pane(adapter=None, messages=question),  # type: ignore[arg-type]
        Pane(adapter=options.run_id, messages=question),  # type: ignore[arg-type]
    ]
    answers = ["", ""]
    for event in finished(studio.answers.ask(options.run_id, panes, sampling)):
        if "pane" in event:
            answers[event["pane"]] = event["text"].strip()
    found = dict(zip(("base", "adapter"), answers, strict=True))
    if options.json:
        print_json(found)
    else:
        print_facts(found)
    return DONE


def _classify(options: argparse.Namespace, studio: Studio) -> int:
    """Print how likely each class is to the base and to the adapter, the likeliest first."""
    found: dict[str, Any] = {}
    for event in studio.answers.classify(options.run_id, options.question):
        if "labels" in event:
            found = event
    shown = {
        side: dict(zip(found["labels"], found[side], strict=True)) for side in ("base", "adapter")
    }
    if options.json:
        print_json(shown)
        return DONE
    print(say("cli.untrained_head"), file=sys.stderr)
    for side, shares in shown.items():
        ordered = sorted(shares.items(), key=lambda pair: -pair[1])
        print(f"{side}: " + ", ".join(f"{label} {share:.1%}" for label, share in ordered))
    return DONE
