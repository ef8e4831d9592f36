"""What a run has been through, computed from its events and the liveness of its process."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_studio.errors import RecipeError, StudioError, from_dict
from lora_studio.runs.checkpoints import newest_known
from lora_studio.runs.events import ENDS, new_lines, parsed
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.process import is_running, written_before

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
BROKEN_OFF: frozenset[Status] = ENDED - {"finished"}
"""What a run may go on from."""
STAGE_STATUS: dict[str, Status] = {
    "train": "training",
    "snapshot": "training",
    "evaluate": "evaluating",
    "sample": "evaluating",
    "save": "saving",
}
GATHERED = {"step": "steps", "eval": "evals", "sample": "samples", "warning": "warnings"}
"""Where the events of a kind are gathered,"""
LATEST = {
    "stage": "stage",
    "started": "plan",
    "saved": "saved",
    "early_stopped": "early",
    **dict.fromkeys(ENDS, "ending"),
}
"""and where the latest of a kind stands."""
# A worker is started within moments of its folder; one that never was, never will be.
STARTING_S = 60.0
SILENT_S = 300.0
"""A worker that writes nothing for so long is told of,"""
SILENT_TIMES = 10
"""but for so many times a step, where its steps take long."""
RECENT_STEPS = 20
MOST_STEPS = 4000
"""More steps than so many are thinned out: a chart has fewer points than that side by side."""
STEP, WHERE_STEP = b'"event": "step"', 64
"""How a step's line says that it is one, and up to which byte."""


