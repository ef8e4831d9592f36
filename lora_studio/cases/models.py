"""Base models: described, fetched, looked into."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from lora_studio.child import Child, InProcess
from lora_studio.errors import ModelError, StudioError
from lora_studio.models.description import ModelInfo
from lora_studio.settings import STARTER, Settings
from lora_studio.wording import ASSETS

log = logging.getLogger(__name__)


class Models:
    """What is known of base models.

    Args:
        settings: Whose cache of descriptions this is.
        bench: Serves a `Workbench`.
    """

    def __init__(self, settings: Settings, bench: Child | InProcess) -> None:
        self._settings = settings
        self._bench = bench

    def fetch_starter(self) -> None:
        """Bring the starter model to this machine, so that the first question need not wait."""
        try:
            for _ in self._bench.stream("fetch", source=STARTER):
                pass
        except StudioError as error:
            log.warning("%s", error)

    def inspect(self, source: str, *, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Describe a base model: what it is made of and which modules can have an adapter.

        Yields:
            `{"stage", "done", "total"}` while it works, at last `{"result": ModelInfo}`.

        Raises:
            ModelError: If it cannot be found, fetched or read.
        """
        self.check(source)
        known = self.known(source)
        if known is not None:
            yield {"result": known}
            return
        for event in self._bench.stream("inspect", source=source, token=token):
            if "result" not in event:
                yield event
                continue
            self._remember(source, event["result"])
            yield {"result": ModelInfo.from_dict(event["result"])}

    def known(self, source: str) -> ModelInfo | None:
        """Return a model's description if it was made before; the starter's is shipped."""
        file = ASSETS / "starter.json" if source == STARTER else self._info_file(source)
        try:
            return ModelInfo.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def nf4(self, source: str, *, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Show what 4-bit NF4 does to one weight of a model, fetching the model where needed.

        Yields:
            As `inspect`; the result is the plain values of
            `lora_studio.models.weights_histogram.WeightsHistogram`.

        Raises:
            ModelError: If it cannot be found, fetched or read, or is already quantised.
        """
        self.check(source)
        yield from self._bench.stream("nf4", source=source, token=token)

    def fetch(self, source: str) -> Iterator[dict[str, Any]]:
        """Bring a model with its weights to this machine; the result is its folder."""
        yield from self._bench.stream("fetch", source=source)

    def check(self, source: str) -> None:
        """Refuse what a Space for everybody does not lend itself to.

        Raises:
            ModelError: If it is another than the starter model there.
        """
        if self._settings.is_showcase and source != STARTER:
            raise ModelError("page.space_only_starter")

    def _remember(self, source: str, found: dict[str, Any]) -> None:
        file = self._info_file(source)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")

    def _info_file(self, source: str) -> Path:
        folder = model_folder(source)
        config = folder / "config.json" if folder else None
        # A folder may come to hold another model; it is known as long as it stays as it was.
        stamp = f"{config} {config.stat().st_mtime_ns}" if config and config.is_file() else source
        name = sha256(stamp.encode()).hexdigest()[:24]
        return self._settings.cache / "models" / f"{name}.json"


def model_folder(source: str) -> Path | None:
    """Return the folder that a model's source names, None for a Hub id and the starter model."""
    try:
        folder = Path(source.strip()).expanduser()
        return folder.resolve() if source.strip() != STARTER and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long for a path, or the home of nobody
        return None
