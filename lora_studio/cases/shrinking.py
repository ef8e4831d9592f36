"""A smaller adapter, and what it lost: in its weights, and on rows it never learned from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_studio.cases.adapters import Adapters
from lora_studio.cases.measurements import Measurements
from lora_studio.errors import StudioError


class Shrinking:
    """Makes adapters smaller and checks them.

    Args:
        adapters: Writes the smaller one.
        measurements: Measures both.
    """

    def __init__(self, adapters: Adapters, measurements: Measurements) -> None:
        self._adapters = adapters
        self._measurements = measurements

    def shrink(self, name: str, rank: int) -> Iterator[dict[str, Any]]:
        """Write an adapter at a lower rank and measure both on the rows that its run held out.

        Yields:
            `{"stage", "done", "total"}`, at last `{"result": …}`: `id`, `rank`, `error`,
            `predicted` and `bytes` of the new one, `loss` (`rows`, `before`, `after`; None where
            it was not measured) and `unchecked`, the StudioError that says why not, None if that
            is only because there are no such rows.

        Raises:
            StudioError: If it cannot be made smaller; nothing is written then.
        """
        made: dict[str, Any] = {}
        for event in self._adapters.shrink(name, rank):
            if "result" not in event:
                yield event
            else:
                made = event["result"]
        found: dict[str, Any] = {
            "id": made["id"],
            "rank": made["origin"]["rank"],
            "error": made["origin"]["error"],
            "predicted": made["predicted"],
            "bytes": made["bytes"],
            "loss": None,
            "unchecked": None,
        }
        try:
            for event in self._measurements.compare_losses(name, made["id"]):
                if "result" not in event:
                    yield event
                elif (loss := event["result"]) is not None:
                    before, after = loss.mean.base, loss.mean.adapter
                    found["loss"] = {"rows": loss.rows, "before": before, "after": after}
        except StudioError as error:
            # The new one is there all the same, as when a training has the device just now.
            found["unchecked"] = error
        yield {"result": found}
