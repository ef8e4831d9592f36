"""What the configuration of an adapter from elsewhere says, and what of that is believed.

Nothing that it says is used as a path. Torch is not imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_studio.adapters.configuration import CONFIG
from lora_studio.adapters.intake import CLASSES
from lora_studio.adapters.lineage import LONGEST_NAME
from lora_studio.errors import AdapterError
from lora_studio.models import starter
from lora_studio.models.sources import HUB_ID, hub_name, local_models
from lora_studio.settings import STARTER, Settings

CACHED = "models--"
"""What the names of models begin with in the Hub's cache."""
MOST_CLASSES = 10_000
SORTS = "SEQ_CLS"
"""PEFT's kind of task of an adapter that sorts texts."""
PLAIN_PATTERN = re.compile(r"[\w.\\^$-]{1,200}")
"""Names of modules with dots and anchors; other expressions can take for ever."""


def base_of(said: Mapping[str, Any], settings: Settings) -> str:
    """Return the base that an adapter says it was trained on, as a recipe would.

    A folder counts only if it is one of this studio's models.

    Raises:
        AdapterError: If it says none, or a folder of another machine.
    """
    name = str(said.get("base_model_name_or_path") or "").strip()
    if name == starter.REPOSITORY:
        return STARTER
    for folder in local_models(settings).values():
        if name == str(folder):
            return name
    if not name:
        raise AdapterError("library.no_base")
    if HUB_ID.fullmatch(name) and not Path(name).exists():
        return name
    raise AdapterError("library.base_elsewhere", base=name[:200])


def other_name(named: str, source: str) -> str | None:
    """Return the base that an adapter names, if its name is not that of `source`.

    The same model lies in another folder on every machine, and under other owners on the Hub, so
    only the last part counts, in letters of any case.
    """
    name = _plain_name(named)
    own = _plain_name(hub_name(source))
    is_same = name.rpartition("/")[2].casefold() == own.rpartition("/")[2].casefold()
    return None if not name or is_same else name


def _plain_name(name: str) -> str:
    """Return a Hub id as it is, and of a folder its name; the Hub's cache names ids its own way.

    >>> _plain_name("/cache/models--owner--name/snapshots/0a1b")
    'owner/name'
    """
    if HUB_ID.fullmatch(name):
        return name
    parts = [part for part in re.split(r"[\\/]+", name.strip()) if part]
    cached = [part for part in parts if part.startswith(CACHED)]
    if cached:
        return cached[-1].removeprefix(CACHED).replace("--", "/", 1)[:LONGEST_NAME]
    return parts[-1][:LONGEST_NAME] if parts else ""


def class_names(folder: Path, said: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes an adapter sorts texts into, in their order; none if it writes.

    Raises:
        AdapterError: If it sorts texts, but the classes have no names.
    """
    if said.get("task_type") != SORTS:
        return ()
    try:
        names = json.loads((folder / CLASSES).read_text(encoding="utf-8"))["id2label"]
        labels = tuple(str(names[str(number)]) for number in range(len(names)))
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise AdapterError("library.no_classes", file=CLASSES) from error
    if not 2 <= len(labels) <= MOST_CLASSES:
        raise AdapterError("library.no_classes", file=CLASSES)
    return labels


def tidy(folder: Path, said: Mapping[str, Any], modules: Iterable[str], base: str) -> None:
    """Write an adapter's configuration anew, without expressions and without others' paths.

    A base's own configuration beside an adapter that writes goes: it is of no use.

    Args:
        folder: The adapter's.
        said: What it said, as `read_settings` gives it.
        modules: The modules that its weights are for.
        base: The name of its base, as files of adapters give it.

    Raises:
        AdapterError: If it picks modules by an expression that is not plain.
    """
    settings = dict(said) | {"base_model_name_or_path": base}
    if isinstance(settings.get("target_modules"), str):
        for name in ("exclude_modules", "layers_to_transform", "layers_pattern"):
            settings.pop(name, None)
        settings["target_modules"] = sorted(modules)
    for name in ("rank_pattern", "alpha_pattern", "layers_pattern", "exclude_modules"):
        patterns = settings.get(name) or ()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if not PLAIN_PATTERN.fullmatch(pattern):
                raise AdapterError("library.odd_pattern", name=name, pattern=pattern[:80])
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    if said.get("task_type") != SORTS:
        (folder / CLASSES).unlink(missing_ok=True)
