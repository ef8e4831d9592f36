"""What a run has been through, computed from its events and the liveness of its process."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_studio.errors import StudioError, from_dict
from lora_studio.runs.events import read_events
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.process import is_running

Status = Literal[
    "queued",
    "preparing",
    "training",
    "evaluating",
    "saving",
    "finished",
    "stopped",
    "failed",
    "lost",
]
ENDED: frozenset[Status] = frozenset({"finished", "stopped", "failed", "lost"})
STAGE_STATUS: dict[str, Status] = {
    "train": "training",
    "evaluate": "evaluating",
    "sample": "evaluating",
    "save": "saving",
}
# A worker is started within moments of its folder; one that never was, never will be.
STARTING_S = 60.0


@dataclass(slots=True)
class History:
    """One run's events, gathered; `update` reads only what is new."""

    folder: RunFolder
    steps: list[dict[str, Any]] = field(default_factory=list)
    """The step events: step, loss, learning_rate, grad_norm, tokens_per_s and so on."""
    evals: list[dict[str, Any]] = field(default_factory=list)
    """The eval events: step, loss, and perplexity, or accuracy, f1 and confusion of classes."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """The sample events: step, prompt, answer."""
    stage: dict[str, Any] = field(default_factory=dict)
    """The latest stage event: stage, done, total."""
    plan: dict[str, Any] = field(default_factory=dict)
    """The started event: steps, rows, trainable parameters, precision and its reason, task_type
    and the labels of a text classification."""
    ending: dict[str, Any] = field(default_factory=dict)
    """The finished, stopped or failed event, empty while there is none."""
    first_time: float | None = None
    last_time: float | None = None
    _offset: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def update(self) -> History:
        """Take in the events written since the last call; return this history."""
        with self._lock:
            events, self._offset = read_events(self.folder.events, self._offset)
            for event in events:
                self._take(event)
        return self

    def _take(self, event: dict[str, Any]) -> None:
        self.first_time = self.first_time or event["time"]
        self.last_time = event["time"]
        match event["event"]:
            case "step":
                self.steps.append(event)
            case "eval":
                self.evals.append(event)
            case "sample":
                self.samples.append(event)
            case "stage":
                self.stage = event
            case "started":
                self.plan = event
            case "finished" | "stopped" | "failed":
                self.ending = event

    @property
    def status(self) -> Status:
        """Where the run stands; computed, never stored."""
        if self.ending:
            kind: Status = self.ending["event"]
            return kind
        if not self.folder.process.exists():
            waited_s = time.time() - self.folder.recipe.stat().st_mtime
            return "queued" if waited_s < STARTING_S else "lost"
        if not is_running(self.folder.process):
            # The worker may have written its last words between the two looks.
            self.update()
            if self.ending:
                return self.status
            # Who wanted to keep it must learn that nothing was saved.
            return "stopped" if self.folder.stop_wish() == "discard" else "lost"
        return STAGE_STATUS.get(self.stage.get("stage", ""), "preparing")

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ENDED

    @property
    def step(self) -> int:
        """The last optimizer step, 0 before the first."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def total_steps(self) -> int:
        """The planned number of optimizer steps, 0 while it is not known."""
        return int(self.plan.get("total_steps", 0))

    @property
    def cause(self) -> StudioError | None:
        """Why there is not what was wanted: the run failed, is lost, or stopped too early."""
        status = self.status
        if status == "failed":
            return from_dict(self.ending["cause"])
        if status == "stopped" and self.folder.stop_wish() == "keep":
            return None if self.ending["kept"] else StudioError("run.nothing_to_keep")
        if status == "lost":
            steps = self.folder.checkpoint_steps()
            if steps:
                return StudioError("run.lost_with_checkpoint", step=steps[-1])
            return StudioError("run.lost")
        return None

    def summary(self) -> dict[str, Any]:
        """Return what `show --json` prints."""
        losses = [entry["loss"] for entry in self.steps if entry.get("loss") is not None]
        rates = [entry["tokens_per_s"] for entry in self.steps if entry.get("tokens_per_s")]
        adapter = self.folder.newest_adapter()
        return {
            "id": self.folder.id,
            "status": self.status,
            "first_train_loss": losses[0] if losses else None,
            "last_train_loss": losses[-1] if losses else None,
            "eval_losses": [entry["loss"] for entry in self.evals],
            "eval_accuracies": [e["accuracy"] for e in self.evals if "accuracy" in e],
            "eval_f1s": [e["f1"] for e in self.evals if "f1" in e],
            "steps": self.step,
            "tokens_per_s": rates[-1] if rates else None,
            "adapter": str(adapter) if adapter else None,
        }
