"""The library's trainer, whose checkpoints are ours: written whole, read to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from lora_studio.errors import RunError
from lora_studio.runs.folder import LAST_WRITTEN
from lora_studio.training.checkpoints import Checkpoints
from lora_studio.training.randomness import undrawn

TRAINED = "trained.safetensors"
"""The trained parameters as they are in training; PiSSA's adapter is saved in another form."""


class Resumable(transformers.Trainer):  # type: ignore[misc, unused-ignore]
    """A trainer that goes on from a checkpoint to the end it would have come to.

    Under FSDP, where no process has all weights, they are written and read by the library.
    """

    checkpoints: Checkpoints
    """When checkpoints are written, and which of them stay."""
    _total_train_tokens: int

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; no random number is drawn for it."""
        with undrawn():
            return super().evaluate(*args, **kwargs)

    def measure(self) -> None:
        """Evaluate, and note whether it is the best so far."""
        self._determine_best_metric(metrics=self.evaluate(), trial=None)

    def count_from(self, tokens: int) -> None:
        """Go on counting tokens where another process left off."""
        self._total_train_tokens = tokens

    def write_state(self, folder: Path) -> None:
        """Write all that the next step follows from; of many processes each writes its part."""
        # Of what was logged only evaluations are asked for again, and steps may be a million.
        self.state.log_history = [one for one in self.state.log_history if "eval_loss" in one]
        self.state.num_input_tokens_seen = self._total_train_tokens
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            if not self.is_fsdp_enabled:
                write_trained(self.model, folder / TRAINED)
            self.state.save_to_json(str(folder / LAST_WRITTEN))

    def read_weights(self, folder: Path) -> None:
        """Give the model the weights of a checkpoint.

        Raises:
            RunError: If it is of another model.
        """
        read_trained(self.model, folder / TRAINED)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        self.checkpoints.save()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.read_weights(Path(resume_from_checkpoint))


def write_trained(model: Any, file: Path) -> None:
    """Write every trained parameter of a model as it is, under its name there."""
    save_file({name: one.detach().cpu().contiguous() for name, one in _trained(model)}, file)


@torch.no_grad()
def read_trained(model: Any, file: Path) -> None:
    """Give a model's trained parameters the values that were written.

    Raises:
        RunError: If the model does not train the same parameters.
    """
    stored, mine = load_file(file), dict(_trained(model))
    odd = sorted(stored.keys() ^ mine.keys()) or [
        name for name, one in mine.items() if one.shape != stored[name].shape
    ]
    if odd:
        raise RunError("run.checkpoint_misfit", name=odd[0])
    for name, one in mine.items():
        one.copy_(stored[name])


def _trained(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, one) for name, one in model.named_parameters() if one.requires_grad]
