"""Adapters taken where they are needed: as files for other programs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from lora_studio.cases.adapters import Adapters
from lora_studio.cases.workshop import Workshop
from lora_studio.errors import StudioError
from lora_studio.exports import snippets, whole
from lora_studio.exports.orders import Form, Order, Publication
from lora_studio.exports.record import place_of, places
from lora_studio.exports.snippets import Snippet
from lora_studio.library.names import Named
from lora_studio.models.sources import hub_name
from lora_studio.settings import Settings


class Shipping:
    """Exports of one person's adapters.

    Args:
        settings: Where they go.
        adapters: Which there are.
        workshop: Where they are made.
    """

    def __init__(self, settings: Settings, adapters: Adapters, workshop: Workshop) -> None:
        self._settings = settings
        self._adapters = adapters
        self._workshop = workshop
        self._owner = settings.visitor or ""

    def export(
        self,
        name: str,
        form: Form,
        *,
        out: Path | None = None,
        dtype: str | None = None,
        quantization: str = "f16",
        token: str | None = None,
    ) -> Generator[dict[str, Any], None, None]:
        """Export an adapter.

        Args:
            name: The adapter's.
            form: `zip`, `merged`, `gguf` or `ollama`.
            out: Where to, which may not be there yet; None is the home folder's `exports`, where
                it takes the place of an earlier one of the same weights.
            dtype: Of a merged model: `bf16` or `fp16`; None is the base's own.
            quantization: Of a GGUF file: `f16` or `q8_0`.
            token: For a gated base.

        Yields:
            `{"stage", "done", "total"}` while it works, at last `{"result": …}`, the plain values
            of `exports.shipping.Shipped`. Closing it ends the work and removes what is half made.

        Raises:
            StudioError: As `exports.shipping.ship`, and `Workshop.stream`.
        """
        if self._settings.is_showcase and (form != "zip" or out is not None):
            raise StudioError("shipping.not_on_space")
        with ExitStack() as held:
            named = held.enter_context(self._adapters.using(name))
            whole.sweep(self._settings.exports)
            place = self._place(named, form)
            order = Order(
                adapter=named,
                form=form,
                target=place if out is None else out.expanduser().absolute(),
                replaces=out is None,
                dtype=dtype,
                quantization=quantization,
            )
            held.callback(whole.clear, order.target)
            work = self._work("export", held, order=order, token=token)
        usual = next(places(self._settings.exports, name, form))
        with closing(work):
            for event in work:
                if "result" in event and out is None and place != usual:
                    note = StudioError("shipping.earlier_stays", path=str(usual))
                    event["result"]["notes"].append(note.to_dict())
                yield event

    def stop(self) -> bool:
        """Have this person's export or upload end, if there is one; say whether there is.

        Who reads its events is told when it has ended.
        """
        return self._workshop.stop(self._owner)

    def sweep(self) -> None:
        """Remove what exports that were killed have left."""
        whole.sweep(self._settings.exports)

    def push(
        self,
        name: str,
        repository: str,
        *,
        merged: bool = False,
        private: bool = True,
        updates: bool = False,
        is_dry: bool = False,
        token: str | None = None,
    ) -> Generator[dict[str, Any], None, None]:
        """Bring an adapter to the Hugging Face Hub, with a card that says what is known of it.

        Args:
            name: The adapter's.
            repository: `owner/name`.
            merged: Whether the whole merged model goes; it is made for this, and kept nowhere.
            private: Whether a new repository is seen by its owner only.
            updates: Whether one that is there already gets a new commit.
            is_dry: Whether nothing leaves, and only what would is said.
            token: The person's own; on a Space nobody else's is taken.

        Nobody deletes the adapter meanwhile.

        Yields:
            As `export`; the result is the plain values of `exports.orders.Published`.

        Raises:
            StudioError: As `exports.publishing.bring`.
        """
        if self._settings.is_showcase and merged:
            raise StudioError("shipping.not_on_space")
        with ExitStack() as held:
            asked = Publication(
                adapter=held.enter_context(self._adapters.using(name)),
                repository=repository.strip(),
                merged=merged,
                private=private,
                updates=updates,
                is_dry=is_dry,
                visitor=self._settings.visitor,
            )
            own = self._settings.token_for(token) or None
            work = self._work("push", held, asked=asked, token=own)
        yield from work

    def snippets(self, name: str) -> list[Snippet]:
        """Return how an adapter is used elsewhere, and each of its exports that are there.

        Raises:
            StudioError: If there is no such adapter, or it cannot be read.
        """
        adapter = self._adapters.resolve(name)
        base = hub_name(adapter.source)
        if adapter.labels:
            return [snippets.of_classifier(adapter.folder, base)]
        found = snippets.of_adapter(name, adapter.folder, base)
        merged, ollama = self._place(adapter, "merged"), self._place(adapter, "ollama")
        if merged.is_dir():
            found += snippets.of_merged(merged)
        if ollama.is_dir():
            found += snippets.of_ollama(ollama.name, ollama)
        return found

    def _place(self, adapter: Named, form: Form) -> Path:
        """Return where an export is, or goes unless somebody says otherwise."""
        return place_of(self._settings.exports, adapter, form)

    def _work(
        self, method: str, held: ExitStack, **asked: Any
    ) -> Generator[dict[str, Any], None, None]:
        """Have the workshop do something; it closes what is held when that has ended."""
        return self._workshop.stream(method, owner=self._owner, held=held.pop_all(), **asked)
