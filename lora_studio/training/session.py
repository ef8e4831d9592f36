"""One training, from the recipe to the saved adapter: the order of things, and nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lora_studio.data.preparation import prepare
from lora_studio.data.prepared import Prepared
from lora_studio.errors import RecipeError, StudioError
from lora_studio.hardware import precision_reason, precisions, probe, resolve_precision
from lora_studio.methods import problems, rank_problems
from lora_studio.models.description import ModelInfo
from lora_studio.models.inspection import inspect_model
from lora_studio.models.loading import load_classifier, load_model, load_tokenizer
from lora_studio.models.sources import hub_name, resolve
from lora_studio.models.targets import selected, target_modules
from lora_studio.prediction.fixes import fixes_after_failure
from lora_studio.prediction.memory import Place
from lora_studio.prediction.workload import FEWEST_LABELS, Workload
from lora_studio.recipe import Recipe
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History
from lora_studio.settings import Settings
from lora_studio.training.adapting import (
    LONG_STARTS,
    Start,
    adapt,
    cast_trained,
    initialise,
    lora_config,
)
from lora_studio.training.card import model_card
from lora_studio.training.classifying import Classifier, classifier_arguments
from lora_studio.training.loop import Loop
from lora_studio.training.plan import Plan, make_plan
from lora_studio.training.questions import questions
from lora_studio.training.rehearsal import Rehearsal
from lora_studio.training.reporting import Reporter, Stopped
from lora_studio.training.saving import save_adapter
from lora_studio.training.trainer import Trainer, sft_config

log = logging.getLogger(__name__)

Stage = Callable[[str, int, int], None]


class Session:
    """A recipe on its way to an adapter.

    Args:
        recipe: What to train.
        settings: Where models live, and the Hub token.
        stage: Told of each stage before the first step: name, done, total.
    """

    def __init__(self, recipe: Recipe, settings: Settings, stage: Stage) -> None:
        self._recipe = recipe
        self._settings = settings
        self._stage = stage
        self._base = hub_name(recipe.model.source)
        self._trainer: Any = None
        self._tokenizer: Any = None
        self._initial: Path | None = None

    def build(self, folder: RunFolder, events: EventWriter) -> Reporter:
        """Fetch the model, encode the data, load the weights and set up the trainer.

        Data is read before weights are loaded: what can be refused is refused early.

        Returns:
            The reporter, which knows why the training ended.

        Raises:
            StudioError: For a model, data or recipe that cannot be used.
        """
        recipe = self._recipe
        hardware = probe()
        precision = resolve_precision(recipe.precision, hardware)
        model_folder = resolve(
            recipe.model.source,
            self._settings,
            # On a Space too: whoever started this worker gave it the visitor's own token or none.
            token=self._settings.hub_token,
            on_progress=self._stage,
        )
        info = self._described(inspect_model(model_folder, recipe.model.source))
        targets = self._targets(info, precision, hardware.device)
        tokenizer = self._tokenizer = load_tokenizer(model_folder)
        prepared = self._prepare(tokenizer, info, folder)
        labels = [name for name, *_ in prepared.report.labels]
        self._stage("load", 0, 0)
        model = self._load(model_folder, precision, hardware.device, labels)
        plan = make_plan(
            recipe,
            hardware,
            precision=precision,
            info=info,
            work=Workload.of(recipe, prepared.report.to_dict()),
            train_rows=len(prepared.train),
            eval_rows=len(prepared.evaluation),
        )
        start = Start(
            info=info,
            model_folder=model_folder,
            rows=prepared.train,
            initial=folder.checkpoints / "initial",
            stage=self._stage,
        )
        adapted = self._adapt(model, start)
        reporter = Reporter(events, folder.stop, max_training_s=self._settings.max_training_s)
        self._trainer = self._make_trainer(adapted, prepared, plan, folder, reporter)
        # TRL turns the adapter of a quantised model into bfloat16, which a CPU without bfloat16
        # units multiplies an order of magnitude slower; the optimizer is better off in float32.
        cast_trained(adapted)
        report, training = prepared.report, recipe.training
        rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
        reporter.attach(
            self._trainer,
            questions(recipe, report, tokenizer, info),
            usual_tokens=rows * report.tokens / report.trained_rows,
        )
        Rehearsal.put_first(
            self._trainer,
            events,
            lambda: fixes_after_failure(
                info,
                recipe,
                Place.of(hardware, precision),
                prepared.report.to_dict(),
                precisions=[found.name for found in precisions(hardware) if found.available],
            ),
        )
        trainable, total = adapted.get_nb_trainable_parameters()
        events.write(
            "started",
            **asdict(plan),
            reason=precision_reason(precision, hardware),
            device_name=hardware.device_name,
            base=self._base,
            target_modules=targets,
            trainable_parameters=trainable,
            total_parameters=total,
            train_rows=len(prepared.train),
            held_out_rows=len(prepared.evaluation),
            format=prepared.report.format,
            task_type=recipe.task_type,
            labels=labels,
        )
        return reporter

    def train(self) -> None:
        """Run the training loop to its end or to the stop flag."""
        with suppress(Stopped):
            self._trainer.train()

    @property
    def steps(self) -> int:
        """Optimizer steps that are done."""
        return int(self._trainer.state.global_step)

    def save(self, folder: RunFolder) -> Path:
        """Write the adapter folder and return it."""
        card = model_card(self._recipe, History(folder).update(), base=self._base)
        return save_adapter(
            folder, self._trainer.model, self._tokenizer, card=card, initial=self._initial
        )

    def _described(self, info: ModelInfo) -> ModelInfo:
        """Return the model as it is trained; of a head over classes the size is not known yet.

        Raises:
            RecipeError: If texts are to be sorted and the model cannot.
        """
        if self._recipe.task_type != "SEQ_CLS":
            return info
        if not info.can_classify:
            raise RecipeError.of(
                [StudioError("model.cannot_classify", source=info.source, name=info.architecture)]
            )
        return info.as_classifier(FEWEST_LABELS)

    def _load(self, folder: Path, precision: str, device: str, labels: Sequence[str]) -> Any:
        """Return the frozen model, with a head drawn from the seed where texts are sorted."""
        if self._recipe.task_type == "SEQ_CLS":
            seed = self._recipe.seed
            return load_classifier(folder, precision, device, labels=labels, seed=seed)
        return load_model(folder, precision, device)

    def _prepare(self, tokenizer: Any, info: ModelInfo, folder: RunFolder) -> Prepared:
        """Read and encode the data; keep it and where it came from in the run folder."""
        recipe = self._recipe
        self._stage("tokenize", 0, 0)
        prepared = prepare(
            recipe.data,
            tokenizer,
            recipe.seed,
            on_progress=lambda done, total: self._stage("tokenize", done, total),
            cache=self._settings.prepared,
            token=self._settings.hub_token,
        )
        problems = _misfits(recipe, prepared, info)
        if problems:
            raise RecipeError.of(problems)
        folder.data.mkdir(exist_ok=True)
        (folder.data / "report.json").write_text(
            json.dumps(prepared.report.to_dict(), ensure_ascii=False), encoding="utf-8"
        )
        return prepared

    def _targets(self, info: ModelInfo, precision: str, device: str) -> list[str]:
        """Return the last names that get an adapter.

        Raises:
            RecipeError: If the model has not all of them, or a method does not go with the rest.
        """
        recipe = self._recipe
        targets = target_modules(info, recipe.adapter)
        sizes = {
            group.name: min(group.d_in, group.d_out) for group, _ in selected(info, recipe.adapter)
        }
        clashes = problems(recipe, precision, device) + rank_problems(recipe.adapter, sizes)
        if clashes:
            raise RecipeError.of(clashes)
        return targets

    def _adapt(self, model: Any, start: Start) -> PeftModel:
        """Put the adapter on the model, its A and B where the recipe has them begin."""
        recipe = self._recipe
        if recipe.adapter.init_lora_weights in LONG_STARTS:
            self._stage("initialise", 0, 0)
        config = lora_config(
            recipe.adapter, start.info, base=self._base, task_type=recipe.task_type
        )
        adapted = adapt(model, config, seed=recipe.seed)
        self._initial = initialise(adapted, recipe.adapter, start, seed=recipe.seed)
        return adapted

    def _make_trainer(
        self,
        model: PeftModel,
        prepared: Prepared,
        plan: Plan,
        folder: RunFolder,
        reporter: Reporter,
    ) -> Loop:
        held_out = None
        shared: dict[str, Any] = {
            "reporter": reporter,
            "loraplus_lr_ratio": self._recipe.training.loraplus_lr_ratio,
            "initial": self._initial,
            "model": model,
            "train_dataset": prepared.to_dataset(folder.data),
            "processing_class": self._tokenizer,
        }
        if plan.eval_rows:
            held_out = prepared.to_dataset(folder.data, "evaluation")
            # Evenly from all: a file often has one class after the other.
            held_out = held_out.select(
                [at * len(held_out) // plan.eval_rows for at in range(plan.eval_rows)]
            )
        if self._recipe.task_type == "SEQ_CLS":
            return Classifier(
                labels=[name for name, *_ in prepared.report.labels],
                args=classifier_arguments(self._recipe, plan, folder.checkpoints),
                eval_dataset=held_out,
                **shared,
            )
        return Trainer(
            args=sft_config(self._recipe, plan, folder.checkpoints),
            eval_dataset=held_out,
            data_collator=DataCollatorForLanguageModeling(
                pad_token_id=self._tokenizer.pad_token_id
            ),
            **shared,
        )


def _misfits(recipe: Recipe, prepared: Prepared, info: ModelInfo) -> list[StudioError]:
    """Return what of the recipe does not fit this data or this model."""
    problems = []
    rows, batch = len(prepared.train), recipe.training.per_device_train_batch_size
    if rows < batch:
        problems.append(StudioError("training.rows_under_batch", rows=rows, batch=batch))
    longest = min(prepared.report.tokens_longest, recipe.data.max_length)
    limit = info.context_length
    if limit is not None and longest > limit:
        problems.append(StudioError("training.over_context", longest=longest, limit=limit))
    return problems
