"""The rows that an adapter is measured on: of which run, and whether it learned from them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

from lora_studio.adapters.claims import other_name
from lora_studio.cases.adapters import Adapters
from lora_studio.cases.machine import Machine
from lora_studio.cases.runs import Runs
from lora_studio.errors import AdapterError, RunError
from lora_studio.library.names import Named, read_origin
from lora_studio.measuring.wanted import Material, Wanted
from lora_studio.models.sources import hub_name
from lora_studio.recipe import HubSpec, Recipe
from lora_studio.runs.folder import RunFolder


class HeldOutRows:
    """The rows that the runs of one person held out.

    Args:
        machine: Reads them.
        runs: Whose rows there are.
        adapters: Knows adapters by name.
    """

    def __init__(self, machine: Machine, runs: Runs, adapters: Adapters) -> None:
        self._bench = machine.bench
        self._runs = runs
        self._adapters = adapters

    def read(
        self, named: Named, wanted: Wanted, rows_of: str | None
    ) -> Generator[dict[str, Any], None, Material]:
        """Read what an adapter is measured on; yield how far that is.

        Args:
            named: The adapter.
            wanted: How much.
            rows_of: The run whose held-out rows are taken; None is the one that made the adapter.

        Raises:
            StudioError: If there is no such run, or its rows are of other classes.
        """
        own = self._run_of(named)
        run = own if rows_of is None else self._runs.history(rows_of).folder
        is_own = run is None or (own is not None and own.id == run.id)
        plan = self._runs.history(run.id).plan if run else {}
        if run is not None and tuple(plan.get("labels") or ()) != named.labels:
            raise RunError("measuring.other_classes", run=run.id, name=named.name)
        recipe = run.read_recipe() if run else Recipe()
        if run is not None and other_name(hub_name(recipe.model.source), named.source) is not None:
            raise RunError(
                "measuring.other_tokens", run=run.id, base=recipe.model.source, name=named.name,
                source=named.source,
            )  # fmt: skip
        recipe = replace(recipe, model=replace(recipe.model, source=named.source))
        events = self._bench.stream(
            "measured_on",
            recipe=recipe,
            data=run.data if run else None,
            rows=wanted.rows,
            is_text=plan.get("format") == "text",
            learned=None if is_own or own is None else own.data,
            probe=wanted.probe and not named.labels,
        )
        found = Material()
        for event in events:
            if "result" in event:
                found = event["result"]
            else:
                yield event
        found = replace(found, lack=_lack(plan) if run else "measuring.no_rows_of")
        if run is None or is_own:
            return found
        # Rows that were written down otherwise have other tokens: that none is found says nothing.
        is_known = found.seen or (own is not None and _writes_alike(own, run, plan))
        return replace(found, rows_of=run.id, seen=found.seen if is_known else None)

    def _run_of(self, named: Named) -> RunFolder | None:
        """Return the run that an adapter was made by, through those it was made of."""
        seen = set()
        while named.run is None and named.name not in seen:
            seen.add(named.name)
            try:
                origin = read_origin(named.folder.parent)
                if origin.kind != "shrunk":
                    return None
                named = self._adapters.resolve(origin.of)
            except (AdapterError, RunError):
                return None
        return named.run


def _writes_alike(one: RunFolder, other: RunFolder, plan: Mapping[str, Any]) -> bool:
    """Tell whether two runs write a row down as the same tokens, whichever run it is in.

    What is left out of the comparison says where rows come from and which are held out. Plain text
    is cut where a piece is full, which depends on what stands before.
    """
    first, second = one.read_recipe(), other.read_recipe()
    rows = [replace(recipe.data, files=(), hub=HubSpec(), encoding="auto", eval_fraction=0.0)
            for recipe in (first, second)]  # fmt: skip
    is_text = plan.get("format") == "text"
    return not is_text and rows[0] == rows[1] and first.model.source == second.model.source


def _lack(plan: Mapping[str, Any]) -> str:
    """Return the sentence for a run of which no held-out rows are there."""
    return "measuring.rows_gone" if plan.get("held_out_rows") else "measuring.nothing_held_out"
