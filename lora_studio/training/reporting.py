"""From the trainer's callbacks to events, and from the stop flag to the trainer's control."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from transformers import TrainerCallback

from lora_studio.runs.events import EventWriter
from lora_studio.training import ranks
from lora_studio.training.plan import ANSWER_TOKENS

RECENT_STEPS = 20
Beginning = Literal["before", "after", "known"]
"""When the model is measured as it was before the first step: then, or after that step with the
adapter switched off, so that nobody waits for it; or it was in the part of the run before."""


class Stopped(Exception):  # noqa: N818 - a wish, not an error
    """Somebody asked the run to stop; the weights are those of the last whole step."""


class Reporter(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Writes a step, eval and sample event whenever the trainer gets that far.

    Args:
        events: Where to.
        stop: The stop flag's path; looked at after every batch, evaluations' included.
        max_training_s: Ends the run, keeping what it has, after so many seconds; None never.
    """

    def __init__(self, events: EventWriter, stop: Path, *, max_training_s: int | None) -> None:
        self._events = events
        self._stop = stop
        self._max_training_s = max_training_s
        self._trainer: Any = None
        self._questions: dict[str, Any] = {}
        self._began = self._step_began = 0.0
        self._beginning: Beginning = "before"
        self._step_s: list[float] = []
        self._step_tokens: list[int] = []
        self._tokens_before = 0
        self._usual_tokens = 0.0
        self._pauses_s = 0.0
        self._rounds = 0
        self.timed_out = False

    def attach(
        self,
        trainer: Any,
        questions: Mapping[str, Any],
        *,
        usual_tokens: float = 0.0,
        beginning: Beginning = "before",
    ) -> None:
        """Name the trainer and what else a run is reported with.

        Args:
            trainer: The trainer.
            questions: Prompts to answer, as typed, and as the trainer's `answers` takes them.
            usual_tokens: Mean tokens of an optimizer step, 0 if not known.
            beginning: When to measure what the first step starts from.
        """
        self._trainer = trainer
        self._questions = dict(questions)
        self._usual_tokens = usual_tokens
        self._beginning = beginning

    @property
    def stopping(self) -> bool:
        """Whether somebody asked the run to stop; of many processes each has to ask."""
        return ranks.agreed(self._stop.exists())

    def check_stop(self) -> None:
        """Leave the training loop, whatever it is at, if somebody asked for it.

        Raises:
            Stopped: If so.
        """
        if self.stopping:
            raise Stopped

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the model as it is before the first step, if that cannot come later."""
        self._began = self._began or time.monotonic()
        if self._beginning == "before" or state.global_step:
            self._measure_beginning(state, control)
        self.go_on()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note when the step began."""
        self.check_stop()
        self._step_began = time.monotonic()
        self._tokens_before = self._trainer.tokens_seen

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give up a step that is still gathering batches if asked to stop."""
        self.check_stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the step's time; stop if asked to."""
        self._step_s.append(time.monotonic() - self._step_began)
        seen = int(ranks.total(self._trainer.tokens_seen - self._tokens_before))
        self._trainer.count_from(self._tokens_before + seen)
        self._step_tokens.append(seen)
        limit = self._max_training_s
        taken_s = time.monotonic() - self._began
        self.timed_out = limit is not None and ranks.agreed(taken_s > limit)
        if self.stopping or self.timed_out:
            control.should_training_stop = True
            control.should_evaluate = control.should_save = False
        elif state.global_step >= state.max_steps and self._trainer.eval_dataset is not None:
            control.should_evaluate = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Write what a step did, or what an evaluation found."""
        logs = logs or {}
        if "eval_loss" in logs:
            self._write_eval(state.global_step, logs)
        elif "loss" in logs:
            self._write_step(state, logs)
            if self._beginning == "after":
                self._measure_beginning(state, control)
                self.go_on()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After an evaluation inside the run, answer the prompts again."""
        self._rounds += 1
        if state.global_step:
            self._sample(step=state.global_step)
            self.go_on()

    def go_on(self) -> None:
        """Announce that steps are made again."""
        self._events.write("stage", stage="train")

    @contextmanager
    def pause(self, stage: str) -> Iterator[None]:
        """Announce work between steps and keep its time apart from theirs."""
        self._events.write("stage", stage=stage)
        start = time.monotonic()
        yield
        self._pauses_s += time.monotonic() - start

    def _measure_beginning(self, state: Any, control: Any) -> None:
        """Measure the held-out rows and answer the prompts as of step 0, unless that is done."""
        if self._beginning == "known":
            return
        step, wish = state.global_step, control.should_evaluate
        is_late = self._beginning == "after"
        state.global_step = 0
        try:
            with self._trainer.without_adapter() if is_late else nullcontext():
                if self._trainer.eval_dataset is not None:
                    self._trainer.evaluate()
                self._sample(step=0)
        finally:
            # The library takes an evaluation for the one that this step may be due for.
            state.global_step, control.should_evaluate = step, wish
        self._beginning = "known"

    def _write_step(self, state: Any, logs: dict[str, Any]) -> None:
        recent_s = sum(self._step_s[-RECENT_STEPS:])
        self._events.write(
            "step",
            step=state.global_step,
            epoch=round(state.epoch or 0.0, 4),
            loss=float(logs["loss"]),
            grad_norm=_number(logs.get("grad_norm")),
            learning_rate=float(logs["learning_rate"]),
            tokens_per_s=round(sum(self._step_tokens[-RECENT_STEPS:]) / max(recent_s, 1e-9), 1),
            tokens_seen=self._trainer.tokens_seen,
            memory_bytes=memory_bytes(),
            seconds_left=self._seconds_left(state),
        )

    def _write_eval(self, step: int, logs: dict[str, Any]) -> None:
        loss = logs["eval_loss"]
        if "eval_accuracy" in logs:
            measured = {name: logs[f"eval_{name}"] for name in ("accuracy", "f1", "confusion")}
        else:
            measured = {"perplexity": math.exp(loss) if loss < 50 else math.inf}
        self._events.write("eval", step=step, loss=loss, **measured)

    def _seconds_left(self, state: Any) -> float:
        """Return steps and pauses still to come, at the pace of the recent ones."""
        steps = (state.max_steps - state.global_step) * self._usual_step_s()
        every = self._trainer.args.eval_steps
        rounds = math.ceil(state.max_steps / every) - state.global_step // every if every else 0
        return round(steps + rounds * self._pauses_s / max(self._rounds, 1), 1)

    def _usual_step_s(self) -> float:
        """Return the seconds of a step of usual length: a few short ones promise nothing.

        The first step warms up, and counts only while there is hardly another.
        """
        start = max(len(self._step_s) - RECENT_STEPS, 1 if len(self._step_s) > 2 else 0)
        seconds, tokens = self._step_s[start:], self._step_tokens[start:]
        mean_s = sum(seconds) / max(len(seconds), 1)
        if not self._usual_tokens or not sum(tokens):
            return mean_s
        return mean_s * self._usual_tokens * len(tokens) / sum(tokens)

    def _sample(self, *, step: int) -> None:
        answers: list[str] = []
        if self._questions and ranks.is_first():
            asked = list(self._questions.values())
            # In 16 bit, trained bias vectors and layers are float32 beside the base's.
            with self.pause("sample"), self._trainer.accelerator.autocast():
                answers = self._trainer.answers(asked, self._should_stop)
        self.check_stop()  # an answer that was cut short says nothing
        for prompt, text in zip(self._questions, answers, strict=bool(answers)):
            self._events.write("sample", step=step, prompt=prompt, answer=text)

    def _should_stop(self, input_ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._stop.exists(), device=input_ids.device)


def answer(model: Any, tokenizer: Any, rendered: Sequence[str], stopping: Any) -> list[str]:
    """Answer prompts greedily in one batch, at most 48 tokens each; one text per prompt.

    Args:
        model: The model in training; it is left in the mode it was in.
        tokenizer: Its tokenizer.
        rendered: Prompts with the chat template applied.
        stopping: A stopping criterion, so that a stop does not wait for the answers.
    """
    from transformers import StoppingCriteriaList

    batch = tokenizer(
        list(rendered),
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_token_type_ids=False,
    ).to(model.device)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            tokens = model.generate(
                **batch,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=ANSWER_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([stopping]),
            )
    finally:
        model.train(was_training)
    fresh = tokens[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(fresh, skip_special_tokens=True)]


def memory_bytes() -> int:
    """Return the peak of the device's allocator on CUDA, this process's resident memory else."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
