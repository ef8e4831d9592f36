"""One training, from the recipe to the saved adapter: the order of things, and nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from lora_studio.data.preparation import prepare
from lora_studio.data.prepared import Prepared
from lora_studio.errors import RecipeError, RunError, StudioError
from lora_studio.files import write_whole
from lora_studio.hardware import precision_reason, probe, resolve_precision
from lora_studio.methods import problems, rank_problems
from lora_studio.models.accounting import unsortable
from lora_studio.models.description import ModelInfo
from lora_studio.models.fingerprint import weights_fingerprint
from lora_studio.models.inspection import inspect_model
from lora_studio.models.loading import load_classifier, load_model, load_tokenizer, reading
from lora_studio.models.sources import hub_name, resolve
from lora_studio.models.targets import selected, target_modules
from lora_studio.prediction.workload import FEWEST_LABELS, Workload
from lora_studio.recipe import Recipe
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History
from lora_studio.settings import Settings
from lora_studio.training import ranks, trackers, tracking
from lora_studio.training.adapting import (
    LONG_STARTS,
    Start,
    adapt,
    begins_as_base,
    cast_trained,
    initialise,
    lora_config,
)
from lora_studio.training.card import model_card
from lora_studio.training.checkpoints import Checkpoints
from lora_studio.training.classifying import Classifier, classifier_arguments
from lora_studio.training.engine import Engine, choose_engine, compile_engine, plain_engine
from lora_studio.training.failures import out_of_memory, telling_of_memory
from lora_studio.training.loop import Loop
from lora_studio.training.plan import Plan, evenly, make_plan
from lora_studio.training.questions import questions
from lora_studio.training.rehearsal import Rehearsal
from lora_studio.training.remedies import Remedies
from lora_studio.training.reporting import Beginning, Reporter, Stopped
from lora_studio.training.resuming import adapt_again, refuse_other_base, refuse_other_data
from lora_studio.training.saving import save_adapter
from lora_studio.training.shrinking import train_within_memory
from lora_studio.training.watchdogs import Watchdogs
from lora_studio.training.writing import Writer, writer_arguments

log = logging.getLogger(__name__)

Stage = Callable[[str, int, int], None]


class Session:
    """A recipe on its way to an adapter.

    Args:
        recipe: What to train.
        settings: Where models live, and the Hub token.
        stage: Told of each stage before the first step: name, done, total.
        start: Go on from the checkpoint of this step; None begins.
    """

    def __init__(
        self, recipe: Recipe, settings: Settings, stage: Stage, *, start: int | None = None
    ) -> None:
        self._recipe = recipe
        self._settings = settings
        self._stage = stage
        self._base = hub_name(recipe.model.source)
        self._trainer: Any = None
        self._tokenizer: Any = None
        self._initial: Path | None = None
        self._folder: RunFolder | None = None
        self._remedies: Remedies | None = None
        self._start_step = start
        self._engine: Engine | None = None
        self.best_step: int | None = None
        """Whose weights were saved, where they are not the last step's."""

    @telling_of_memory
    def build(self, folder: RunFolder, events: EventWriter) -> Reporter:
        """Fetch the model, encode the data, load the weights and set up the trainer.

        Data is read before weights are loaded: what can be refused is refused early.

        Returns:
            The reporter, which knows why the training ended.

        Raises:
            StudioError: For a model, data or recipe that cannot be used.
        """
        self._folder, self._events = folder, events
        recipe = self._recipe
        hardware = probe()
        precision = resolve_precision(recipe.precision, hardware)
        with ranks.in_turn(folder):
            model_folder = resolve(
                recipe.model.source,
                self._settings,
                # On a Space too: who started this worker gave it the visitor's own token or none.
                token=self._settings.hub_token,
                on_progress=self._stage,
            )
        before = History(folder).update()
        fingerprint = self._identified(model_folder, before)
        info = self._described(inspect_model(model_folder, recipe.model.source))
        targets = self._targets(info, precision, hardware.device)
        tokenizer = self._tokenizer = load_tokenizer(model_folder)
        with ranks.in_turn(folder):
            prepared = self._prepare(tokenizer, info, folder)
        remedies = self._remedies = Remedies(
            info=info,
            recipe=recipe,
            hardware=hardware,
            precision=precision,
            report=prepared.report.to_dict(),
        )
        labels = [name for name, *_ in prepared.report.labels]
        self._stage("load", 0, 0)
        model = self._load(model_folder, precision, hardware.device, labels)
        plan = make_plan(
            recipe,
            hardware,
            precision=precision,
            info=info,
            work=Workload.of(recipe, remedies.report),
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
        cast_trained(adapted)
        reporter = Reporter(events, folder.stop, max_training_s=self._settings.max_training_s)
        if recipe.training.report_to:
            trackers.prepare(folder.path, self._settings)
        self._trainer = self._make_trainer(adapted, prepared, plan, folder, reporter)
        if recipe.training.torch_compile and self._engine:
            self._engine = self._compile(self._engine, plan)
        tracking.keep_apart(self._trainer, events)
        Checkpoints.put_on(
            self._trainer,
            folder,
            events,
            keep=recipe.training.save_total_limit,
            patience=recipe.training.early_stopping_patience,
            initial=self._initial,
        )
        report, training = prepared.report, recipe.training
        rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
        rows *= recipe.launch.num_processes
        reporter.attach(
            self._trainer,
            # To write with a model that is cut, all processes would have to write the same.
            {} if self._is_cut else questions(recipe, report, tokenizer, info),
            usual_tokens=rows * report.tokens / report.trained_rows,
            beginning=self._beginning(before),
        )
        if not remedies.has_plenty():
            Rehearsal.put_first(self._trainer, events, remedies.less_memory)
        Watchdogs.watch(
            self._trainer,
            events,
            folder,
            rate=recipe.training.learning_rate,
            steadier=remedies.steadier,
        )
        trainable, total = adapted.get_nb_trainable_parameters()
        events.write(
            "started",
            **asdict(plan),
            reason=precision_reason(precision, hardware),
            device_name=hardware.device_name,
            base=self._base,
            base_fingerprint=fingerprint,
            target_modules=targets,
            trainable_parameters=trainable,
            total_parameters=total,
            train_rows=len(prepared.train),
            held_out_rows=len(prepared.evaluation),
            format=prepared.report.format,
            task_type=recipe.task_type,
            labels=labels,
            engine=self._engine.to_dict() if self._engine else {},
        )
        return reporter

    @telling_of_memory
    def train(self) -> None:
        """Run the training loop to its end or to the stop flag."""
        start, trainer = self._start_step, self._trainer
        with suppress(Stopped):
            if self._recipe.training.auto_find_batch_size:
                train_within_memory(trainer, self._events, start, self._stage_now)
            else:
                trainer.checkpoints.train(start)
        tracking.close(self._trainer)

    @property
    def steps(self) -> int:
        """Optimizer steps that are done."""
        return int(self._trainer.state.global_step)

    def save_stopped(self) -> None:
        """Write a checkpoint of the last whole step, from which the run can go on."""
        self._trainer.checkpoints.save_stopped()

    @telling_of_memory
    def save(self, folder: RunFolder) -> Path:
        """Write the adapter folder, if this process is the first, and return it."""
        if self._recipe.training.load_best_model_at_end:
            self.best_step = self._trainer.checkpoints.take_best()
        model = self._trainer.model
        state = self._trainer.accelerator.get_state_dict(model) if self._is_cut else None
        if not ranks.is_first():
            return folder.adapter
        card = model_card(
            self._recipe, History(folder).update(), base=self._base, best_step=self.best_step
        )
        return save_adapter(
            folder, model, self._tokenizer, card=card, initial=self._initial, state=state
        )

    def out_of_memory(self, error: BaseException) -> RunError:
        """Say in which phase memory ran out, and what would fit."""
        stage = self._stage_now()
        steps = self.steps if self._trainer is not None else 0
        return out_of_memory(
            error,
            self._recipe,
            phase=stage,
            step=steps + (stage == "train"),
            remedies=self._remedies.less_memory() if self._remedies else (),
        )

    def _stage_now(self) -> str:
        history = History(self._folder).update() if self._folder else None
        return str(history.stage.get("stage", "")) if history else ""

    def _identified(self, base: Path, before: History) -> str:
        """Return what tells the base's weights from others; refuse others than the run's own."""
        with reading(base):
            fingerprint = weights_fingerprint(base)
        if self._start_step is not None:
            refuse_other_base(before, fingerprint, base=self._base)
        return fingerprint

    def _described(self, info: ModelInfo) -> ModelInfo:
        """Return the model as it is trained; of a head over classes the size is not known yet.

        Raises:
            RecipeError: If texts are to be sorted and the model cannot.
        """
        if self._recipe.task_type != "SEQ_CLS":
            return info
        reasons = unsortable(info)
        if reasons:
            raise RecipeError.of(reasons)
        return info.as_classifier(FEWEST_LABELS)

    def _beginning(self, before: History) -> Beginning:
        """Return when to measure what the first step starts from."""
        can_wait = begins_as_base(self._recipe.adapter) and not self._is_cut
        if self._start_step is None:
            return "after" if can_wait else "before"
        is_known = any(not entry["step"] for entry in (*before.evals, *before.samples))
        return "known" if is_known or not can_wait else "after"

    @property
    def _is_cut(self) -> bool:
        """Whether each process holds a part of the model only."""
        return self._recipe.launch.is_shared and self._recipe.launch.strategy == "fsdp"

    def _load(self, folder: Path, precision: str, device: str, labels: Sequence[str]) -> Any:
        """Return the frozen model, with a head drawn from the seed where texts are sorted."""
        if self._is_cut:
            device = "cpu"  # each GPU gets its part from there
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
        if self._start_step is not None:
            refuse_other_data(folder, prepared.report)
        folder.data.mkdir(exist_ok=True)
        report = json.dumps(prepared.report.to_dict(), ensure_ascii=False)
        write_whole(folder.data / "report.json", report)
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
        if self._start_step is None and recipe.adapter.init_lora_weights in LONG_STARTS:
            self._stage("initialise", 0, 0)
        config = lora_config(
            recipe.adapter, start.info, base=self._base, task_type=recipe.task_type
        )
        if self._start_step is not None:
            adapted, self._initial = adapt_again(
                model, config, seed=recipe.seed, initial=start.initial
            )
            return adapted
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
            held_out = held_out.select(evenly(len(held_out), plan.eval_rows))
        engine = self._choose_engine(model, shared["train_dataset"], plan)
        grouped = self._recipe.training.groups and not engine.packing
        self._engine = replace(engine, grouped=grouped)
        if self._recipe.task_type == "SEQ_CLS":
            return Classifier(
                grouped=grouped,
                labels=[name for name, *_ in prepared.report.labels],
                args=classifier_arguments(self._recipe, plan, folder.checkpoints),
                eval_dataset=held_out,
                **shared,
            )
        return Writer(
            grouped=grouped,
            args=writer_arguments(self._recipe, plan, folder.checkpoints),
            eval_dataset=held_out,
            data_collator=engine.collator,
            **shared,
        )

    def _choose_engine(self, model: PeftModel, rows: Any, plan: Plan) -> Engine:
        padding = self._tokenizer.pad_token_id
        if self._is_cut or self._recipe.task_type == "SEQ_CLS":
            return plain_engine(padding)
        return choose_engine(
            model,
            rows,
            self._recipe.training,
            precision=plan.precision,
            autocast=plan.autocast,
            padding=padding,
        )

    def _compile(self, engine: Engine, plan: Plan) -> Engine:
        """Compile the model's layers where that works; else say so and go on without."""
        self._stage("compile", 0, 0)
        try:
            if self._is_cut or plan.checkpointing:
                raise RunError("training.not_compiled_here")
            return compile_engine(engine, self._trainer, precision=plan.precision)
        except RunError as error:
            self._events.write("warning", step=0, cause=error.to_dict())
            return engine


def _misfits(recipe: Recipe, prepared: Prepared, info: ModelInfo) -> list[StudioError]:
    """Return what of the recipe does not fit this data or this model."""
    problems = []
    rows, batch = len(prepared.train), recipe.training.per_device_train_batch_size
    processes = recipe.launch.num_processes
    if recipe.launch.is_shared and rows < batch * processes:
        values = {"rows": rows, "batch": batch, "processes": processes}
        problems.append(StudioError("launch.rows_under_batch", **values))
    elif rows < batch:
        problems.append(StudioError("training.rows_under_batch", rows=rows, batch=batch))
    longest = min(prepared.report.tokens_longest, recipe.data.max_length)
    limit = info.context_length
    if limit is not None and longest > limit:
        problems.append(StudioError("training.over_context", longest=longest, limit=limit))
    return problems
