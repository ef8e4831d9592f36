"""What every training has in common, whatever is learned: settings, reports, stops, checkpoints."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft.optimizers import create_loraplus_optimizer

from lora_studio.recipe import Recipe
from lora_studio.training.compiled import as_written
from lora_studio.training.grouping import ByLength, lengths_of
from lora_studio.training.plan import Plan
from lora_studio.training.reporting import Reporter
from lora_studio.training.resumable import Resumable
from lora_studio.training.saving import write_adapter
from lora_studio.training.trackers import PROJECT


def arguments(recipe: Recipe, plan: Plan, output_dir: Path) -> dict[str, Any]:
    """Return the `transformers.TrainingArguments` of a recipe on this machine."""
    training = recipe.training
    on_cpu = plan.device == "cpu"
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps or -1,
        "learning_rate": training.learning_rate,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "warmup_steps": _warmup_steps(training.warmup_ratio, plan.total_steps),
        "lr_scheduler_type": training.lr_scheduler_type,
        "optim": "adamw_torch_fused",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "use_cpu": on_cpu,
        "bf16": plan.autocast == "bf16",
        "fp16": plan.autocast == "fp16",
        "activation_checkpointing": plan.checkpointing,
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,
        "dataloader_pin_memory": not on_cpu,
        "eval_strategy": "steps" if plan.eval_rows else "no",
        "eval_steps": plan.eval_steps,
        "save_strategy": "steps",
        "save_steps": training.save_steps or plan.eval_steps,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": list(training.report_to) or "none",
        "run_name": output_dir.parent.name,
        "project": PROJECT,
    }


def _warmup_steps(ratio: float, total_steps: int) -> int:
    """Return over how many steps the learning rate rises, as transformers rounds a ratio.

    The first of them is taken at a rate of 0, as everywhere in transformers; so one step at least
    is left out, or the shortest runs would learn nothing.
    """
    return min(math.ceil(total_steps * ratio), total_steps - 1)


class Loop(Resumable):
    """The training loop of the library, which tells what it does and can be stopped anywhere.

    Args:
        reporter: Told of every step, evaluation and answer.
        loraplus_lr_ratio: As in the recipe.
        initial: PiSSA's untrained adapter, as `saving.write_adapter` takes it.
        grouped: Whether rows of about the same length are learned in the same step.
        arguments: What the library's trainer takes.
    """

    optimizer: Any
    _total_train_tokens: int

    def __init__(
        self,
        *,
        reporter: Reporter,
        loraplus_lr_ratio: float | None,
        initial: Path | None,
        grouped: bool,
        **arguments: Any,
    ) -> None:
        self._reporter = reporter
        self._loraplus_lr_ratio = loraplus_lr_ratio
        self._initial = initial
        self._grouped = grouped
        super().__init__(callbacks=[reporter], **arguments)

    @abstractmethod
    def answers(self, prompts: Sequence[Any], stopping: Any) -> list[str]:
        """Say to each of the prompts what the model makes of it now; `stopping` as a criterion."""

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

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the order of the rows, which a run that goes on finds again."""
        if not self._grouped:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        passes = args.gradient_accumulation_steps * self.accelerator.num_processes
        return ByLength(
            lengths_of(self.train_dataset),
            together=args.per_device_train_batch_size * passes,
            seed=args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, announced as a pause between steps."""
        with self._reporter.pause("evaluate"), as_written(self.model):
            return super().evaluate(*args, **kwargs)

    def loss_of_some(self) -> torch.Tensor:
        """Return the loss of a batch as it is trained, a scalar tensor; nothing is counted."""
        rows = range(min(self.args.per_device_train_batch_size, len(self.train_dataset)))
        batch = self._prepare_inputs(self.data_collator([self.train_dataset[at] for at in rows]))
        with self.uncounted(), self.accelerator.autocast():
            loss: torch.Tensor = self.compute_loss(self.model, batch)
        return loss

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Have the model be its base inside the block."""
        with extract_model_from_parallel(self.model).disable_adapter():
            yield

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, announced as a pause between steps."""
        with self._reporter.pause("snapshot"):
            super()._save_checkpoint(model, trial)
        self._reporter.go_on()

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Score one batch of an evaluation; a stop does not wait for the others."""
        self._reporter.check_stop()
        return super().prediction_step(*args, **kwargs)

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on so far, padding not counted."""
        return int(self._total_train_tokens)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Put the counters back after the block as they were."""
        seen = self._total_train_tokens
        try:
            yield
        finally:
            self._total_train_tokens = seen

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write a checkpoint's adapter and tokenizer, as the finished one is written."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            write_adapter(self.model, folder, self._initial, state=state_dict)
            self.processing_class.save_pretrained(folder)
