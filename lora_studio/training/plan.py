"""What a run will do on this machine, decided before the model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_studio.hardware import Hardware
from lora_studio.models.description import ModelInfo
from lora_studio.prediction.memory import Place, predict
from lora_studio.prediction.workload import Workload
from lora_studio.recipe import Recipe

EVALS_PER_RUN = 5
# A held-out loss on a CPU may cost about a fifth of the training it accompanies, not more.
EVAL_ROWS = {"cpu": 32, "mps": 64, "cuda": 256}
SORTED_TIMES = 4
"""So many times more rows where texts are sorted: one row says right or wrong and no more. The
accuracy of 128 rows is known to ± 8 percentage points or better (95 %, binomial)."""
WORTH_TRAINING_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The numbers a run is held to."""

    device: str
    """`cuda`, `mps` or `cpu`."""
    precision: str
    """Number format of the frozen weights."""
    autocast: str | None
    """`bf16`, `fp16` or None: the format of the arithmetic where it differs from float32."""
    total_steps: int
    """Optimizer steps."""
    eval_steps: int
    """Steps between two evaluations; a checkpoint is saved and samples are written as often."""
    eval_rows: int
    """Held-out rows that the loss is measured on."""
    checkpointing: bool
    """Whether activations are recomputed to save memory (1.4 times the time)."""


def total_steps(recipe: Recipe, train_rows: int) -> int:
    """Return the number of optimizer steps a recipe makes over so many rows."""
    training = recipe.training
    if training.max_steps:
        return training.max_steps
    batches = math.ceil(train_rows / training.per_device_train_batch_size)
    per_epoch = max(math.ceil(batches / training.gradient_accumulation_steps), 1)
    return math.ceil(training.num_train_epochs * per_epoch)


def evaluates_every(recipe: Recipe, steps: int) -> int:
    """Return after how many steps each the held-out loss is measured."""
    return recipe.training.eval_steps or max(math.ceil(steps / EVALS_PER_RUN), 1)


def measured_rows(recipe: Recipe, device: str, held_out: int) -> int:
    """Return on how many of the rows held out an evaluation measures."""
    times = SORTED_TIMES if recipe.task_type == "SEQ_CLS" else 1
    return min(held_out, times * EVAL_ROWS[device])


def make_plan(
    recipe: Recipe,
    hardware: Hardware,
    *,
    precision: str,
    info: ModelInfo,
    work: Workload,
    train_rows: int,
    eval_rows: int,
) -> Plan:
    """Decide how a recipe is run.

    Args:
        recipe: What was asked for.
        hardware: The machine.
        precision: The concrete number format, never `auto`.
        info: The base model.
        work: The tokens of its data.
        train_rows: Rows to learn from.
        eval_rows: Rows held out.
    """
    steps = total_steps(recipe, train_rows)
    place = Place.of(hardware, precision)
    return Plan(
        device=hardware.device,
        precision=precision,
        autocast=_autocast(precision, hardware),
        total_steps=steps,
        eval_steps=evaluates_every(recipe, steps),
        eval_rows=measured_rows(recipe, hardware.device, eval_rows),
        checkpointing=predict(info, recipe, place, work).checkpointing,
    )


def _autocast(precision: str, hardware: Hardware) -> str | None:
    if precision in ("bf16", "fp16"):
        return precision
    if precision in ("nf4", "int8") and hardware.device == "cuda":
        return "bf16" if hardware.has_bf16 else "fp16"
    return None
