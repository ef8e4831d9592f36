"""What is known of an adapter's base beside its name; it travels as `lora_studio.json`.

Torch is not imported.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_studio.errors import AdapterError

NAME = "lora_studio.json"
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Which base an adapter was trained on."""

    base_fingerprint: str | None = None
    """Of the base's weights, as `models.fingerprint` makes it; None where it is not known."""
    trained_on: str | None = None
    """The base that the adapter named when it came, where that is another than it names now."""

    def to_json(self) -> str:
        """Return what the file says."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def other_weights(name: str, *, of: str, found: str, trained_on: str) -> AdapterError:
    """Return the error that a base's weights are not those that an adapter was trained on.

    Args:
        name: The adapter's.
        of: Fingerprint of the weights it was trained on.
        found: That of the base.
        trained_on: The name of the base it was trained on.
    """
    return AdapterError(
        "chat.other_base", name=name, trained_on=trained_on, found=of[:12], expected=found[:12]
    )


def read_lineage(folder: Path) -> Lineage:
    """Return what lies beside an adapter; of a file that says something else, what can be used."""
    try:
        said = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return Lineage()
    if not isinstance(said, dict):
        return Lineage()
    fingerprint, name = said.get("base_fingerprint"), said.get("trained_on")
    is_known = isinstance(fingerprint, str) and FINGERPRINT.fullmatch(fingerprint)
    return Lineage(
        base_fingerprint=fingerprint if is_known else None,
        trained_on=name[:LONGEST_NAME] if isinstance(name, str) and name.strip() else None,
    )
