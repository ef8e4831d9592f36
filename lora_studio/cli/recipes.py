"""Commands that take a recipe: what it trains on, what it takes, as a script, compared."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from lora_studio.cases.scripts import SCRIPT
from lora_studio.cli.parser import Command
from lora_studio.cli.showing import (
    DONE,
    megabytes,
    print_facts,
    print_json,
    result_of,
    studio_of,
)
from lora_studio.errors import RecipeError, RunError, StudioError
from lora_studio.files import reason_of
from lora_studio.recipe import Recipe
from lora_studio.recipes.command import in_one_line
from lora_studio.recipes.diff import changes
from lora_studio.recipes.library import Library
from lora_studio.recipes.upgrade import read_recipe
from lora_studio.settings import STARTER, Settings
from lora_studio.studio import Studio
from lora_studio.wording import say


def add(command: Command) -> None:
    """Add the commands that take or compare recipes."""
    preview = command("preview", _preview)
    script = command("script", _script)
    script.add_argument("--out", type=Path, metavar="FOLDER")
    guess = command("estimate", _estimate)
    for added in (preview, script, guess):
        take_recipe(added)
    for added in (preview, guess):
        added.add_argument("--json", action="store_true")
    command("recipes", _recipes).add_argument("name", nargs="?", metavar="NAME")
    diff = command("diff", _diff)
    for side in ("left", "right"):
        diff.add_argument(side, metavar="RECIPE|NAME|RUN")


def take_recipe(command: argparse.ArgumentParser) -> None:
    """Let a command take a recipe file; without one, the default recipe and what --set says."""
    command.add_argument("recipe", type=Path, metavar="RECIPE.yaml", nargs="?")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Read the recipe file; what it names is looked for beside it."""
    file: Path = options.recipe or Path("recipe.yaml")
    recipe = _read(file) if options.recipe else Recipe()
    changed = recipe.changed(options.set)
    beside = file.resolve().parent
    model = changed.model.source.strip()
    if model != STARTER and (beside / model).is_dir():
        changed = replace(changed, model=replace(changed.model, source=str(beside / model)))
    return changed.with_files(str(beside / Path(name).expanduser()) for name in changed.data.files)


def _preview(options: argparse.Namespace, settings: Settings) -> int:
    found = result_of(studio_of(settings).data.preview(recipe_of(options)))
    if options.json:
        print_json(found)
        return DONE
    print_facts({name: value for name, value in found.items() if isinstance(value, (int, str))})
    for label, train, held in found["labels"]:
        print(say("cli.class_rows", label=label, train=train, held=held))
    for sample in found["samples"]:
        print(f"--- {sample['label']}".rstrip())
        tokens = zip(sample["tokens"], sample["mask"], strict=True)
        print("".join(f"[{text}]" if trained else text for text, trained in tokens))
    return DONE


def _script(options: argparse.Namespace, settings: Settings) -> int:
    """Print a recipe as a script, or write it into a folder with the rows it trains on."""
    studio, recipe = studio_of(settings), recipe_of(options)
    if options.out is None:
        print(studio.scripts.text(recipe), end="")
        return DONE
    found = result_of(studio.scripts.write(recipe, options.out))
    print(say("cli.script_written", folder=str(options.out), **found), file=sys.stderr)
    print(options.out / SCRIPT)
    return DONE


def _estimate(options: argparse.Namespace, settings: Settings) -> int:
    """Say what a recipe would take, without training it."""
    studio, recipe = studio_of(settings), recipe_of(options)
    result_of(studio.models.inspect(recipe.model.source))
    problems = studio.planning.outlook(recipe).problems
    if problems:
        raise RecipeError.of(problems)
    report = result_of(studio.data.preview(recipe))
    result_of(studio.planning.calibrate(recipe))
    outlook = studio.planning.outlook(recipe, report)
    found = outlook.estimate
    if found is None:
        raise RecipeError.of(outlook.problems)
    if options.json:
        print_json(found.to_dict())
        return DONE
    memory, place = found.memory, found.place
    for name, value in (
        ("trainable_parameters", f"{found.parameters.trainable:,}"),
        ("total_parameters", f"{found.parameters.total:,}"),
        ("adapter", megabytes(found.parameters.adapter_bytes)),
        ("peak_memory", megabytes(memory.total)),
        *((f"  {part}", megabytes(size)) for part, size in memory.parts.items()),
        ("free_memory", megabytes(place.free)),
        ("optimizer_steps", found.steps),
        ("seconds", round(found.seconds or 0)),
    ):
        print(f"{name}: {value}")
    print(say(f"prediction.{found.verdict}"))
    for fix in outlook.fixes:
        settings_ = " ".join(f"--set {change}" for change in fix.changes)
        print(say("prediction.fix_setting", settings=settings_, saved=megabytes(fix.saved)))
    return DONE


def _recipes(options: argparse.Namespace, settings: Settings) -> int:
    """List the saved recipes, or print one as a recipe file."""
    library = Library.of(settings)
    if options.name is not None:
        print(library.load(options.name).to_yaml(), end="")
        return DONE
    found = library.listed()
    if not found:
        print(say("cli.no_recipes"), file=sys.stderr)
    for saved in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(saved.saved_at))
        print(f"{saved.name}\t{when}")
        if saved.problem is not None:
            print(saved.problem, file=sys.stderr)
    return DONE


def _diff(options: argparse.Namespace, settings: Settings) -> int:
    studio = studio_of(settings)
    left, right = (_found(studio, name) for name in (options.left, options.right))
    for change in changes(left, right):
        print(f"{change.name}: {in_one_line(change.left)} → {in_one_line(change.right)}")
    return DONE


def _found(studio: Studio, name: str) -> Recipe:
    """Return the recipe that a file, a saved name or a run's id stands for."""
    if Path(name).is_file():
        return _read(Path(name))
    if any(saved.name == name for saved in studio.recipes.listed()):
        return studio.recipes.load(name)
    try:
        return studio.runs.history(name).folder.read_recipe()
    except RunError as error:
        raise RecipeError.of([StudioError("recipes.unknown_anywhere", name=name)]) from error


def _read(file: Path) -> Recipe:
    """Read a recipe file, of this version or an earlier one."""
    try:
        return read_recipe(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError.of([StudioError("cli.recipe_missing", file=str(file))]) from error
    except UnicodeDecodeError as error:
        raise RecipeError.of([StudioError("cli.recipe_encoding", file=str(file))]) from error
    except OSError as error:
        problem = StudioError("cli.recipe_unreadable", file=str(file), reason=reason_of(error))
        raise RecipeError.of([problem]) from error
