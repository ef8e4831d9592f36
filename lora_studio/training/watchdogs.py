"""Looks at a training while it runs, and says in plain words what goes wrong.

A watchdog tells and changes nothing, but for one: a step whose loss or gradient is not a number is
not applied, and after `BROKEN_STEPS` of them in a row the run ends with what was sound before.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from lora_studio.errors import RunError, StudioError
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder
from lora_studio.training import ranks
from lora_studio.training.remedies import Remedy

BROKEN_STEPS = 3
RISING_EVALS = 3
SLOW_TIMES = 10
SLOW_S = 1.0
"""A step shorter than this is slow for nobody, however short the others are."""
USUAL_STEPS = 50
"""What a step usually takes is the median of so many last ones,"""
FEWEST_STEPS = 5
"""known from so many on."""
SLOW_EVERY_STEPS = 100
"""A machine that is slow now and then is not told of more often."""
LEAST_FREE_BYTES = 2_000_000_000
LOOK_AT_DISK_S = 10.0

Rate = float


class Watchdogs(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Writes a `warning` event wherever a training goes wrong.

    Args:
        trainer: The trainer; its reporter stands before this callback, so that a step's event
            comes before what is said of the step.
        events: Where to.
        folder: The run's folder, on the disk that is watched.
        rate: The learning rate of the recipe.
        steadier: Asked for what to change when numbers ran away.
    """

    def __init__(
        self,
        trainer: Any,
        events: EventWriter,
        folder: RunFolder,
        *,
        rate: Rate,
        steadier: Callable[[], list[Remedy]],
    ) -> None:
        self._trainer = trainer
        self._events = events
        self._folder = folder
        self._rate = rate
        self._steadier = steadier
        self._pace = Pace()
        self._evals: list[tuple[int, float]] = []
        self._said: set[str] = set()
        self._dropped = False
        self._broken = self._sound = self._tokens = 0
        self._began = 0.0
        self._next_look = self._slow_until = 0.0

    @classmethod
    def watch(cls, trainer: Any, *about: Any, **more: Any) -> None:
        """Put watchdogs on a trainer; arguments as above."""
        trainer.add_callback(cls(trainer, *about, **more))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the disk."""
        self._judge_disk(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note when the step began."""
        self._began = time.monotonic()
        self._tokens = self._trainer.tokens_seen

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Take back gradients that are not numbers: the optimizer then leaves all as it was.

        In fp16 the library's loss scaling does so by itself, and lowers its scale.
        """
        self._dropped = self._trainer.accelerator.scaler is None and self._is_broken(model)
        if self._dropped:
            model.zero_grad(set_to_none=True)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Judge what a step did, or what an evaluation found.

        Raises:
            RunError: If numbers ran away and do not come back.
        """
        logs, step = logs or {}, int(state.global_step)
        if "eval_loss" in logs:
            self._judge_eval(step, float(logs["eval_loss"]))
        elif "loss" in logs:
            self._judge_step(step, float(logs["loss"]), logs.get("grad_norm"))
            self._judge_pace(step)
            self._judge_disk(step)

    def _warn(self, step: int, cause: StudioError) -> None:
        self._events.write("warning", step=step, cause=cause.to_dict())

    def _once(self, step: int, cause: StudioError) -> None:
        if cause.key not in self._said:
            self._said.add(cause.key)
            self._warn(step, cause)

    # Numbers that are none

    def _is_broken(self, model: Any) -> bool:
        """Return whether the loss or any gradient of this step is not finite, on any device."""
        found = [weight.grad for weight in model.parameters() if weight.grad is not None]
        largest = torch.nn.utils.get_total_norm([_here(grad) for grad in found], math.inf)
        # Logged at every step, so that the sum since the last log is this step's loss.
        broken = ~torch.isfinite(self._trainer._tr_loss + largest)  # noqa: SLF001
        return ranks.agreed(bool(broken))

    def _judge_step(self, step: int, loss: float, norm: Any) -> None:
        if not self._dropped and math.isfinite(loss):
            self._broken, self._sound = 0, step
            self._judge_zero(step, loss, norm)
            return
        # The library takes the loss off the sum to begin anew, which leaves NaN as it is.
        self._trainer._tr_loss.zero_()  # noqa: SLF001
        self._broken += 1
        if self._broken == BROKEN_STEPS:
            raise self._given_up(step)
        cause = StudioError("training.step_skipped", step=step, rate=self._rate, limit=BROKEN_STEPS)
        self._warn(step, cause)

    def _given_up(self, step: int) -> RunError:
        """Return why the run ends; of the checkpoints only sound ones stay."""
        about = {"count": BROKEN_STEPS, "step": step, "rate": self._rate}
        remedies = self._steadier()
        kept = self._keep_sound_checkpoints()
        if kept is None:
            return RunError("training.diverged", **about, remedies=remedies)
        return RunError("training.diverged_kept", **about, kept=kept, remedies=remedies)

    def _keep_sound_checkpoints(self) -> int | None:
        """Remove checkpoints that nobody knows to be sound; return the last one's step.

        The loss of a step tells of the weights before it: those of a checkpoint are known to be
        sound by a later step's loss, or by their own evaluation.
        """
        measured = {step for step, _ in self._evals}
        kept = None
        for step in self._folder.checkpoint_steps():
            if step < self._sound or step in measured:
                kept = step
            elif ranks.is_first():
                shutil.rmtree(self._folder.checkpoint(step), ignore_errors=True)
        return kept

    # Nothing is learned, or the wrong thing

    def _judge_zero(self, step: int, loss: float, norm: Any) -> None:
        if loss == 0:
            self._once(step, StudioError("training.zero_loss", step=step))
        elif norm is not None and float(norm) == 0:
            weights = sum(
                weight.numel()
                for weight in self._trainer.model.parameters()
                if weight.requires_grad
            )
            self._once(
                step,
                StudioError("training.zero_gradient", step=step, loss=loss, weights=weights),
            )

    def _judge_eval(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            return
        self._evals.append((step, loss))
        if not is_rising([loss for _, loss in self._evals]):
            return
        best, low = min(self._evals, key=lambda found: found[1])
        cause = StudioError(
            "training.eval_rising", times=RISING_EVALS, best=best, low=low, step=step, now=loss
        )
        self._warn(step, cause)

    # The machine

    def _judge_pace(self, step: int) -> None:
        seconds = time.monotonic() - self._began
        usual = self._pace.judge(seconds, self._trainer.tokens_seen - self._tokens)
        if usual is None or step < self._slow_until:
            return
        self._slow_until = step + SLOW_EVERY_STEPS
        times = seconds / usual
        cause = StudioError(
            "training.slow_step", step=step, seconds=seconds, usual=usual, times=times
        )
        self._warn(step, cause)

    def _judge_disk(self, step: int) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_AT_DISK_S
        free = psutil.disk_usage(str(self._folder.path)).free
        cause = StudioError("training.disk_low", free=free / 1e9, least=LEAST_FREE_BYTES / 1e9)
        if free < LEAST_FREE_BYTES:
            self._once(step, cause)
        else:
            self._said.discard(cause.key)


class Pace:
    """What a step usually takes, and which one took far longer for no reason of its own."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=USUAL_STEPS)
        self._per_token: deque[float] = deque(maxlen=USUAL_STEPS)

    def judge(self, seconds: float, tokens: int) -> float | None:
        """Take in a step; return the usual seconds if it took `SLOW_TIMES` as long, else None.

        A step over longer rows takes longer, one over few tokens takes longer for each: slow is
        what is both.
        """
        per_token = seconds / max(tokens, 1)
        usual = None
        if len(self._seconds) >= FEWEST_STEPS and seconds >= SLOW_S:
            typical = statistics.median(self._seconds)
            is_slow = seconds > SLOW_TIMES * typical
            if is_slow and per_token > SLOW_TIMES * statistics.median(self._per_token):
                usual = typical
        self._seconds.append(seconds)
        self._per_token.append(per_token)
        return usual


def is_rising(losses: Sequence[float]) -> bool:
    """Return whether the last `RISING_EVALS` losses, and no more, were each above the one before.

    No more, so that one rise is told of once.
    """
    rises = 0
    for before, after in zip(losses[-2::-1], losses[:0:-1], strict=True):
        if after <= before:
            break
        rises += 1
    return rises == RISING_EVALS


def _here(grad: Any) -> torch.Tensor:
    """Return the part of a gradient that lies on this device, where it is spread over several."""
    return grad.to_local() if hasattr(grad, "to_local") else grad
