"""An adapter, or its merged model, brought to the Hugging Face Hub; or what would be, first.

A token travels in memory only. What is refused is refused before anything is merged or sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lora_studio.adapters.archive import adapter_files
from lora_studio.errors import StudioError
from lora_studio.exports import sending
from lora_studio.exports.facts import CARD, Facts
from lora_studio.exports.foreseen import merged_files
from lora_studio.exports.orders import Order, Publication, Published
from lora_studio.exports.packing import pack
from lora_studio.exports.readme import public_name
from lora_studio.exports.sending import Place
from lora_studio.exports.shipping import refuse_loftq, ship
from lora_studio.models.hub import OnProgress, refuse_malformed
from lora_studio.models.inspection import inspect_model
from lora_studio.models.sources import HUB_ID, hub_name, resolve
from lora_studio.recipe import Recipe
from lora_studio.runs.housekeeping import drop_old
from lora_studio.settings import Settings

STAGE = "push-"
ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a repository is to hold beside the card."""

    facts: Facts
    files: Iterable[Path]
    foreseen: dict[str, int] = field(default_factory=dict)
    """Names and sizes of files that are made only for a real push."""
    notes: list[dict[str, Any]] = field(default_factory=list)


def bring(
    asked: Publication, facts: Facts, settings: Settings, *, token: str | None, progress: OnProgress
) -> Published:
    """Publish an adapter or its merged model, or say what would be published.

    Args:
        asked: What, and where to.
        facts: What the card says of it.
        settings: Whose paths may not leave, and where there is room for what is written anew.
        token: With the right to write; a dry run takes it to see what is there.
        progress: Told the stage, what is done, and of how much; what it raises ends the work.

    Raises:
        StudioError: If name, token, repository or adapter stand against it, or as `pack`, `ship`
            and `sending.send`.
    """
    sending.require_name(asked.repository)
    refuse_malformed(token)
    if not asked.is_dry and not token:
        raise StudioError("shipping.no_token")
    notes: list[StudioError] = []
    place = _place(asked, settings, token, notes)
    recipe = facts.adapter.read_recipe()
    dataset = recipe.data.hub.repo_id if recipe else ""
    names_dataset = bool(dataset) and not settings.offline and sending.is_everybodys(dataset)
    if dataset and not names_dataset:
        notes.append(StudioError("shipping.dataset_unnamed", dataset=dataset))
    notes += _of_base(facts)
    settings.cache.mkdir(parents=True, exist_ok=True)
    drop_old(settings.cache.glob(f"{STAGE}*"), age_s=ABANDONED_S)
    with TemporaryDirectory(dir=settings.cache, prefix=STAGE) as made:
        stage = Path(made)
        content = _content(asked, facts, settings, stage, token, progress)
        (stage / "written").mkdir()
        parcels = pack(
            content.facts,
            content.files,
            stage / "written",
            private=_private(settings, facts, recipe),
            names_dataset=names_dataset,
        )
        address = None
        if token and not asked.is_dry:
            address = sending.send(
                parcels,
                asked.repository,
                place,
                token=token,
                private=asked.private,
                message=f"{facts.adapter.name}, from LoRA Studio",
                progress=progress,
            )
        card = next(parcel.file for parcel in parcels if parcel.name == CARD)
        sizes = content.foreseen | {parcel.name: parcel.bytes for parcel in parcels}
        return Published(
            repository=asked.repository,
            files=[
                {"name": name, "bytes": sizes[name], "is_foreseen": name in content.foreseen}
                for name in sorted(sizes)
            ],
            card=card.read_text(encoding="utf-8"),
            private=place.is_private if place.exists else asked.private,
            exists=place.exists,
            deleted=place.stale(sizes) if asked.updates else [],
            address=address,
            notes=[*(note.to_dict() for note in notes), *content.notes],
        )


def _place(
    asked: Publication, settings: Settings, token: str | None, notes: list[StudioError]
) -> Place:
    """Return what the repository is now; raise what stands against it, or note it if it is dry."""
    place, against = Place(exists=None), None
    if not (asked.is_dry and settings.offline):
        try:
            place = sending.look(asked.repository, token)
            against = _against(asked, place)
        except StudioError as error:
            against = error
    if against is not None and not asked.is_dry:
        raise against
    if against is not None and against.key != "shipping.no_network":
        notes.append(against)
    return place


def _against(asked: Publication, place: Place) -> StudioError | None:
    """Return why nothing is sent to a repository that is there."""
    if place.exists and place.holds_files and not asked.updates:
        return StudioError("shipping.repository_exists", repository=asked.repository)
    if place.exists and not place.is_private and asked.private:
        return StudioError("shipping.is_public", repository=asked.repository)
    return None


def _of_base(facts: Facts) -> list[StudioError]:
    notes = []
    base = hub_name(facts.adapter.source)
    if HUB_ID.fullmatch(base) is None:
        notes.append(StudioError("shipping.base_is_local", base=public_name(base)))
    if facts.licence is None:
        notes.append(StudioError("shipping.no_licence", base=public_name(base)))
    return notes


def _private(settings: Settings, facts: Facts, recipe: Recipe | None) -> list[Path]:
    """Return the paths of this machine that nobody else should read of."""
    named = [facts.adapter.source, *(recipe.data.files if recipe else ())]
    own = [Path(path) for path in named if Path(path).is_absolute()]
    found = [settings.home, Path.home(), facts.adapter.folder, *own]
    return [*found, *(path.resolve() for path in found)]


def _content(
    asked: Publication,
    facts: Facts,
    settings: Settings,
    stage: Path,
    token: str | None,
    progress: OnProgress,
) -> Content:
    """Return the adapter's files or those of the merged model, which is made in the stage."""
    adapter = asked.adapter
    if not asked.merged:
        return Content(facts=facts, files=adapter_files(adapter.folder))
    refuse_loftq(adapter)
    if asked.is_dry:
        base = resolve(adapter.source, settings, token=token, on_progress=progress, weights=False)
        weights = inspect_model(base, adapter.source).size_bytes
        return Content(
            facts=replace(facts, merged={}),
            files=(),
            foreseen=merged_files(base, adapter.folder, weights),
        )
    base = resolve(adapter.source, settings, token=token, on_progress=progress)
    order = Order(adapter=adapter, form="merged", target=stage / "merged")
    shipped = ship(order, base, settings, progress).to_dict()
    return Content(
        facts=replace(facts, merged=shipped),
        files=list(order.target.iterdir()),
        notes=shipped["notes"],
    )
