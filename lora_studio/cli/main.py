"""`python -m lora_studio`: reads what was typed and runs one command.

What a program reads goes to stdout, what a person reads to stderr.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from lora_studio.cli import (
    answers,
    library,
    measuring,
    models,
    recipes,
    runs,
    serving,
    shipping,
    training,
)
from lora_studio.cli.parser import Command
from lora_studio.cli.showing import INTERRUPTED, code_of
from lora_studio.errors import StudioError
from lora_studio.settings import Settings
from lora_studio.wording import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    # Inherited by every process that computes. torch's threads (GNU OpenMP) spin while they wait
    # for each other, which stalls a machine whose owner is also working. Spinning less is 1.2
    # times as fast beside one busy process, and 2 to 11 % slower on a quiet machine
    # (benchmarks/waiting_threads.py).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        settings = Settings.from_environment(
            host=getattr(options, "host", None),
            port=getattr(options, "port", None),
            model_folders=tuple(getattr(options, "model_folder", None) or ()) or None,
        )
        code: int = options.run(options, settings)
    except StudioError as error:
        print(error, file=sys.stderr)
        return code_of(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lora_studio", description=say("cli.description"))
    command = Command(parser)
    for group in (serving, training, recipes, runs, models, library, answers, measuring, shipping):
        group.add(command)
    return parser
