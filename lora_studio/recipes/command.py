"""A recipe as a line to type: of its file, or of every setting that is not the default."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from lora_studio.recipe import Recipe
from lora_studio.recipes.diff import changes

Shell = Literal["posix", "windows"]

PROGRAM = ("python", "-m", "lora_studio", "train")
# Written without quotes in YAML and in every shell.
PLAIN = re.compile(r"[A-Za-z][\w./-]*")
UNQUOTED = re.compile(r"[\w./:\\=@+-]+")
# cmd and PowerShell read these even between double quotes.
UNSAFE_ON_WINDOWS = re.compile(r'["%$`!\r\n\x00-\x1f]')


def train_file(file: str, shell: Shell = "posix") -> str | None:
    """Return the command that trains a recipe file; None where `shell` cannot name the file."""
    # A name that begins like an option is one, unless it is given with its folder.
    return _line([*PROGRAM, f"./{file}" if file.startswith("-") else file], shell)


def train_settings(recipe: Recipe, shell: Shell = "posix") -> str | None:
    """Return the command that trains without a recipe file; None if `shell` cannot express it.

    Windows' shells have no quotes that hold every character: a line break in a template, a `%` or
    a `"` needs the recipe file there.
    """
    words = [*PROGRAM]
    for change in changes(Recipe(), recipe):
        words += ["--set", f"{change.name}={in_one_line(change.right, shell)}"]
    return _line(words, shell)


def in_one_line(value: Any, shell: Shell = "posix") -> str:
    """Return a setting's value as YAML in one line, in single quotes for Windows."""
    dumper = _Posix if shell == "posix" else _Windows
    text = yaml.dump(
        _plain(value), Dumper=dumper, default_flow_style=True, allow_unicode=True, width=10**9
    )
    return str(text).removesuffix("\n").removesuffix("...").removesuffix("\n")


def _line(words: Sequence[str], shell: Shell) -> str | None:
    if shell == "posix":
        return shlex.join(words)
    if any(UNSAFE_ON_WINDOWS.search(word) for word in words):
        return None
    return " ".join(map(_quoted_on_windows, words))


def _quoted_on_windows(word: str) -> str:
    """Return a word in double quotes unless nothing in it means anything to cmd or PowerShell."""
    if UNQUOTED.fullmatch(word):
        return word
    quoted = subprocess.list2cmdline([word])
    if quoted.startswith('"'):
        return quoted
    # What it leaves bare, as & and |, is not bare to the shells; a last backslash is doubled.
    return f'"{word}\\"' if word.endswith("\\") else f'"{word}"'


class _Posix(yaml.SafeDumper):
    """Writes texts in double quotes, which hold a line break as an escape."""

    quote = '"'


class _Windows(yaml.SafeDumper):
    """Writes texts in single quotes, which stand within the shell's double ones as they are."""

    quote = "'"


def _text(dumper: Any, text: str) -> Any:
    is_plain = PLAIN.fullmatch(text) and yaml.safe_load(text) == text
    style = None if is_plain else dumper.quote
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _kind in (_Posix, _Windows):
    _kind.add_representer(str, _text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
