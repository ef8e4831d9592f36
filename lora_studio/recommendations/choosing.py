"""Chooses every setting for a goal from the data, the model and the machine. No torch."""

from __future__ import annotations

import math

from lora_studio.hardware import Hardware, default_precision, precisions
from lora_studio.models.description import ModelInfo
from lora_studio.recipe import ALL_LINEAR, CLASSIFICATION
from lora_studio.recommendations.recommendation import DataFacts, Recommendation, Recommended
from lora_studio.recommendations.table import (
    ALPHA,
    BATCHES,
    COVERED,
    DROPOUT,
    DROPOUT_FROM_EPOCHS,
    ENOUGH_STEPS,
    GOALS,
    HEAD,
    HELD_OUT,
    HELD_OUT_TO_SORT,
    LEAST_LENGTH,
    LENGTH_STEP,
    LITTLE_OF_MEMORY,
    LONGEST,
    LORA_GLUE,
    LORA_RANK,
    LORA_WARMUP,
    MOST_STEPS,
    OWN,
    PASS_TOKENS,
    PASS_TOKENS_PER_GIB,
    PEFT,
    PIECE,
    QLORA_DROPOUT,
    QLORA_NF4,
    RANKS,
    REGRET,
    ROOM_FOR_WEIGHTS,
    SCHEDULER,
    TOKENS_WORTH_A_PASS,
    WARMUP,
    WEIGHT_BYTES,
    Goal,
    GoalName,
    entry_at,
    rate_of,
)


