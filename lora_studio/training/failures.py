"""What went wrong in a worker, as a sentence: every third-party exception is translated here."""

from __future__ import annotations

import errno

from lora_studio.errors import RunError, StudioError
from lora_studio.recipe import Recipe

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cuda error: out")


class NotFiniteError(Exception):
    """The loss stopped being a number."""


def explain(error: BaseException, recipe: Recipe) -> StudioError:
    """Return the error to show for an exception that ended a run."""
    if isinstance(error, StudioError):
        return error
    if is_out_of_memory(error):
        return RunError(
            "training.out_of_memory",
            batch=recipe.training.per_device_train_batch_size,
            length=recipe.data.max_length,
            r=recipe.adapter.r,
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return RunError("training.disk_full")
    if isinstance(error, NotFiniteError):
        return RunError("training.diverged", rate=recipe.training.learning_rate)
    return RunError("training.unexpected", kind=type(error).__name__, cause=_first_line(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the device or in the machine."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY))
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
