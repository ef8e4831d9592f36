"""Adapters that no run here made: taken in from elsewhere, or written once more at a lower rank.

They need torch and PEFT, so this is for the workbench alone.
"""

from __future__ import annotations

import os.path
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lora_studio.adapters.claims import base_of, class_names, other_name, tidy
from lora_studio.adapters.configuration import read_settings
from lora_studio.adapters.intake import gather, kind_of, shown
from lora_studio.adapters.lineage import NAME, Lineage, other_weights, read_lineage
from lora_studio.adapters.shrinking import shrink
from lora_studio.adapters.weights import is_lora, module_of, tensor_names
from lora_studio.chat.fitting import check_fit
from lora_studio.errors import AdapterError, ModelError
from lora_studio.files import reason_of
from lora_studio.library.names import PEFT, Named, Origin, free_folder, write_origin
from lora_studio.models.fingerprint import weight_files, weights_fingerprint
from lora_studio.models.hub import OnProgress, silent
from lora_studio.models.loading import reading
from lora_studio.models.sources import hub_name, resolve
from lora_studio.recipes.sharing import NAME as RECIPE
from lora_studio.recipes.sharing import read_beside
from lora_studio.runs.folder import slug
from lora_studio.runs.housekeeping import drop_old
from lora_studio.settings import Settings

COMING = ".coming-"
ABANDONED_S = 24 * 3600.0
UNREACHABLE = ("model.not_found", "model.no_network", "model.no_config", "model.no_safetensors")


def take_in(
    what: str,
    place: Path,
    settings: Settings,
    *,
    base: str = "",
    token: str | None = None,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Add an adapter from elsewhere, once it is known to fit its base.

    Args:
        what: A folder, a zip archive, or `owner/name` of the Hub.
        place: The folder of the adapters, where it gets one of its own.
        settings: Where models live and whether the Hub may be asked.
        base: Its base, as a recipe says it; empty believes what the adapter says.
        token: For repositories that are not everybody's.
        on_progress: Told what is going on.

    Returns:
        Its `id`, and its `origin` as plain values.

    Raises:
        StudioError: If it is not taken, with the reason; nothing is left of it.
    """
    kind = kind_of(what)
    if kind == "folder" and settings.space_id:
        raise AdapterError("library.folder_on_space")
    if kind != "hub":
        what = os.path.abspath(Path(what).expanduser())  # noqa: PTH100 - links keep their name
    with _aside(place, shown(what)) as aside, _called(shown(what)):
        folder = aside / PEFT
        gather(what, folder, settings, token=token, on_progress=on_progress)
        said, known = read_settings(folder), read_lineage(folder)
        (folder / NAME).unlink(missing_ok=True)  # it stands in the origin from now on
        source = base.strip() or base_of(said, settings)
        on_progress("check", 0, 0)
        model = _fetched(source, settings, token, is_chosen=bool(base.strip()))
        is_the_same = _check_weights(model, known, shown(what), source)
        named = known.trained_on or said.get("base_model_name_or_path", "")
        labels = class_names(folder, said)
        with _written(shown(what)):
            tidy(folder, said, _modules(folder), hub_name(source))
        check_fit(folder, model, labels=labels)
        recipe = read_beside(folder)
        origin = Origin(
            kind=kind,
            of=shown(what),
            source=source,
            precision=recipe.precision if recipe else "auto",
            fingerprint=known.base_fingerprint,
            trained_on=None if is_the_same else other_name(named, source),
            labels=labels,
            seed=recipe.seed if recipe else 42,
            created=time.time(),
        )
        with _written(shown(what)):
            return _kept(folder, place, slug(_stem(what)), origin)


def make_smaller(
    named: Named, rank: int, place: Path, *, on_progress: OnProgress = silent
) -> dict[str, Any]:
    """Write an adapter once more at a lower rank, as a new one.

    Args:
        named: The adapter.
        rank: The new rank, 1 or more and less than it has.
        place: As for `take_in`.
        on_progress: Told that it goes on.

    Returns:
        The `id` of the new one, its `origin`, its weights' `bytes`, and the error that was
        `predicted`, as in `Shrunk`.

    Raises:
        AdapterError: As `shrink`, or if the disk does not take it.
    """
    on_progress("shrink", 0, 0)
    name = named.name
    with _aside(place, name) as aside, _called(name), _written(name):
        found = shrink(named.folder, aside / PEFT, rank)
        recipe = named.read_recipe()
        if recipe is not None:  # beside a checkpoint there is none
            (aside / PEFT / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        origin = Origin(
            kind="shrunk",
            of=named.name,
            source=named.source,
            precision=named.precision,
            fingerprint=named.fingerprint,
            trained_on=named.trained_on,
            labels=named.labels,
            seed=named.seed,
            created=time.time(),
            rank=found.rank,
            error=found.error,
        )
        kept = _kept(aside / PEFT, place, slug(f"{name}-r{found.rank}"), origin)
        return kept | {"bytes": found.bytes, "predicted": found.predicted}


@contextmanager
def _aside(place: Path, name: str) -> Iterator[Path]:
    """Give a folder that nobody sees, and remove what is left in it."""
    with _written(name):
        place.mkdir(parents=True, exist_ok=True)
        drop_old(place.glob(f"{COMING}*"), age_s=ABANDONED_S)
        aside = Path(tempfile.mkdtemp(prefix=COMING, dir=place))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _called(name: str) -> Iterator[None]:
    """Have errors name what a person gave instead of a folder that is gone."""
    try:
        yield
    except AdapterError as error:
        values = error.values
        if "folder" in values:
            values = values | {"folder": name}
        if "file" in values:
            values = values | {"file": Path(str(values["file"])).name}
        raise AdapterError(error.key, **values) from error


@contextmanager
def _written(name: str) -> Iterator[None]:
    """Say in words that the disk does not take an adapter."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise AdapterError("library.not_readable", name=name, reason=reason_of(error)) from error


def _fetched(source: str, settings: Settings, token: str | None, *, is_chosen: bool) -> Path:
    """Return the folder of a base, whose weights need not be there."""
    try:
        return resolve(source, settings, token=token, weights=False)
    except ModelError as error:
        if is_chosen or error.key not in UNREACHABLE:
            raise
        raise AdapterError("library.base_gone", base=source) from error


def _check_weights(base: Path, known: Lineage, name: str, source: str) -> bool:
    """Return whether a base has the very weights that an adapter was trained on, as far as known.

    Raises:
        AdapterError: If it has others.
    """
    if known.base_fingerprint is None:
        return False
    with reading(base):
        files = weight_files(base)
        if not files or not all(file.is_file() for file in files):
            return False
        found = weights_fingerprint(base)
    if found != known.base_fingerprint:
        trained_on = hub_name(source)
        raise other_weights(name, of=known.base_fingerprint, found=found, trained_on=trained_on)
    return True


def _modules(folder: Path) -> set[str]:
    """Return the modules of the base that an adapter's weights are for."""
    return {module_of(key) for key in tensor_names(folder) if is_lora(key)}


def _stem(what: str) -> str:
    """Return what an adapter from elsewhere is called after."""
    path = Path(what)
    if path.suffix == ".zip":
        return path.stem
    return path.parent.name if path.name == PEFT else path.name


def _kept(folder: Path, place: Path, stem: str, origin: Origin) -> dict[str, Any]:
    """Give a checked adapter its place; it is listed once its origin is written."""
    target = free_folder(place, stem)
    try:
        folder.rename(target / PEFT)
        write_origin(target, origin)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return {"id": target.name, "origin": asdict(origin)}
