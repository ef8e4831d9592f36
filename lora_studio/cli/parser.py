"""How a command is added to the parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from lora_studio.settings import Settings
from lora_studio.wording import say

Run = Callable[[argparse.Namespace, Settings], int]
"""Does what a command says and returns the exit code."""


class Command:
    """Adds commands to a parser, each with its sentence of the table."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def __call__(self, name: str, run: Run) -> argparse.ArgumentParser:
        """Add a command and return its own parser, for its arguments."""
        added = self._commands.add_parser(name, help=say(f"cli.{name}"))
        added.set_defaults(run=run)
        return added
