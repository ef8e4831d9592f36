"""A model learns to sort texts into classes: the loss over rows, and how many it gets right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import EvalPrediction, TrainingArguments

from lora_studio.recipe import Recipe
from lora_studio.training.compiled import as_written
from lora_studio.training.loop import Loop, arguments
from lora_studio.training.plan import Plan


def classifier_arguments(recipe: Recipe, plan: Plan, output_dir: Path) -> TrainingArguments:
    """Return the trainer's settings for a recipe on this machine."""
    return TrainingArguments(**arguments(recipe, plan, output_dir), label_names=["labels"])


@dataclass(frozen=True, slots=True)
class PaddedTexts:
    """Stacks rows into a batch, padded on the right."""

    padding: int
    """Token id to pad with; `config.pad_token_id` of the model, which scores the last other one."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask`, int64 (B, T), and where rows have it `labels`.

        Labels are the numbers of the classes, int64, shape (B,).
        """
        ids = [torch.as_tensor(row["input_ids"]).long() for row in rows]
        mask = [torch.ones_like(row) for row in ids]
        stack = torch.nn.utils.rnn.pad_sequence
        batch = {
            "input_ids": stack(ids, batch_first=True, padding_value=self.padding),
            "attention_mask": stack(mask, batch_first=True),
        }
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([int(row["labels"]) for row in rows])
        return batch


class Classifier(Loop):
    """The library's trainer for a model with a head over classes.

    Args:
        labels: The classes' names; a class's number is its place.
        more: What `Loop` and `transformers.Trainer` take.
    """

    def __init__(self, *, labels: Sequence[str], **more: Any) -> None:
        self._labels = tuple(labels)
        self._total_train_tokens = 0
        super().__init__(
            compute_loss_func=mean_over_rows,
            compute_metrics=measures,
            data_collator=PaddedTexts(more["model"].config.pad_token_id),
            **more,
        )
        # The count of rows goes to the loss alone: the model would hand it on to every layer.
        self.model_accepts_loss_kwargs = False

    def answers(self, prompts: Sequence[Sequence[int]], stopping: Any) -> list[str]:  # noqa: ARG002
        """Return the likeliest class of each text, as in `sport (87 %)`; texts as token ids."""
        batch = self.data_collator([{"input_ids": list(ids)} for ids in prompts])
        here = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), as_written(self.model):
                logits = self.model(**here, use_cache=False).logits.float()
        finally:
            self.model.train(was_training)
        best, places = logits.softmax(-1).max(-1)
        found = zip(best.tolist(), places.tolist(), strict=True)
        return [f"{self._labels[place]} ({100 * share:.0f} %)" for share, place in found]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001 - the library's signature
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the cross entropy, a scalar tensor; texts are read once, so nothing is cached."""
        if model.training:
            self._total_train_tokens += int(inputs["attention_mask"].sum())
        return super().compute_loss(
            model, inputs | {"use_cache": False}, return_outputs, num_items_in_batch
        )


def mean_over_rows(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the cross entropy over the rows of an optimizer step, this batch's share of it.

    Args:
        outputs: The model's, with `logits` of shape (B, C).
        labels: Numbers of the classes, int64, shape (B,).
        num_items_in_batch: Rows of all batches of the step; None takes this batch's.
    """
    total = functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def measures(found: EvalPrediction) -> dict[str, Any]:
    """Return `loss`, `accuracy`, macro `f1` and `confusion` over all held-out rows.

    F1 is the mean of the classes that stand in the rows or were predicted. Rows of the confusion
    matrix are true classes, columns predicted ones.
    """
    # Two seconds that only a classification has to wait for.
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    logits, true = torch.as_tensor(found.predictions).float(), np.asarray(found.label_ids)
    predicted = logits.argmax(-1).numpy()
    confusion = confusion_matrix(true, predicted, labels=range(logits.shape[-1]))
    return {
        "loss": float(functional.cross_entropy(logits, torch.as_tensor(true).long())),
        "accuracy": float(accuracy_score(true, predicted)),
        "f1": float(f1_score(true, predicted, average="macro")),
        "confusion": confusion.tolist(),
    }
