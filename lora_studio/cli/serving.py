"""The command that serves the page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lora_studio.cli.parser import Command
from lora_studio.cli.showing import DONE, FAILED
from lora_studio.settings import Settings
from lora_studio.wording import say


def add(command: Command) -> None:
    """Add the command that serves the page."""
    serve = command("serve", _serve)
    serve.add_argument("--host")
    serve.add_argument("--port", type=int)
    serve.add_argument("--model-folder", type=Path, action="append", metavar="DIR")


def _serve(_: argparse.Namespace, settings: Settings) -> int:
    from lora_studio.ui.server import serve

    print(say("cli.address", url=f"http://{settings.host}:{settings.port}"), file=sys.stderr)
    try:
        serve(settings)
    except OSError as error:
        if "port" not in str(error).lower():
            raise
        sentence = say("cli.port_taken", port=settings.port, other=settings.port + 1)
        print(sentence, file=sys.stderr)
        return FAILED
    return DONE
