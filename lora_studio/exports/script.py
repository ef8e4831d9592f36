"""A recipe as a Python script over transformers, peft and trl alone, to read and to run.

The text is `assets/script.py.jinja`; what a recipe does not use is not in its script. One that
sorts texts into classes has parts of its own, `assets/script_classification.py.jinja`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from unicodedata import east_asian_width

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from lora_studio.errors import RecipeError, StudioError
from lora_studio.hardware import QUANTISED
from lora_studio.models.accounting import fan_in_fan_out, target_modules
from lora_studio.models.description import HEAD_STD, ModelInfo
from lora_studio.models.sources import hub_name
from lora_studio.recipe import ALL_LINEAR, Recipe, TaskName
from lora_studio.settings import STARTER
from lora_studio.training.plan import ANSWER_ROWS, EVALS_PER_RUN, PAUSES, POOL
from lora_studio.wording import ASSETS, say

TEMPLATES = {
    "CAUSAL_LM": "script.py.jinja",
    "SEQ_CLS": "script_classification.py.jinja",
}
WIDTH = 100
WIDE = 2
"""A Korean letter is as wide as two Latin ones."""
NOT_EXPORTED = ("eva", "loftq", "pissa")
"""Ways for A and B to begin that take more than peft's own settings: rows, weights, a conversion
when saving."""
LIBRARIES = {
    "CAUSAL_LM": ("transformers", "peft", "trl", "datasets", "accelerate"),
    "SEQ_CLS": ("transformers", "peft", "scikit-learn", "datasets", "accelerate"),
}


def write_script(
    recipe: Recipe, *, precision: str, info: ModelInfo | None, language: str = "en"
) -> str:
    """Return the script that trains a recipe's adapter.

    Args:
        recipe: What to train.
        precision: The concrete number format, never `auto`.
        info: The model's description, None if it was not looked at yet.
        language: Of its comments.

    Raises:
        RecipeError: If the recipe starts A and B in a way that no short script can.
    """
    start = recipe.adapter.init_lora_weights
    if start in NOT_EXPORTED:
        raise RecipeError.of([StudioError("exports.start", method=start)])
    source = recipe.model.source.strip()
    quantised = precision in QUANTISED
    libraries = LIBRARIES[recipe.task_type]
    text = _template(recipe.task_type).render(
        say=lambda name, **values: say(f"script.{name}", language, **values),
        note=lambda name, indent=0: comment(say(f"script.{name}", language), indent),
        help=lambda name, indent=0: comment(say(f"help.{name}", language), indent),
        paragraph=lambda text: "\n".join(_lines(text, WIDTH)),
        value=python_value,
        model=python_value(hub_name(source)),
        model_name=_one_line(hub_name(source)),
        is_starter=source == STARTER,
        task_type=recipe.task_type,
        sorts=recipe.task_type == "SEQ_CLS",
        head_std=HEAD_STD,
        adapter=recipe.adapter,
        training=recipe.training,
        # A run decides it once it knows whether its model is packed or padded.
        grouped=recipe.training.groups and not recipe.packs,
        pool=POOL,
        keeps_best=recipe.training.load_best_model_at_end,
        seed=recipe.seed,
        targets=_targets(recipe, info),
        in_out=info is not None and fan_in_fan_out(info, _names(recipe, info)),
        precision=precision,
        quantised=quantised,
        loraplus=recipe.training.loraplus_lr_ratio is not None,
        evals=EVALS_PER_RUN,
        answers=ANSWER_ROWS,
        pauses=PAUSES,
        packages=" ".join(
            ["torch", *_pinned((*libraries, *(["bitsandbytes"] if quantised else [])))]
        ),
        versions=", ".join(_pinned(libraries)),
    )
    return text.strip() + "\n"


def comment(text: str, indent: int = 0) -> str:
    """Return a sentence as comment lines; the first takes its indent from where it is put."""
    lines = _lines(text, WIDTH - indent - 2)
    return f"\n{' ' * indent}".join(f"# {line}" for line in lines)


def _lines(text: str, width: int) -> list[str]:
    """Break a sentence into lines of so many columns at most, between words."""
    lines: list[str] = []
    room = 0
    for word in text.split():
        columns = sum(WIDE if east_asian_width(letter) in "WF" else 1 for letter in word)
        if lines and columns < room:
            lines[-1] += f" {word}"
            room -= columns + 1
        else:
            lines.append(word)
            room = width - columns
    return lines


def python_value(value: Any) -> str:
    """Return a recipe's value as Python source in one line; texts in double quotes."""
    if isinstance(value, str):
        quoted = repr(value)
        return quoted if '"' in value or "\\" in quoted else f'"{quoted[1:-1]}"'
    if isinstance(value, Mapping):
        pairs = (f"{python_value(name)}: {python_value(item)}" for name, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(python_value, value))}]"
    return repr(value)


def _targets(recipe: Recipe, info: ModelInfo | None) -> Any:
    """Return what peft is to take as target modules: names where the model's are known."""
    asked = recipe.adapter.target_modules
    if info is None or (isinstance(asked, str) and asked != ALL_LINEAR):
        return asked
    return target_modules(info, recipe.adapter)


def _names(recipe: Recipe, info: ModelInfo) -> list[str]:
    targets = _targets(recipe, info)
    return list(info.target_names) if isinstance(targets, str) else list(targets)


def _pinned(libraries: tuple[str, ...]) -> list[str]:
    """Return the libraries with the versions that this program was tested with."""
    found = []
    for name in libraries:
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            found.append(name)
    return found


def _one_line(name: str) -> str:
    """Return a name as it may stand in a docstring."""
    return " ".join(name.replace("\\", "/").replace('"', "'").split())


@cache
def _template(task: TaskName) -> Template:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Python, not HTML
    )
    return environment.get_template(TEMPLATES[task])
