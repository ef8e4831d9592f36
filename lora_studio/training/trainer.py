"""TRL's SFTTrainer as this program uses it: settings from a recipe, two corrections.

On a CPU the loss is computed at labelled positions only, and the held-out loss is the mean over
tokens rather than over batches. Everything else is the library's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from torch.nn import functional
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer

from lora_studio.data.encoding import IGNORE_INDEX
from lora_studio.recipe import Recipe
from lora_studio.training.plan import Plan
from lora_studio.training.reporting import Reporter
from lora_studio.training.saving import write_adapter


def sft_config(recipe: Recipe, plan: Plan, output_dir: Path) -> SFTConfig:
    """Return the trainer's settings for a recipe on this machine."""
    training = recipe.training
    on_cpu = plan.device == "cpu"
    return SFTConfig(
        output_dir=str(output_dir),
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps or -1,
        learning_rate=training.learning_rate,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        warmup_steps=_warmup_steps(training.warmup_ratio, plan.total_steps),
        lr_scheduler_type=training.lr_scheduler_type,
        optim="adamw_torch_fused",
        seed=recipe.seed,
        data_seed=recipe.seed,
        max_length=None,  # rows are already cut
        use_cpu=on_cpu,
        bf16=plan.autocast == "bf16",
        fp16=plan.autocast == "fp16",
        activation_checkpointing=plan.checkpointing,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        eval_strategy="steps" if plan.eval_rows else "no",
        eval_steps=plan.eval_steps,
        save_strategy="steps",
        save_steps=plan.eval_steps,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )


def _warmup_steps(ratio: float, total_steps: int) -> int:
    """Return over how many steps the learning rate rises, as transformers rounds a ratio.

    The first of them is taken at a rate of 0, as everywhere in transformers; so one step at least
    is left out, or the shortest runs would learn nothing.
    """
    return min(math.ceil(total_steps * ratio), total_steps - 1)


class Trainer(SFTTrainer):  # type: ignore[misc, unused-ignore]
    """SFTTrainer that scores only labelled positions on a CPU and weighs eval loss by tokens.

    Args:
        reporter: Told of every step, evaluation and answer.
        loraplus_lr_ratio: As in the recipe.
        initial: PiSSA's untrained adapter, as `saving.write_adapter` takes it.
        arguments: What SFTTrainer takes.
    """

    optimizer: Any

    def __init__(
        self,
        *,
        reporter: Reporter,
        loraplus_lr_ratio: float | None,
        initial: Path | None,
        **arguments: Any,
    ) -> None:
        self._reporter = reporter
        self._loraplus_lr_ratio = loraplus_lr_ratio
        self._initial = initial
        self._eval_sums = [0.0, 0]
        super().__init__(callbacks=[reporter], **arguments)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the optimizer; for LoRA+ one in which B learns faster than A.

        Its weight decay and moments are those of the settings (arXiv 2402.12354).
        """
        if self._loraplus_lr_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = create_loraplus_optimizer(
            self.model,
            kind,
            loraplus_lr_ratio=self._loraplus_lr_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **options,
        )
        return self.optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, announced as a pause between steps."""
        with self._reporter.pause("evaluate"):
            return super().evaluate(*args, **kwargs)

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
        # The token at t is predicted from position t - 1.
        scored = labels[:, 1:] != IGNORE_INDEX
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

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Score one batch of an evaluation; a stop does not wait for the others."""
        self._reporter.check_stop()
        return super().prediction_step(*args, **kwargs)

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on so far, padding not counted."""
        return int(self._total_train_tokens)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and report the mean loss over tokens instead of over batches."""
        self._eval_sums = [0.0, 0]
        output = super().evaluation_loop(*args, **kwargs)
        total, count = self._eval_sums
        prefix = kwargs.get("metric_key_prefix", "eval")
        if count:
            output.metrics[f"{prefix}_loss"] = total / count
        return output

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        """Write a checkpoint's adapter and tokenizer, as the finished one is written."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            write_adapter(self.model, folder, self._initial)
            self.processing_class.save_pretrained(folder)

    def _note_eval(self, loss: torch.Tensor, labels: torch.Tensor) -> None:
        count = int((labels[:, 1:] != IGNORE_INDEX).sum())
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
