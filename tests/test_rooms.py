"""The rooms of ARCHITECTURE.md: who may import whom, and what the page's process never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lora_studio

PACKAGE = Path(lora_studio.__file__).parent
# Top to bottom: a room imports rooms above it; those of one line do not know each other.
ORDER = [
    {"wording", "files"},
    {"errors"},
    {"recipe"},
    {"settings"},
    {"recipes"},
    {"child"},
    {"hardware"},
    {"methods"},
    {"data"},
    {"models"},
    {"prediction"},
    {"recommendations"},
    {"runs"},
    {"training", "adapters"},
    {"chat"},
    {"measuring", "judging", "library"},
    {"outlook"},
    {"exports"},
    {"workbench"},
    {"cases"},
    {"studio"},
    {"ui"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate"}
# Rooms the page's process imports may not import these at the top of a module, or at all.
LIGHT = {
    "wording",
    "files",
    "errors",
    "recipe",
    "settings",
    "recipes",
    "child",
    "hardware",
    "methods",
    "runs",
    "judging",
    "library",
}

Import = tuple[Path, str]


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return [file for file in sorted(PACKAGE.rglob("*.py")) if file.parent != PACKAGE
            or file.name != "__init__.py"]  # fmt: skip


def imports(file: Path) -> list[str]:
    """Return the full names of every module a file imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_room_has_its_place() -> None:
    assert {room_of(file) for file in modules()} == set(LEVEL)


def test_a_room_imports_only_rooms_above_it() -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for file in modules()
        for name in imports(file)
        if name.startswith("lora_studio.")
        and (room := name.split(".")[1]) != room_of(file)
        and not LEVEL[room] < LEVEL[room_of(file)]
    ]
    assert not wrong


def test_only_the_page_imports_gradio() -> None:
    wrong = [
        str(file.relative_to(PACKAGE))
        for file in modules()
        if room_of(file) != "ui" and any(name.split(".")[0] == "gradio" for name in imports(file))
    ]
    assert not wrong


@pytest.mark.parametrize("room", sorted(LIGHT | {"ui", "cli", "studio"}))
def test_a_light_room_names_no_heavy_library(room: str) -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for file in modules()
        if room_of(file) == room
        for name in imports(file)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong


def test_a_package_says_what_it_is_and_does_nothing() -> None:
    for file in PACKAGE.rglob("__init__.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        assert len(body) == 1, file
        assert isinstance(body[0], ast.Expr), file
        assert isinstance(body[0].value, ast.Constant), file


def test_the_page_is_built_without_a_heavy_library(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
import lora_studio.ui.server
from lora_studio.settings import Settings
from lora_studio.cases.machine import Machine
from lora_studio.studio import Studio
from lora_studio.ui.page import build_page
settings = Settings(home=Path({str(tmp_path)!r}), offline=True)
build_page(Studio(settings, Machine.open(settings, isolated=True)))
print(sorted({HEAVY - {"datasets", "accelerate"}!r} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE.parent,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
