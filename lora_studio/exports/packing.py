"""What goes to the Hub of an adapter, laid out before anything leaves this machine.

Nothing of the person's own goes: no data, no prompts, no paths. Files that name things of this
machine are written anew; all text that is to leave is searched for paths once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_studio.adapters.configuration import CONFIG
from lora_studio.adapters.lineage import NAME as LINEAGE
from lora_studio.adapters.lineage import Lineage
from lora_studio.errors import StudioError
from lora_studio.exports.card import CURVES, hub_card
from lora_studio.exports.curves import draw_curves
from lora_studio.exports.facts import CARD, Facts
from lora_studio.exports.readme import public_name
from lora_studio.exports.record import RECORD
from lora_studio.recipes.sharing import NAME as RECIPE
from lora_studio.recipes.sharing import shareable

TEXT = {".json", ".md", ".yaml", ".jinja", ".txt"}
SMALL_BYTES = 1_000_000
"""Text above this is a vocabulary, which names nothing of a machine."""
LOCAL_KEYS = ("_name_or_path", "name_or_path", "auto_map")
"""Where configurations keep the path that they were loaded from, or a repository's code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One file as it goes to the Hub."""

    name: str
    file: Path
    """Where its content lies now."""

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.file.stat().st_size


def pack(
    facts: Facts,
    sources: Iterable[Path],
    stage: Path,
    *,
    private: Iterable[Path],
    names_dataset: bool,
) -> list[Parcel]:
    """Return the files of a repository, in the order of their names.

    Args:
        facts: What is known of the adapter.
        sources: The files of the adapter or of the merged model.
        stage: An empty folder, where what is written anew lies until it is sent.
        private: Folders whose paths may not be in any text that goes.
        names_dataset: Whether the dataset of the Hub may be named.

    Raises:
        StudioError: If a text names a path of this machine.
    """
    names = {file.name: file for file in sources if file.is_file() and file.name != RECORD}
    history = facts.history
    has_curves = history is not None and draw_curves(history, stage / CURVES)
    if has_curves:
        names[CURVES] = stage / CURVES
    names.pop(RECIPE, None)
    recipe = facts.adapter.read_recipe()
    if recipe is not None:
        text = shareable(recipe, names_dataset=names_dataset).to_yaml()
        names[RECIPE] = _written(stage / RECIPE, text)
    if CONFIG in names and facts.adapter.lineage != Lineage():
        names[LINEAGE] = _written(stage / LINEAGE, facts.adapter.lineage.to_json())
    card = hub_card(replace(facts, has_curves=has_curves))
    names[CARD] = _written(stage / CARD, card)
    for name, file in names.items():
        if file.suffix == ".json" and file.stat().st_size < SMALL_BYTES:
            names[name] = _cleaned(file, stage / name, public_name(facts.adapter.source))
    parcels = [Parcel(name=name, file=names[name]) for name in sorted(names)]
    _refuse_paths(parcels, private)
    return parcels


def _written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def _cleaned(file: Path, target: Path, base: str) -> Path:
    """Return a JSON file without names of this machine: itself, where it has none."""
    try:
        said: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return file
    if not isinstance(said, dict):
        return file
    clean = {name: value for name, value in said.items() if name not in LOCAL_KEYS}
    if file.name == CONFIG:
        clean["base_model_name_or_path"] = base
    if clean == said:
        return file
    return _written(target, json.dumps(clean, indent=2, ensure_ascii=False) + "\n")


def _refuse_paths(parcels: Iterable[Parcel], private: Iterable[Path]) -> None:
    """Refuse a text that names one of the folders or what lies in it.

    Raises:
        StudioError: With the file's name and the path.
    """
    paths = {str(path): _named(path) for path in private if len(path.parts) > 1}
    for parcel in parcels:
        if parcel.file.suffix not in TEXT or parcel.bytes > SMALL_BYTES:
            continue
        text = parcel.file.read_text(encoding="utf-8", errors="replace")
        found = next((path for path, named in paths.items() if named.search(text)), None)
        if found is not None:
            raise StudioError("shipping.names_a_path", file=parcel.name, path=found)


def _named(path: Path) -> re.Pattern[str]:
    """Return a pattern of a path that stands by itself: `/data` is not in a longer name or a URL.

    Letters of other alphabets end it, as those of Korean particles do.
    """
    return re.compile(rf"(?<![\w.-])(?<!:/){re.escape(str(path))}(?![\w-]|\.\w)", re.ASCII)
