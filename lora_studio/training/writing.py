"""A model learns to write: the loss over labelled tokens, of batches with and without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch.nn import functional
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from lora_studio.recipe import Recipe
from lora_studio.training import ranks
from lora_studio.training.compiled import as_written
from lora_studio.training.documents import as_it_comes
from lora_studio.training.fused import TokenLoss
from lora_studio.training.loop import Loop, arguments
from lora_studio.training.plan import Plan
from lora_studio.training.reporting import answer

READ = ("input_ids", "position_ids", "attention_mask", "documents")
"""What the model reads of a batch."""
LOSS_CHUNK = 1024
"""So many tokens' scores at a time are turned into float32."""


def writer_arguments(recipe: Recipe, plan: Plan, output_dir: Path) -> TrainingArguments:
    """Return the trainer's settings for a recipe on this machine."""
    return TrainingArguments(**arguments(recipe, plan, output_dir), label_names=["labels"])


class Writer(Loop):
    """The library's trainer for a model that writes; its batches are those of `documents`.

    Its arguments are those of `Loop` and of `transformers.Trainer`.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, **arguments: Any) -> None:
        self._total_train_tokens = 0
        self._eval_sums = [0.0, 0.0]
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True  # so that the labels of a whole step are counted
        self._loss_shifts_labels = False  # each of them, as they are targets already

    def answers(self, prompts: Sequence[str], stopping: Any) -> list[str]:
        """Answer prompts as the model reads them; see `reporting.answer`."""
        with as_it_comes(self.model), as_written(self.model):
            return answer(self.model, self.processing_class, prompts, stopping)

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,  # noqa: ARG002, FBT001 - the library's signature
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the mean cross entropy over labelled tokens, a scalar tensor.

        The mean is over those of all batches of the step, in all processes; without
        `num_items_in_batch` over this batch's.
        """
        if model.training:
            self._total_train_tokens += inputs["tokens"]
        total = summed_loss(model, inputs)
        if num_items_in_batch is None:
            return total / max(len(inputs["labels"]), 1)
        count = torch.as_tensor(num_items_in_batch, device=total.device).clip(min=1)
        # Gradients are averaged over processes, and the count is of all of them.
        return total * self.accelerator.num_processes / count

    @torch.no_grad()
    def prediction_step(
        self, model: Any, inputs: Mapping[str, Any], *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None, None]:
        """Score one batch of an evaluation; a stop does not wait for the others."""
        self._reporter.check_stop()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        count = len(inputs["labels"])
        self._eval_sums[0] += float(loss) * count
        self._eval_sums[1] += count
        return loss, None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and report the mean loss over tokens instead of over batches."""
        self._eval_sums = [0.0, 0.0]
        output = super().evaluation_loop(*args, **kwargs)
        total, count = (ranks.total(value) for value in self._eval_sums)
        prefix = kwargs.get("metric_key_prefix", "eval")
        if count:
            output.metrics[f"{prefix}_loss"] = total / count
        return output


def summed_loss(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the cross entropies of a batch's labelled tokens added up, a float32 scalar.

    Only these tokens' scores are made: the head is a fifth of a small model's work. A mixture of
    experts in training adds its router's loss, as often as there are labelled tokens.

    Args:
        model: A PeftModel, or what wraps it to be trained by many processes.
        batch: As `documents.EndToEnd` and `documents.Padded` make it, on the model's device.
    """
    labels = batch["labels"]
    balance = _balance(_base(model)) if model.training else 0.0
    output = _scored(model, batch, **({"output_router_logits": True} if balance else {}))
    total: torch.Tensor = TokenLoss.apply(output.logits[0], labels, LOSS_CHUNK)
    return total + balance * output.aux_loss * len(labels) if balance else total


@torch.no_grad()
def token_losses(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the cross entropy of each labelled token, float32, shape (N,).

    Args:
        model: As in `summed_loss`.
        batch: Likewise; the tokens are in the order of its `labels`.
    """
    scores = _scored(model, batch).logits[0].split(LOSS_CHUNK)
    found = [
        functional.cross_entropy(some.float(), wanted, reduction="none")
        for some, wanted in zip(scores, batch["labels"].split(LOSS_CHUNK), strict=True)
    ]
    return torch.cat(found)


def _base(model: Any) -> Any:
    return extract_model_from_parallel(model).get_base_model()


def _scored(model: Any, batch: Mapping[str, Any], **about: Any) -> Any:
    """Return what a model says to a batch, whose logits are those of `_only_scored`."""
    read = {name: batch[name] for name in READ if name in batch}
    with _only_scored(_base(model), batch["sources"]):
        return model(**read, **about, use_cache=False)


def _balance(base: Any) -> float:
    """Return the weight of a router's loss beside the tokens', 0 for a model without a router."""
    config = base.config.get_text_config()
    has_router = hasattr(config, "output_router_logits")
    return float(getattr(config, "router_aux_loss_coef", 0.0)) if has_router else 0.0


@contextmanager
def _only_scored(base: Any, sources: torch.Tensor) -> Iterator[None]:
    """Hand the head only the positions that a labelled token is predicted from.

    Inside, the model's logits have shape (1, N, V) for N `sources`, which count through all rows of
    a batch. A hook on the head leaves the model's own forward, with whatever scaling or capping it
    does to logits, as it is.
    """

    def select(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].flatten(0, 1)[sources][None], *inputs[1:])

    hook = base.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
