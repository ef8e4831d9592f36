"""When a trainer of transformers began and ended its steps, for whoever started the process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class Steps(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Writes `began` and the `ends` of all steps, in seconds of the clock, when training ends."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._began: float | None = None
        self._ends: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Note when the first step began."""
        self._began = self._began or time.time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note when a step ended."""
        self._ends.append(time.time())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Write it all down."""
        self._file.write_text(json.dumps({"began": self._began, "ends": self._ends}))
