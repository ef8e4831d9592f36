"""What a run will do on this machine, decided before the model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lora_studio.hardware import Hardware
from lora_studio.recipe import Recipe

EVALS_PER_RUN = 5
# A held-out loss on a CPU may cost about a fifth of the training it accompanies, not more.
EVAL_ROWS = {"cpu": 32, "mps": 64, "cuda": 256}
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


def make_plan(
    recipe: Recipe,
    hardware: Hardware,
    *,
    precision: str,
    config: Any,
    train_rows: int,
    eval_rows: int,
) -> Plan:
    """Decide how a recipe is run.

    Args:
        recipe: What was asked for.
        hardware: The machine.
        precision: The concrete number format, never `auto`.
        config: The model's transformers configuration.
        train_rows: Rows to learn from.
        eval_rows: Rows held out.
    """
    steps = total_steps(recipe, train_rows)
    return Plan(
        device=hardware.device,
        precision=precision,
        autocast=_autocast(precision, hardware),
        total_steps=steps,
        eval_steps=recipe.training.eval_steps or max(math.ceil(steps / EVALS_PER_RUN), 1),
        eval_rows=min(eval_rows, EVAL_ROWS[hardware.device]),
        checkpointing=_needs_checkpointing(recipe, hardware, config),
    )


def _autocast(precision: str, hardware: Hardware) -> str | None:
    if precision in ("bf16", "fp16"):
        return precision
    if precision in ("nf4", "int8") and hardware.device == "cuda":
        return "bf16" if hardware.has_bf16 else "fp16"
    return None


def _needs_checkpointing(recipe: Recipe, hardware: Hardware, config: Any) -> bool:
    """Return whether activations kept in full would take over half of the device's free memory.

    Per layer about tokens·2·(9H + 4M + 4K) bytes in 16 bit (H hidden size, M intermediate
    size, K key/value size), twice that in 32 bit.
    """
    text = config.get_text_config()
    hidden = text.hidden_size
    wide = getattr(text, "intermediate_size", None) or 4 * hidden
    heads = text.num_attention_heads
    narrow = hidden // heads * (getattr(text, "num_key_value_heads", None) or heads)
    tokens = recipe.training.per_device_train_batch_size * recipe.data.max_length
    bytes_each = 2 if hardware.device == "cuda" else 4
    layer = tokens * bytes_each * (9 * hidden + 4 * wide + 4 * narrow)
    return bool(layer * text.num_hidden_layers > hardware.device_free_bytes / 2)
