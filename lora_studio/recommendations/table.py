"""The one table of recommended values, with their sources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from lora_studio.models.description import ModelInfo

Value = TypeVar("Value")
GoalName = Literal["quick_try", "style", "question_answering", "domain_text", "classification"]
GOAL_NAMES: tuple[GoalName, ...] = get_args(GoalName)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a value is known from."""

    title: str
    """As cited, with the place."""
    url: str = ""
    """Where to read it; empty for what this program measured or decided itself."""


_LORA, _QLORA = "https://arxiv.org/abs/2106.09685", "https://arxiv.org/abs/2305.14314"
LORA_RANK = Source(title="LoRA, section 7.2", url=_LORA)
LORA_WARMUP = LORA_GLUE = Source(title="LoRA, table 9", url=_LORA)
QLORA_DROPOUT = Source(title="QLoRA, appendix A", url=_QLORA)
QLORA_RATE = Source(title="QLoRA, table 9", url=_QLORA)
QLORA_NF4 = Source(title="QLoRA, section 3", url=_QLORA)
REGRET = Source(title="LoRA Without Regret", url="https://thinkingmachines.ai/blog/lora/")
PEFT = Source(
    title="PEFT method comparison",
    url="https://github.com/huggingface/peft/tree/main/method_comparison",
)
HEAD = Source(
    title="Transformers, text classification",
    url="https://huggingface.co/docs/transformers/tasks/sequence_classification",
)
OWN = Source(title="LoRA Studio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What differs from goal to goal."""

    r: int
    """The least rank."""
    seen_rows: int
    """So many rows should be seen in all, each pass counting anew."""
    most_epochs: int
    """Passes over the data from which on it is rather memorised."""
    most_steps: int | None = None
    """Optimizer steps that are enough, or None to go by epochs."""
    sorts: bool = False
    """Whether texts are sorted into classes instead of written."""


GOALS: Mapping[GoalName, Goal] = {
    "quick_try": Goal(r=8, seen_rows=600, most_epochs=10, most_steps=60),
    "style": Goal(r=16, seen_rows=3000, most_epochs=5),
    "question_answering": Goal(r=16, seen_rows=3000, most_epochs=4),
    "domain_text": Goal(r=32, seen_rows=2400, most_epochs=3),
    # A row teaches no more than its label, so rows are seen more often; the paper's own passes
    # over GLUE are 10 to 80 (LoRA, table 9).
    "classification": Goal(r=8, seen_rows=4000, most_epochs=8, sorts=True),
}
# A larger adapter where the text is more than a smaller one can hold. PEFT's comparison has 32
# and 64 as its usual ranks; over 128 the file and the optimizer weigh more than they bring here.
RANKS = (8, 16, 32, 64, 128)
# Fixed over all ranks, so that the best learning rate does not move with the rank.
ALPHA = 32
# (parameters of the model up to which it holds, peak learning rate, source). The first is ten
# times the rate of full fine-tuning; the starter model learned in 40 steps with it.
RATES: tuple[tuple[float, float, Source], ...] = (
    (2e9, 5e-4, REGRET),
    (20e9, 2e-4, QLORA_RATE),
    (math.inf, 1e-4, QLORA_RATE),
)
FAR_OFF = 10
"""A learning rate so many times over or under the recommended one is warned of."""
DROPOUT, DROPOUT_FROM_EPOCHS = 0.05, 3
# (rows up to which it holds, rows per optimizer step): small data still makes steps enough.
BATCHES: tuple[tuple[float, int], ...] = ((63, 2), (255, 4), (2047, 8), (math.inf, 16))
MOST_ROWS_PER_STEP = 32
"""LoRA loses more than full fine-tuning with larger batches (LoRA Without Regret)."""
# (rows up to which it holds, share held out): little of few rows,
# and none of so few that each is needed.
HELD_OUT: tuple[tuple[float, float], ...] = (
    (19, 0.0),
    (999, 0.1),
    (19_999, 0.05),
    (math.inf, 0.02),
)
# More where classes are counted: the accuracy over n rows is known to within 50/√n points.
HELD_OUT_TO_SORT: tuple[tuple[float, float], ...] = (
    (19, 0.0),
    (999, 0.2),
    (9_999, 0.1),
    (math.inf, 0.05),
)
SCHEDULER, WARMUP = "cosine", 0.06
COVERED = 0.99
"""Share of the rows that fits whole into the recommended length."""
LENGTH_STEP, LEAST_LENGTH = 8, 64
LONGEST = {"cpu": 2048, "mps": 2048, "cuda": 8192}
PIECE = {"cpu": 512, "mps": 512, "cuda": 1024}
"""Length of the pieces of a plain text."""
# Measured: a processor's matrix arithmetic is at its best from 700 tokens on (two AVX-512 cores).
TOKENS_WORTH_A_PASS = 700
PASS_TOKENS = {"cpu": 2048, "mps": 4096}
PASS_TOKENS_PER_GIB = 256
"""On a GPU, by its free memory."""
MOST_STEPS = {"cpu": 1000, "mps": 4000}
ENOUGH_STEPS = 100
WEIGHT_BYTES = {"nf4": 0.5625, "int8": 1.0, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
ROOM_FOR_WEIGHTS, LITTLE_OF_MEMORY = 0.7, 0.15


def rate_of(info: ModelInfo) -> tuple[float, Source]:
    """Return the recommended peak learning rate for a model's size, and its source."""
    return next((rate, source) for most, rate, source in RATES if info.parameters <= most)


def entry_at(table: tuple[tuple[float, Value], ...], value: float) -> Value:
    """Return the entry of the first row whose end is not under the value."""
    return next(entry for most, entry in table if value <= most)
