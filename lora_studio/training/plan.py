"""What a run will do on this machine, decided before the model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_studio.hardware import QUANTISED, Hardware
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
PAUSES = 0.1
"""Share of a run that evaluations and answers may take."""
ANSWER_TOKENS = 48
"""Tokens of an answer while it learns; all prompts are answered at once."""
ANSWER_ROWS = {"cpu": 4, "mps": 20, "cuda": 80}
"""To answer them takes as long as to train so many rows of a hundred tokens. CPU: 50 to 60 ms a
token beside 150 tokens trained a second (starter model); the others are guesses."""
WORTH_TRAINING_STEPS = 50
POOL = 50
"""Steps whose rows are sorted by length together, as in transformers' own grouping: each row has
some hundred others to be beside."""


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
    rows = training.per_device_train_batch_size * recipe.launch.num_processes
    batches = math.ceil(train_rows / rows)
    per_epoch = max(math.ceil(batches / training.gradient_accumulation_steps), 1)
    return math.ceil(training.num_train_epochs * per_epoch)


def evaluates_every(recipe: Recipe, steps: int, *, device: str, rows: int) -> int:
    """Return after how many steps each the held-out loss is measured and the prompts answered.

    Unless the recipe says so, at most five times, and less often where all of it would take more
    than a tenth of the run. Before the first step and after the last it is done in any case.

    Args:
        recipe: What is trained.
        steps: Optimizer steps of the run.
        device: `cuda`, `mps` or `cpu`.
        rows: Held-out rows that are measured.
    """
    training = recipe.training
    if training.eval_steps:
        return training.eval_steps
    trained = steps * training.per_device_train_batch_size * training.gradient_accumulation_steps
    # Forward only is half of a trained pass.
    once = rows / 2 + ANSWER_ROWS[device]
    between = min(max(int(PAUSES * trained / once) - 2, 0), EVALS_PER_RUN - 1)
    return max(math.ceil(steps / (between + 1)), 1)


def measured_rows(recipe: Recipe, device: str, held_out: int) -> int:
    """Return on how many of the rows held out an evaluation measures.

    Processes that train together get whole batches, as many each: rows that are one too many would
    be measured twice.
    """
    times = SORTED_TIMES if recipe.task_type == "SEQ_CLS" else 1
    most = min(held_out, times * EVAL_ROWS[device])
    together = recipe.training.per_device_train_batch_size * recipe.launch.num_processes
    return most - most % together if recipe.launch.is_shared and most > together else most


def evenly(total: int, count: int) -> list[int]:
    """Return `count` of `total` places, evenly from all: a file often has class after class."""
    return [at * total // count for at in range(count)]


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
    measured = measured_rows(recipe, hardware.device, eval_rows)
    every = evaluates_every(recipe, steps, device=hardware.device, rows=measured)
    return Plan(
        device=hardware.device,
        precision=precision,
        autocast=_autocast(precision, hardware),
        total_steps=steps,
        eval_steps=every,
        eval_rows=measured,
        checkpointing=predict(info, recipe, place, work).checkpointing,
    )


def _autocast(precision: str, hardware: Hardware) -> str | None:
    if precision in ("bf16", "fp16"):
        return precision
    if precision in QUANTISED and hardware.device == "cuda":
        return "bf16" if hardware.has_bf16 else "fp16"
    return None