def recommend(
    goal: GoalName, data: DataFacts, info: ModelInfo, hardware: Hardware
) -> Recommendation:
    """Choose every setting for a goal."""
    chosen = GOALS[goal]
    length = _max_length(data, info, hardware)
    rows = _rows(data, length.value)
    held_out = _eval_fraction(chosen, rows)
    train_rows = max(round(rows * (1 - held_out.value)), 1)
    tokens = min(max(data.tokens // rows, 1), length.value)
    epochs = min(max(math.ceil(chosen.seen_rows / train_rows), 1), chosen.most_epochs)
    per_step = _rows_per_step(train_rows, epochs, tokens, hardware)
    batch = _batch(per_step, length.value, tokens, hardware)
    accumulation = per_step // batch.value
    passes = math.ceil(math.ceil(train_rows / batch.value) / accumulation)
    steps = epochs * passes
    limit = chosen.most_steps or MOST_STEPS.get(hardware.device)
    most_steps = limit if limit and limit < steps else None
    r = _rank(chosen, data, info)
    task = {"data.format": _format(data)} if chosen.sorts else {}
    values = task | {
        "adapter.r": r,
        "adapter.lora_alpha": Recommended(
            value=ALPHA,
            reason_key="recommendations.alpha",
            reason_values={"alpha": ALPHA, "r": r.value, "scale": ALPHA / r.value},
            source=REGRET,
        ),
        "adapter.target_modules": Recommended(
            value=ALL_LINEAR,
            reason_key="recommendations.all_linear",
            reason_values={"count": sum(group.count for group in info.modules)},
            source=REGRET,
        ),
        "adapter.lora_dropout": _dropout(epochs, limited=most_steps is not None),
        "precision": _precision(info, hardware),
        "data.max_length": length,
        "data.eval_fraction": held_out,
        "training.learning_rate": _rate(info),
        "training.num_train_epochs": _epochs(chosen, train_rows, epochs, steps),
        "training.max_steps": _max_steps(chosen, most_steps, steps, epochs),
        "training.per_device_train_batch_size": batch,
        "training.gradient_accumulation_steps": _accumulation(batch.value, accumulation),
        "training.lr_scheduler_type": Recommended(
            value=SCHEDULER, reason_key="recommendations.scheduler", source=PEFT
        ),
        "training.warmup_ratio": Recommended(
            value=WARMUP,
            reason_key="recommendations.warmup",
            reason_values={
                "steps": most_steps or steps,
                "rising": math.ceil(WARMUP * (most_steps or steps)),
            },
            source=LORA_WARMUP,
        ),
    }
    return Recommendation(
        goal=goal,
        values=values,
        module_names=info.target_names,
        precision=default_precision(hardware),
    )


def _format(data: DataFacts) -> Recommended:
    return Recommended(
        value=CLASSIFICATION,
        reason_key="recommendations.format_classes",
        reason_values={"labels": data.labels},
        source=HEAD,
    )


def _rate(info: ModelInfo) -> Recommended:
    rate, source = rate_of(info)
    key = "recommendations.rate_small" if source is REGRET else "recommendations.rate_large"
    return Recommended(
        value=rate,
        reason_key=key,
        reason_values={"billions": info.parameters / 1e9, "rate": f"{rate:g}"},
        source=source,
    )


def _max_length(data: DataFacts, info: ModelInfo, hardware: Hardware) -> Recommended:
    """Choose the length of text pieces, or one that covers 99 % of the conversations."""
    most = min(info.context_length or math.inf, LONGEST[hardware.device])
    if data.is_text:
        piece = int(min(PIECE[hardware.device], most))
        return Recommended(
            value=piece, reason_key="recommendations.length_text", reason_values={"length": piece}
        )
    covering = data.covering(COVERED)
    wanted = max(math.ceil(covering / LENGTH_STEP) * LENGTH_STEP, LEAST_LENGTH)
    length = int(min(wanted, most))
    longest = max((n for n, _ in data.lengths), default=0)
    values = {"length": length, "wanted": covering, "longest": longest}
    if length >= covering:
        key = "recommendations.length_covers"
    elif length == info.context_length:
        key = "recommendations.length_context"
    else:
        key = f"recommendations.length_{'gpu' if hardware.device == 'cuda' else 'cpu'}"
    return Recommended(value=length, reason_key=key, reason_values=values)


def _rows(data: DataFacts, length: int) -> int:
    """Return the rows there will be with the recommended length."""
    return max(math.ceil(data.tokens / length) if data.is_text else data.rows, 1)


def _eval_fraction(goal: Goal, rows: int) -> Recommended:
    table = HELD_OUT_TO_SORT if goal.sorts else HELD_OUT
    key = "recommendations.held_out_to_sort" if goal.sorts else "recommendations.held_out"
    share = entry_at(table, rows)
    if not share:
        key = "recommendations.held_out_none"
    values = {"rows": rows, "held": round(rows * share)}
    return Recommended(value=share, reason_key=key, reason_values=values)


def _rank(goal: Goal, data: DataFacts, info: ModelInfo) -> Recommended:
    """Choose the least rank whose parameters are as many as the tokens that are learned."""
    per_rank = sum(group.count * (group.d_in + group.d_out) for group in info.modules)
    narrowest = min((min(group.d_in, group.d_out) for group in info.modules), default=1)
    if goal.sorts:
        return _rank_to_sort(min(goal.r, narrowest), per_rank, data)
    known = [r for r in RANKS if r >= goal.r]
    roomy = next((r for r in known if r * per_rank >= data.trained_tokens), known[-1])
    r = min(roomy, narrowest)
    values = {"r": r, "parameters": r * per_rank, "tokens": data.trained_tokens}
    if r < roomy:
        return Recommended(
            value=r, reason_key="recommendations.r_narrow", reason_values=values, source=OWN
        )
    if r == goal.r:
        return Recommended(
            value=r, reason_key="recommendations.r_enough", reason_values=values, source=LORA_RANK
        )
    return Recommended(
        value=r, reason_key="recommendations.r_more", reason_values=values, source=REGRET
    )


def _rank_to_sort(r: int, per_rank: int, data: DataFacts) -> Recommended:
    """Take the least rank: a label says far less than the tokens of an answer."""
    return Recommended(
        value=r,
        reason_key="recommendations.r_to_sort",
        reason_values={"r": r, "parameters": r * per_rank, "rows": data.trained_tokens},
        source=LORA_GLUE,
    )


def _rows_per_step(rows: int, epochs: int, tokens: int, hardware: Hardware) -> int:
    """Choose the rows of an optimizer step; more of short rows on a processor."""
    count = entry_at(BATCHES, rows)
    while (
        hardware.device == "cpu"
        and count < BATCHES[-1][1]
        and count * tokens < TOKENS_WORTH_A_PASS
        and rows * epochs >= 2 * count * ENOUGH_STEPS
    ):
        count *= 2
    return count


def _batch(per_step: int, length: int, tokens: int, hardware: Hardware) -> Recommended:
    """Choose the rows of one pass: as many of a step's as memory takes."""
    gib = hardware.device_free_bytes / 2**30
    most = PASS_TOKENS.get(hardware.device) or max(round(gib * PASS_TOKENS_PER_GIB), 1024)
    count = per_step
    while count > 1 and count * length > most:
        count //= 2
    values = {"batch": count, "length": length, "tokens": count * tokens, "step": per_step}
    kind = "cpu" if hardware.device == "cpu" else "gpu"
    key = f"recommendations.batch_{kind}" if count == per_step else "recommendations.batch_memory"
    return Recommended(
        value=count, reason_key=key, reason_values=values, source=REGRET if kind == "gpu" else OWN
    )


def _accumulation(batch: int, count: int) -> Recommended:
    key = "recommendations.accumulate" if count > 1 else "recommendations.accumulate_none"
    values = {"batch": batch, "count": count, "step": batch * count}
    return Recommended(value=count, reason_key=key, reason_values=values, source=REGRET)


def _epochs(goal: Goal, rows: int, epochs: int, steps: int) -> Recommended:
    values = {"rows": rows, "epochs": epochs, "steps": steps}
    if epochs == 1:
        key = "recommendations.epochs_one"
    elif epochs == goal.most_epochs:
        key = "recommendations.epochs_most"
    else:
        key = "recommendations.epochs_few"
    return Recommended(value=float(epochs), reason_key=key, reason_values=values)


def _max_steps(goal: Goal, most: int | None, steps: int, epochs: int) -> Recommended:
    values = {"most": most, "steps": steps, "epochs": epochs}
    if most is None:
        key = "recommendations.steps_all"
    elif goal.most_steps:
        key = "recommendations.steps_quick"
    else:
        key = "recommendations.steps_cpu"
    return Recommended(value=most, reason_key=key, reason_values=values)


def _dropout(epochs: int, *, limited: bool) -> Recommended:
    repeats = epochs >= DROPOUT_FROM_EPOCHS and not limited
    return Recommended(
        value=DROPOUT if repeats else 0.0,
        reason_key=f"recommendations.dropout_{'some' if repeats else 'none'}",
        reason_values={"epochs": epochs},
        source=QLORA_DROPOUT if repeats else PEFT,
    )


def _precision(info: ModelInfo, hardware: Hardware) -> Recommended:
    """Choose `auto` unless its weights do not fit, or 4 bit would save what is not needed."""
    auto = default_precision(hardware)
    usable = {entry.name for entry in precisions(hardware) if entry.available}
    free = max(hardware.device_free_bytes, 1)

    def share(name: str) -> float:
        return WEIGHT_BYTES[name] * info.parameters / free

    values = {"free": free / 1e9, "auto": auto}
    if auto == "nf4" and "bf16" in usable and share("bf16") <= LITTLE_OF_MEMORY:
        value, key, source = "bf16", "recommendations.precision_exact", OWN
    elif share(auto) > ROOM_FOR_WEIGHTS and auto != "nf4" and "nf4" in usable:
        value, key, source = "nf4", "recommendations.precision_small", QLORA_NF4
    elif auto == "nf4":
        value, key, source = "auto", "recommendations.precision_nf4", QLORA_NF4
    else:
        value, key, source = "auto", "recommendations.precision_auto", OWN
    kept = auto if value == "auto" else value
    values |= {"gb": WEIGHT_BYTES[kept] * info.parameters / 1e9, "other": share(auto) * free / 1e9}
    return Recommended(value=value, reason_key=key, reason_values=values, source=source)
