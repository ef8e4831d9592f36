"""TRL's SFTTrainer as this program uses it: a model learns to write, with two corrections.

On a CPU the loss is computed at labelled positions only, and the held-out loss is the mean over
tokens rather than over batches. Everything else is the library's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer

from lora_studio.data.encoding import IGNORE_INDEX
from lora_studio.recipe import Recipe
from lora_studio.training.loop import Loop, arguments
from lora_studio.training.plan import Plan
from lora_studio.training.reporting import answer


def sft_config(recipe: Recipe, plan: Plan, output_dir: Path) -> SFTConfig:
    """Return the trainer's settings for a recipe on this machine; rows are cut and encoded."""
    return SFTConfig(
        **arguments(recipe, plan, output_dir),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


class Trainer(Loop, SFTTrainer):  # type: ignore[misc, unused-ignore]
    """SFTTrainer that scores only labelled positions on a CPU and weighs eval loss by tokens.

    Its arguments are those of `Loop` and of SFTTrainer.
    """

    def __init__(self, **arguments: Any) -> None:
        self._eval_sums = [0.0, 0]
        super().__init__(**arguments)

    def answers(self, prompts: Sequence[str], stopping: Any) -> list[str]:
        """Answer prompts as the model reads them; see `reporting.answer`."""
        return answer(self.model, self.processing_class, prompts, stopping)

    @staticmethod
    def scored(labels: torch.Tensor) -> torch.Tensor:
        """Return which tokens are predicted and count, bool, shape (B, T - 1).

        The token at t is predicted from position t - 1.
        """
        return labels[:, 1:] != IGNORE_INDEX

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001 - the library's signature
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the cross entropy over labelled tokens, a scalar tensor.

        TRL's own loss scores every position on a CPU; there the head is a fifth of the work and
        most positions of a prompt carry no label. On an accelerator, and for mixtures of experts
        with a loss of their router's, TRL's loss is used.
        """
        if self.args.device.type != "cpu" or return_outputs or self.aux_loss_enabled:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if not model.training:
                self._note_eval(loss, inputs["labels"])
            return loss
        labels = inputs["labels"]
        scored = self.scored(labels)
        targets = labels[:, 1:][scored]
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        with _only_scored(model, scored):
            logits = model(**rest, use_cache=False).logits[0]
        total = functional.cross_entropy(logits.float(), targets, reduction="sum")
        count = num_items_in_batch if num_items_in_batch is not None else targets.numel()
        loss = total / max(int(count), 1)
        if model.training:
            self._total_train_tokens += int(inputs["attention_mask"].sum())
        else:
            self._note_eval(loss, labels)
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and report the mean loss over tokens instead of over batches."""
        self._eval_sums = [0.0, 0]
        output = super().evaluation_loop(*args, **kwargs)
        total, count = self._eval_sums
        prefix = kwargs.get("metric_key_prefix", "eval")
        if count:
            output.metrics[f"{prefix}_loss"] = total / count
        return output

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Put the counters back after the block as they were, those of TRL's metrics too."""
        metrics = {name: dict(values) for name, values in self._metrics.items()}
        try:
            with super().uncounted():
                yield
        finally:
            for name, values in self._metrics.items():
                values.clear()
                values.update(metrics.get(name, {}))

    def _note_eval(self, loss: torch.Tensor, labels: torch.Tensor) -> None:
        count = int(self.scored(labels).sum())
        self._eval_sums[0] += float(loss) * count
        self._eval_sums[1] += count


@contextmanager
def _only_scored(model: Any, scored: torch.Tensor) -> Iterator[None]:
    """Hand the head only the positions that have a label.

    Inside, the model's logits have shape (1, N, V) for the N positions where `scored`, bool of
    shape (B, T - 1), is true. A hook on the head leaves the model's own forward, with whatever
    scaling or capping it does to logits, as it is.
    """
    head = model.get_output_embeddings()

    def select(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][:, :-1][scored].unsqueeze(0), *inputs[1:])

    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
