"""How the arithmetic of a training is done here: as fast as its model lets it, and no faster.

What is put in place of the library's own way has to give the same loss on this run's own rows; if
it does not, it is taken back, and the run goes the library's way. No run is quick and wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from lora_studio.data.encoding import IGNORE_INDEX
from lora_studio.errors import RunError
from lora_studio.recipe import TrainingSpec
from lora_studio.training.compiled import compile_layers
from lora_studio.training.documents import (
    EndToEnd,
    Padded,
    attend_as_it_comes,
    attend_by_document,
)
from lora_studio.training.fused import fuse, separate
from lora_studio.training.kernels import kernel_for
from lora_studio.training.randomness import undrawn
from lora_studio.training.writing import token_losses

log = logging.getLogger(__name__)

NARROW = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}
AWAKE = 0.02
"""Standard deviation of the B that an adapter is compared with."""
COMPARED_ROWS = 3
COMPARED_TOKENS = 24
"""Of a row from either end: its arithmetic is that of a longer one, and a start waits for it."""
LOOKED_AT_ROWS = 64
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 1e-2, "nf4": 1e-2, "int8": 2e-2}
"""Relative difference of the losses that rounding explains, by the frozen weights' format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a training's batches look like, and which layers were put together."""

    collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    """Makes a batch of rows."""
    packing: bool
    """Whether rows are laid end to end, without padding."""
    shares_beginning: bool
    """Whether what all rows of a batch begin with is computed once."""
    fused: Mapping[str, int] = field(default_factory=dict)
    """How many layers of which kind."""
    attention: str = "sdpa"
    """What attends: torch's function for rows one by one or padded, or a kernel for all."""
    difference: float = 0.0
    """Of the tokens' losses from the library's own, relative; measured on the run's rows."""
    grouped: bool = False
    """Whether rows of about the same length are learned in the same step."""
    compile_s: float | None = None
    """Seconds that compiling the layers took; None where they are not compiled."""

    def to_dict(self) -> dict[str, Any]:
        """Return what the run's `started` event says of it."""
        return {
            "packing": self.packing,
            "shares_beginning": self.shares_beginning,
            "fused": dict(self.fused),
            "attention": self.attention,
            "difference": self.difference,
            "grouped": self.grouped,
            "compile_s": self.compile_s,
        }


def plain_engine(padding: int) -> Engine:
    """Return the library's own way, with rows padded by a token id."""
    return Engine(collator=Padded(padding), packing=False, shares_beginning=False)


def choose_engine(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    spec: TrainingSpec,
    *,
    precision: str,
    autocast: str | None,
    padding: int,
) -> Engine:
    """Put the quickest arithmetic in place that gives the library's loss; return what it is.

    Args:
        model: The PeftModel on its device, its trained parameters in float32.
        rows: Training rows, each with `input_ids` and `labels`.
        spec: Whether rows may be packed and layers be fused.
        precision: Number format of the frozen weights.
        autocast: As in `Plan`.
        padding: Token id to pad with.
    """
    plain = plain_engine(padding)
    some = [_cut(row) for row in _shortest(rows)]
    expected = _losses(model, plain.collator(some), autocast)
    for packs, fuses in ((True, True), (False, True), (True, False)):
        if packs > spec.packing or fuses > spec.fused_layers:
            continue
        try:
            found = _put_in_place(model, packs=packs, fuses=fuses, plain=plain, autocast=autocast)
            losses = _losses(model, found.collator(some), autocast)
            difference = _difference(losses, expected)
        # What a model says to batches or to an attention that it does not know.
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            log.info("packing %s, fused %s does not work: %s", packs, fuses, error)
        else:
            if difference <= TOLERANCE[precision]:
                log.info("engine: %s", found)
                return replace(found, difference=difference)
            log.warning("packing %s, fused %s: loss differs by %.2g", packs, fuses, difference)
        _take_back(model)
    return plain


def compile_engine(engine: Engine, trainer: Any, *, precision: str) -> Engine:
    """Compile a model's layers, in place of those put together by hand; return what it is then.

    What is put together by hand is another object in each layer: each would be compiled apart.

    Args:
        engine: What was chosen.
        trainer: The `Loop` that is about to train.
        precision: Number format of the frozen weights.

    Raises:
        RunError: If it does not work here; the model computes as it did before.
    """
    model = trainer.model
    separate(model)
    try:
        seconds = compile_layers(model, trainer.loss_of_some, tolerance=TOLERANCE[precision])
    except RunError:
        if engine.fused:
            fuse(model)
        raise
    compiled = replace(engine, fused={}, compile_s=round(seconds, 1))
    log.info("engine: %s", compiled)
    return compiled


def _put_in_place(
    model: Any, *, packs: bool, fuses: bool, plain: Engine, autocast: str | None
) -> Engine:
    fused = fuse(model) if fuses else {}
    if not packs:
        return replace(plain, fused=fused)
    attend_by_document(model)
    has_kernel = autocast is not None and model.device.type == "cuda"
    # Dropout draws anew for each row: a beginning that is read once would be dropped out once.
    shares = not any(isinstance(part, nn.Dropout) and part.p for part in model.modules())
    return Engine(
        collator=EndToEnd(shares),
        packing=True,
        shares_beginning=shares,
        fused=fused,
        attention=kernel_for(model.device).name if has_kernel else plain.attention,
    )


def _take_back(model: Any) -> None:
    separate(model)
    attend_as_it_comes(model)


def _shortest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the shortest of the first rows that have something to learn."""
    first = [rows[at] for at in range(min(len(rows), LOOKED_AT_ROWS))]
    labelled = [row for row in first if max(row["labels"][1:], default=IGNORE_INDEX) >= 0]
    return sorted(labelled or first, key=lambda row: len(row["input_ids"]))[:COMPARED_ROWS]


def _cut(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row's beginning, which others may share, and its end, which is learned."""
    if len(row["input_ids"]) <= 2 * COMPARED_TOKENS:
        return row
    cut = {
        name: [*row[name][:COMPARED_TOKENS], *row[name][-COMPARED_TOKENS:]]
        for name in ("input_ids", "labels")
    }
    return cut if max(cut["labels"][1:]) >= 0 else row


@contextmanager
def _awake(model: Any) -> Iterator[None]:
    """Have a new adapter, whose B is zeros, change something inside the block."""
    asleep = [
        one
        for name, one in model.named_parameters()
        if ".lora_B." in name and one.requires_grad and not one.any()
    ]
    with undrawn():
        for one in asleep:
            nn.init.normal_(one, std=AWAKE)
    try:
        yield
    finally:
        for one in asleep:
            nn.init.zeros_(one)


@torch.no_grad()
def _losses(model: Any, batch: Mapping[str, Any], autocast: str | None) -> torch.Tensor:
    """Return the loss of each labelled token; the model is left in the mode it was in."""
    here = {
        name: part.to(model.device) if hasattr(part, "to") else part for name, part in batch.items()
    }
    was_training = model.training
    model.eval()
    try:
        narrow = torch.autocast(
            model.device.type, NARROW.get(autocast), enabled=autocast is not None
        )
        with _awake(model), narrow:
            return token_losses(model, here)
    finally:
        model.train(was_training)


def _difference(losses: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far the losses of tokens are from those expected, relative to the sum of these.

    What is wrong may cancel out in the sum, what is wrong alike everywhere shows most in it: the
    larger counts of the sum of the differences and the root of the sum of their squares. By
    rounding, which goes either way, both are as large.
    """
    apart = losses - expected
    largest = torch.maximum(apart.sum().abs(), apart.norm())
    return float(largest / expected.sum().clip(min=1e-6))