@dataclass(slots=True)
class History:
    """One run's events, gathered; `update` reads only what is new."""

    folder: RunFolder
    steps: list[dict[str, Any]] = field(default_factory=list)
    """The step events: step, loss, learning_rate, grad_norm, tokens_per_s and so on; of a long run
    evenly some thousand, the first among them."""
    newest: dict[str, Any] = field(default_factory=dict)
    """The newest step event, empty before the first."""
    thinnings: int = 0
    """How often every other one of the steps was left out."""
    evals: list[dict[str, Any]] = field(default_factory=list)
    """The eval events: step, loss, and perplexity, or accuracy, f1 and confusion of classes."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """The sample events: step, prompt, answer."""
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """The warning events: step, and the cause as `StudioError.to_dict` gives it."""
    stage: dict[str, Any] = field(default_factory=dict)
    """The latest stage event: stage, done, total."""
    plan: dict[str, Any] = field(default_factory=dict)
    """The started event: steps, rows, trainable parameters, precision and its reason, task_type
    and the labels of a text classification."""
    ending: dict[str, Any] = field(default_factory=dict)
    """The finished, stopped or failed event, empty while there is none."""
    saved: dict[str, Any] = field(default_factory=dict)
    """The saved event: adapter, bytes, and best_step where an earlier step's was taken."""
    early: dict[str, Any] = field(default_factory=dict)
    """The early_stopped event: step and best_step, empty where the run went its whole way."""
    resumes: int = 0
    """How often the run went on from a checkpoint,"""
    away_s: float = 0.0
    """and the seconds it had been over before."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each stage took so far, those of a resumed run added up."""
    first_time: float | None = None
    last_time: float | None = None
    _offset: int = 0
    _seen: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def update(self) -> History:
        """Take in the events written since the last call; return this history."""
        with self._lock:
            for lines, after in new_lines(self.folder.events, self._offset):
                self._offset = after
                self._take_lines(lines)
        return self

    def _take_lines(self, lines: Sequence[bytes]) -> None:
        """Take in lines in their order; those of a long run are a million steps."""
        start = 0
        for at, line in enumerate(lines):
            if line.find(STEP, 0, WHERE_STEP) < 0:
                self._take_steps(lines[start:at])
                self._take_line(line)
                start = at + 1
        self._take_steps(lines[start:])

    def _take_steps(self, lines: Sequence[bytes]) -> None:
        """Take in steps that follow each other: of a long run one in so many, and the last."""
        until = self._seen + len(lines)
        while (kept := self._next_kept()) < until:
            self._take_line(lines[kept - until])
            self._seen = kept + 1
        last = parsed(lines[-1]) if self._seen < until else None
        if last is not None:
            self._take_time(last)
            self.newest, self.last_time = last, last["time"]
        self._seen = until

    def _next_kept(self) -> int:
        """Return which step, counted from 0, is the next that is not left out unread."""
        every = 2**self.thinnings
        return -(-self._seen // every) * every

    def _take_line(self, line: bytes) -> None:
        event = parsed(line)
        if event is not None:
            self._take(event)

    def _thin(self) -> None:
        self.steps[:] = self.steps[::2]
        self.thinnings += 1

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        self._take_time(event)
        if kind in GATHERED:
            getattr(self, GATHERED[kind]).append(event)
            if kind == "step":
                self.newest = event
            if len(self.steps) > MOST_STEPS:
                self._thin()
        elif kind in LATEST:
            setattr(self, LATEST[kind], event)
        elif kind == "resumed":
            self._go_back(event)
        self.first_time = self.first_time or event["time"]
        self.last_time = event["time"]

    def _take_time(self, event: dict[str, Any]) -> None:
        """Add the time since the last event to the stage that it was spent in."""
        name = self.stage.get("stage")
        if name and not self.ending and self.last_time is not None:
            # A clock that was set back says nothing.
            spent = max(event["time"] - self.last_time, 0.0)
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def _go_back(self, event: dict[str, Any]) -> None:
        """Forget what came after the checkpoint that the run goes on from, and that it was over."""
        for entries in (self.steps, self.evals, self.samples, self.warnings):
            entries[:] = [entry for entry in entries if entry.get("step", 0) <= event["step"]]
        # The step itself may be one that was left out.
        self.newest = self.steps[-1] | {"step": event["step"]} if self.steps else {}
        self._seen = event["step"]
        self.stage, self.ending, self.saved, self.early = {}, {}, {}, {}
        self.away_s += max(event["time"] - (self.last_time or event["time"]), 0.0)
        self.resumes += 1

    @property
    def _is_taken_up(self) -> bool:
        """Whether another worker has been started since the last event."""
        return 0 < self._offset <= written_before(self.folder.process)

    @property
    def status(self) -> Status:
        """Where the run stands; computed, never stored."""
        if self.folder.waits():
            return "queued"
        if self.ending and not self._is_taken_up:
            kind: Status = self.ending["event"]
            return kind
        if not self.folder.process.exists():
            waited_s = time.time() - self.folder.recipe.stat().st_mtime
            has_begun = self.first_time is not None or waited_s > STARTING_S
            return "lost" if has_begun else "queued"
        if not is_running(self.folder.process):
            # The worker may have written its last words between the two looks.
            self.update()
            if self.ending and not self._is_taken_up:
                return self.status
            wish = self.folder.stop_wish()
            # Who wanted to keep what it had learned must hear that it was not saved.
            loses_nothing = wish == "discard" or (wish is not None and not self.steps)
            return "stopped" if loses_nothing else "lost"
        if self._is_taken_up:
            return "preparing"
        return STAGE_STATUS.get(self.stage.get("stage", ""), "preparing")

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ENDED

    @property
    def rewritten(self) -> int:
        """How often what a reader may have seen of the steps was changed; it reads them anew."""
        return self.resumes + self.thinnings

    @property
    def step(self) -> int:
        """The last optimizer step, 0 before the first."""
        return int(self.newest.get("step", 0))

    @property
    def total_steps(self) -> int:
        """The planned number of optimizer steps, 0 while it is not known."""
        return int(self.plan.get("total_steps", 0))

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest held-out loss, the one before the first step left out."""
        found = [entry for entry in self.evals if entry["step"] and entry["loss"] is not None]
        return min(found, key=lambda entry: entry["loss"], default=None)

    @property
    def resumable(self) -> int | None:
        """The step that a run which ended before its time can go on from, None if it cannot."""
        if self.status not in BROKEN_OFF or self.folder.stop_wish() == "discard":
            return None
        return newest_known(self.folder)

    @property
    def cause(self) -> StudioError | None:
        """Why there is not what was wanted: the run failed, is lost, or stopped too early."""
        status = self.status
        if status == "failed":
            return from_dict(self.ending["cause"])
        if status == "stopped" and self.folder.stop_wish() in ("keep", "pause"):
            has_kept = self.ending.get("kept") or self.ending.get("paused")
            return None if has_kept else StudioError("run.nothing_to_keep")
        if status == "lost":
            steps = self.folder.checkpoint_steps()
            if steps:
                return StudioError("run.lost_with_checkpoint", step=steps[-1])
            return self._never_began() or StudioError("run.lost")
        return None

    def _never_began(self) -> StudioError | None:
        """Say that machines did not meet, where that is why nothing was ever written."""
        if self.first_time is not None:
            return None
        try:
            launch = self.folder.read_recipe().launch
        except RecipeError:  # of a later version of this program
            return None
        if launch.num_machines == 1:
            return None
        where = f"{launch.main_process_ip}:{launch.main_process_port}"
        return StudioError("launch.not_met", machines=launch.num_machines, where=where)

    @property
    def concerns(self) -> list[StudioError]:
        """What goes wrong while the run goes on: the watchdogs' words, and a worker gone silent."""
        said = [from_dict(event["cause"]) for event in self.warnings]
        silent_s = self._silent_s()
        if silent_s is not None:
            said.append(StudioError("run.silent", minutes=round(silent_s / 60)))
        return said

    def _silent_s(self) -> float | None:
        """Return for how long a living worker has written nothing, if that is unusually long."""
        if self.last_time is None or self._is_taken_up or self.status in {"queued", *ENDED}:
            return None
        recent = self.steps[-RECENT_STEPS:]
        steps = recent[-1]["step"] - recent[0]["step"] if recent else 0
        step_s = (recent[-1]["time"] - recent[0]["time"]) / steps if steps else 0.0
        silent_s = time.time() - self.last_time
        return silent_s if silent_s > max(SILENT_S, SILENT_TIMES * step_s) else None

    def summary(self) -> dict[str, Any]:
        """Return what `show --json` prints."""
        losses = [entry["loss"] for entry in self.steps if entry.get("loss") is not None]
        adapter = self.folder.newest_adapter()
        return {
            "id": self.folder.id,
            "status": self.status,
            "first_train_loss": losses[0] if losses else None,
            "last_train_loss": self._last("loss"),
            "eval_losses": [entry["loss"] for entry in self.evals],
            "eval_accuracies": [e["accuracy"] for e in self.evals if "accuracy" in e],
            "eval_f1s": [e["f1"] for e in self.evals if "f1" in e],
            "best_step": self.best["step"] if self.best else None,
            "adapter_step": self.saved.get("best_step", self.step) if self.saved else None,
            "early_stopped": self.early.get("step"),
            "steps": self.step,
            "tokens_per_s": self._last("tokens_per_s"),
            "seconds": {name: round(spent, 1) for name, spent in self.seconds.items()},
            "adapter": str(adapter) if adapter else None,
            "warnings": [str(concern) for concern in self.concerns],
        }

    def _last(self, name: str) -> float | None:
        """Return the last number of that name that a step had."""
        steps = (self.newest, *reversed(self.steps))
        return next((step[name] for step in steps if step.get(name) is not None), None)
