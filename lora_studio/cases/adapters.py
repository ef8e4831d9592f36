"""Adapters by their names: looked into, made smaller, taken in, taken away as a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lora_studio.adapters.archive import zip_adapter
from lora_studio.cases.machine import Machine
from lora_studio.errors import AdapterError
from lora_studio.library import names
from lora_studio.library.names import AT, Named
from lora_studio.library.uses import Uses
from lora_studio.settings import STARTER, Settings


class Adapters:
    """The adapters of one person: of their runs, and those that no run here made.

    A name is a run's id, `RUN@STEP`, or the id of an adapter in the home folder.

    Args:
        settings: Where they are.
        machine: Looks into them, and says which of them answer.
    """

    def __init__(self, settings: Settings, machine: Machine) -> None:
        self._settings = settings
        self._bench = machine.bench
        self._accelerator = machine.accelerator
        self._uses = Uses(settings.private / "uses")

    @contextmanager
    def using(self, name: str) -> Iterator[Named]:
        """Give an adapter whose files are read, so that nobody deletes them meanwhile.

        Raises:
            StudioError: As `resolve`.
        """
        with ExitStack() as held:
            with self._accelerator.guard():  # nobody deletes it in between
                named = self.resolve(name)
                held.enter_context(self._uses.noted(name))
            yield named

    def used(self) -> set[str]:
        """Return the names of the adapters whose files are being read, or that answer."""
        found = self._uses.names()
        job = self._accelerator.holder()
        if job is not None and job.visitor == self._settings.visitor:
            found |= set(job.names)
        return found

    def resolve(self, name: str) -> Named:
        """Return the adapter that a name stands for.

        Raises:
            RunError: If there is a run of that name, but it has no such adapter.
            AdapterError: If there is nothing of that name, or its origin cannot be read.
        """
        return names.resolve(name, self._settings)

    def archive(self, name: str, target: Path) -> Path:
        """Zip an adapter into the folder `target` and return the file.

        Raises:
            StudioError: As `resolve`.
        """
        with self.using(name) as named:
            return zip_adapter(
                named.folder, target / f"{name}.zip", lineage=named.lineage,
                recipe=named.read_recipe(),
            )  # fmt: skip

    def xray(self, name: str, *, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Look into an adapter: where it changed the model, and in how many directions.

        Yields:
            As `Models.inspect`; the result is the plain values of `lora_studio.adapters.xray.Xray`.

        Raises:
            StudioError: As `resolve`, or if adapter or base cannot be read.
        """
        with self.using(name) as named:
            asked = {"adapter": named.folder, "source": named.source}
            yield from self._bench.stream("xray", **asked, token=token)

    def shrink(self, name: str, rank: int) -> Iterator[dict[str, Any]]:
        """Write an adapter once more at a lower rank, as a new one.

        Yields:
            As `Models.inspect`; the result is that of `lora_studio.library.arrivals.make_smaller`.

        Raises:
            StudioError: As `resolve`, or if it cannot be made smaller.
        """
        with self.using(name) as named:
            asked = {"named": named, "rank": rank, "place": self._settings.adapters}
            yield from self._making_room(self._bench.stream("make_smaller", **asked))

    def add(
        self, what: str, *, base: str = "", token: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Take in an adapter from elsewhere, once it is known to fit its base.

        Args:
            what: A zip archive, a folder, or `owner/name` of the Hub.
            base: Its base; empty believes what the adapter says.
            token: For repositories that are not everybody's.

        Yields:
            As `Models.inspect`; the result is that of `lora_studio.library.arrivals.take_in`.

        Raises:
            StudioError: If it is not taken, with the reason; nothing is left of it then.
        """
        if self._settings.is_showcase:
            if not Path(what).is_file():
                raise AdapterError("library.only_zip")
            base = STARTER
        asked = {"what": what, "place": self._settings.adapters, "base": base}
        yield from self._making_room(self._bench.stream("take_in", **asked, token=token))

    def _making_room(self, events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass events on; once there is a new adapter, the oldest that nobody needs makes room."""
        for event in events:
            if "result" in event and self._settings.most_runs:
                with self._accelerator.guard():
                    self._drop_oldest(self._settings.most_runs, event["result"]["id"])
            yield event

    def _drop_oldest(self, most: int, new: str) -> None:
        needed = {new, *(name.partition(AT)[0] for name in self.used())}
        folders = names.adapter_folders(self._settings)
        unneeded = [folder for folder in reversed(folders) if folder.name not in needed]
        for folder in unneeded[: max(len(folders) - most, 0)]:
            shutil.rmtree(folder, ignore_errors=True)
