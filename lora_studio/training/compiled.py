"""A model's layers compiled by torch, for its training steps alone.

Layers of a kind share one graph, made for rows of any length, so what is waited for is one layer
and not the model. Attention stays outside: where rows begin and end is another number in every
batch. Held-out rows and answers are computed as they come: compiling once more for each of them
takes longer than they do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_studio.errors import RunError
from lora_studio.training.documents import ATTENTION, attend
from lora_studio.training.failures import is_out_of_memory
from lora_studio.training.randomness import undrawn

log = logging.getLogger(__name__)

BACKEND = "inductor"
"""What makes code of a graph: C++ on a CPU, Triton on a GPU."""
REASON_LETTERS = 200
Loss = Callable[[], torch.Tensor]


def compile_layers(model: Any, loss: Loss, *, tolerance: float) -> float:
    """Compile a PeftModel's layers; return the seconds it took.

    Args:
        model: On its device, as it is trained.
        loss: The loss of some rows, a scalar tensor.
        tolerance: Relative difference of loss and gradient that rounding explains.

    Raises:
        RunError: If it fails, or gives another loss or gradient; the layers are as they were.
    """
    if not _layers(model):
        raise RunError("training.not_compiled_here")
    expected = _learned(model, loss)
    start = time.monotonic()
    _put_in_place(model)
    try:
        found = _learned(model, loss)
    # What compilers raise is wrapped by torch as a RuntimeError.
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        take_apart(model)
        if is_out_of_memory(error):
            raise
        log.info("compiling failed", exc_info=error)
        # The first line names the backend, the second what it says.
        reason = " ".join(str(error).split("\n")[:2])[:REASON_LETTERS].strip()
        raise RunError("training.not_compiled", reason=reason or type(error).__name__) from error
    pairs = zip(found, expected, strict=True)
    difference = max(abs(new - old) / max(abs(old), 1e-6) for new, old in pairs)
    if not difference <= tolerance:
        take_apart(model)
        raise RunError("training.compiled_differs", difference=f"{difference:.2g}")
    return time.monotonic() - start


def take_apart(model: Any) -> None:
    """Have a model's layers compute as they come, for good."""
    for layer in _layers(model):
        layer._compiled_call_impl = None  # noqa: SLF001 - torch has no other way back
    AttentionInterface.register(ATTENTION, attend)


@contextmanager
def as_written(model: Any) -> Iterator[None]:
    """Have a model's layers compute as they come inside the block: to measure, to answer."""
    before = [(layer, layer._compiled_call_impl) for layer in _layers(model)]  # noqa: SLF001
    for layer, _ in before:
        layer._compiled_call_impl = None  # noqa: SLF001
    try:
        yield
    finally:
        for layer, compiled in before:
            layer._compiled_call_impl = compiled  # noqa: SLF001


def _put_in_place(model: Any) -> None:
    # Imports the compiler, a second that only those wait who asked for it.
    AttentionInterface.register(ATTENTION, torch.compiler.disable(attend))
    for layer in _layers(model):
        layer.compile(backend=BACKEND, dynamic=True)


def _learned(model: Any, loss: Loss) -> tuple[float, float]:
    """Return the loss of some rows and the norm of its gradient; nothing is left behind.

    Dropout draws other numbers where it is compiled, so a model with dropout is compared without.
    """
    was_training = model.training
    model.zero_grad(set_to_none=True)
    drops = any(isinstance(part, nn.Dropout) and part.p for part in model.modules())
    with undrawn():
        try:
            for training in (True, False) if drops else (True,):
                model.train(training)
                found = loss()
                found.backward()
                norm = _gradient_norm(model)
                model.zero_grad(set_to_none=True)
        finally:
            model.train(was_training)
    return float(found.detach()), norm


def _gradient_norm(model: Any) -> float:
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _layers(model: Any) -> list[nn.Module]:
    """Return the blocks that a model is a stack of."""
    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
