"""How long a run takes: its arithmetic over what this device was seen to do. No torch.

Arithmetic per token of one training pass with frozen weights (FLOP): 2·N forward and 2·N backward
for N matmul weights, 6·N_lora for the adapter, which also has gradients of its own, and 6·s·d·L
for causal attention over s tokens; recomputing adds another 2·N. The head counts at labelled
positions only; one over classes is trained, so it is among what the adapter trains. (PaLM,
arXiv 2204.02311, appendix B, less the frozen weights' gradients.)
"""

from __future__ import annotations

from lora_studio.models.accounting import ParameterCount
from lora_studio.models.description import ModelInfo
from lora_studio.prediction.workload import Workload

EFFICIENCY = {"cpu": 0.86, "mps": 0.8, "cuda": 0.8}
"""A step's rate over a calibration's, once `FIXED_TOKENS` are in. CPU: the middle of five whole
runs by the clock of two cores, 0.53 to 0.90 with the starter model, 1.03 with a GPT-2 and 1.34
with a Llama of 381 million parameters; the machine's own speed moved by as much. The others were
not measured."""
FIXED_TOKENS = {"cpu": 96, "mps": 96, "cuda": 96}
"""What a pass takes however short it is, as so many tokens: every weight is read once."""
QUANTISED_TIME = {"nf4": 1.1, "int8": 1.5}
"""How much longer a step takes where weights are unpacked first. NF4: 0.99 to 1.17 was measured on
a CPU; int8 is a guess."""


def pass_flop(
    info: ModelInfo,
    counted: ParameterCount,
    work: Workload,
    *,
    tokens: float,
    checkpointing: bool,
) -> float:
    """Return the FLOP of one forward and backward pass over `tokens` tokens of equal rows.

    Args:
        info: The base model.
        counted: What the adapter trains.
        work: Rows of a batch and the share that is labelled.
        tokens: Tokens of the batch that are computed, padding included.
        checkpointing: Whether activations are computed twice.
    """
    body = sum(group.count * group.d_in * group.d_out for group in info.modules)
    head = info.vocab_size * info.hidden_size if work.labels is None else 0
    length = tokens / work.rows
    attention = 6 * length * info.num_attention_heads * info.head_dim * info.layers
    again = 2 * body if checkpointing else 0
    a_token = 4 * body + again + 6 * counted.trainable + attention
    scored = work.labelled * (tokens + (work.rows - 1) * work.shared)
    return tokens * a_token + 4 * head * scored


def step_seconds(
    info: ModelInfo,
    counted: ParameterCount,
    work: Workload,
    *,
    device: str,
    precision: str,
    rate: float,
    checkpointing: bool,
) -> float:
    """Return the seconds of one optimizer step over rows of usual length.

    Args:
        info: The base model.
        counted: What the adapter trains.
        work: The tokens of a batch.
        device: `cuda`, `mps` or `cpu`.
        precision: The concrete number format.
        rate: FLOP a second of a calibration's passes here.
        checkpointing: Whether activations are computed twice.
    """
    tokens = work.usual_tokens
    flop = pass_flop(info, counted, work, tokens=tokens, checkpointing=checkpointing)
    flop *= 1 + FIXED_TOKENS[device] / max(tokens, 1)
    slower = QUANTISED_TIME.get(precision, 1.0)
    return work.accumulation * flop * slower / (rate * EFFICIENCY[device])


def run_seconds(
    step_s: float, *, steps: int, evaluations: int, eval_rows: int, work: Workload
) -> float:
    """Return the seconds of a run's steps and evaluations; starting and loading come on top.

    An evaluation's row takes half the time of a trained one: forward only.
    """
    row_s = step_s / (work.rows * work.accumulation)
    return steps * step_s + evaluations * eval_rows * row_s / 2
