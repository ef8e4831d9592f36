"""Everything one run needs, as a tree of frozen dataclasses and as the YAML file of the same shape.

The page, the command line and a cluster job all speak this one form. It knows the names and
bounds of settings, not the model or the data: whether a target module exists is decided where
the model is known.
"""

from __future__ import annotations

import codecs
import collections.abc
import re
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Final, Literal, Self

import yaml

from lora_studio.errors import RecipeError, StudioError

VERSION = 1
ALL_LINEAR = "all-linear"
PARTS = ("system", "question", "context", "answer", "turns", "text", "label")
"""What a column of a table can be."""

PrecisionName = Literal["auto", "nf4", "int8", "bf16", "fp16", "fp32"]
CLASSIFICATION: Final = "classification"
FormatName = Literal[
    "auto",
    "text",
    "prompt_completion",
    "alpaca",
    "question_answer",
    "messages",
    "conversations",
    "classification",
]
TaskName = Literal["CAUSAL_LM", "SEQ_CLS"]
ChatTemplateName = Literal[
    "plain", "chatml", "llama3", "gemma", "mistral", "phi", "zephyr", "alpaca", "vicuna"
]
BiasName = Literal["none", "all", "lora_only"]
InitName = Literal["default", "gaussian", "eva", "loftq", "pissa"]
SamplingName = Literal["group_by_length", "random"]
SchedulerName = Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"]
TrackerName = Literal["tensorboard", "trackio", "wandb"]
StrategyName = Literal["ddp", "fsdp"]
ADDRESS = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?")
"""A host's name or IP address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The base model."""

    source: str = "starter"
    """`starter`, a Hub repository id (`owner/name`), or a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSpec:
    """A part of a dataset on the Hugging Face Hub; the names are those of `load_dataset`."""

    repo_id: str = ""
    """`owner/name`, or empty for none."""
    config: str = ""
    """Name of the configuration; empty takes the default one."""
    split: str = "train"
    """Which split."""
    columns: tuple[str, ...] = ()
    """The columns to fetch; empty takes all."""
    start: int = 0
    """The first row, counted from 0."""
    rows: int | None = 10_000
    """How many rows from there on; None takes all that follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksSpec:
    """What is done where a check finds something: keep the row, fix it, skip it, or stop."""

    broken_rows: Literal["stop", "skip"] = "stop"
    """Rows that cannot be read: broken JSON, too many or too few cells."""
    odd_values: Literal["fix", "skip", "stop"] = "fix"
    """Rows with NaN (read as empty) or with a key that stands twice (the last value counts)."""
    empty_answers: Literal["skip", "stop"] = "skip"
    """Rows without an answer, without a label where there must be one, or without any text."""
    duplicates: Literal["keep", "skip", "stop"] = "keep"
    """Rows that stand in the data word for word before; the first stays."""
    near_duplicates: Literal["keep", "skip", "stop"] = "keep"
    """Rows that nearly repeat an earlier one (MinHash)."""
    control_characters: Literal["fix", "keep", "skip", "stop"] = "fix"
    """Characters that cannot be seen and mean nothing in a text; fixing removes them."""
    mojibake: Literal["keep", "fix", "skip", "stop"] = "keep"
    """Text that was once decoded wrongly, as `Ã©` for `é`."""
    secrets: Literal["keep", "fix", "skip", "stop"] = "keep"
    """What looks like a key, a password or an e-mail address; fixing puts a placeholder there."""
    languages: Literal["keep", "skip", "stop"] = "keep"
    """Rows in another language than most."""
    same_answers: Literal["keep", "stop"] = "keep"
    """One answer that stands in most rows."""
    answer_marks: Literal["keep", "skip", "stop"] = "keep"
    """Conversations in which the chat template's own `generation` marks do not fit the answers;
    kept, their answers are found without the marks."""
    lost_ends: Literal["keep", "fix", "skip", "stop"] = "keep"
    """Answers cut at `max_length`, so that their end is not learned; fixing cuts the start."""
    leaks: Literal["fix", "keep", "stop"] = "fix"
    """Held-out rows that are also trained on; fixing trains on them only."""
    rare_labels: Literal["keep", "skip", "stop"] = "keep"
    """Classes with fewer than five rows to learn from; skipping leaves their rows out."""
    label_conflicts: Literal["keep", "skip", "stop"] = "keep"
    """Texts that stand in the data with different labels; skipping leaves out all such rows."""


def choices(check: str) -> tuple[str, ...]:
    """Return what can be done about one check, as `duplicates`; the default comes first."""
    return typing.get_args(typing.get_type_hints(ChecksSpec)[check])


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The text to learn from."""

    files: tuple[str, ...] = ()
    """Paths of files, folders and archives, in the order they are read."""
    hub: HubSpec = field(default_factory=HubSpec)
    """A dataset of the Hub, read after the files."""
    encoding: str = "auto"
    """Character encoding of the text files, as Python names it; `auto` finds it out."""
    format: FormatName = "auto"
    """What a row means; `auto` recognises it from the columns. `classification` is a text and its
    label: the model learns to sort texts instead of writing them."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Which column holds which part (`question`, `context`, `answer`, `system`, `turns`, `text`,
    `label`); empty guesses from the names."""
    template: str = ""
    """A Jinja template over the columns: it makes the question where `columns` names an answer,
    else the whole text."""
    text_as: Literal["text", "pairs"] = "text"
    """Whether documents are learned as they are, or as the questions and answers found in them."""
    chat_template: ChatTemplateName = "plain"
    """How turns are written for a model that brings no chat template."""
    max_length: int = 512
    """Longest row in tokens."""
    truncation: Literal["end", "start", "drop"] = "end"
    """What is cut from a conversation over `max_length`: its end, its start, or the whole row."""
    chunk_overlap: float = 0.0
    """Share of a piece of a long text that the next piece repeats, 0 to 0.5."""
    cut_marker: str = ""
    """A line of this text always cuts a document and is itself left out; empty for none."""
    eval_fraction: float = 0.05
    """Share of documents held out to measure the loss on, 0 to 0.5."""
    checks: ChecksSpec = field(default_factory=ChecksSpec)
    """What is done about what the checks find."""

    @property
    def has_source(self) -> bool:
        """Whether there is anything to read."""
        return bool(self.files or self.hub.repo_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """The LoRA adapter: ΔW = (lora_alpha / r)·B·A (arXiv 2106.09685, section 4.1)."""

    r: int = 16
    """Rank of B (d×r) and A (r×k), 1 to 256."""
    lora_alpha: int = 32
    """Numerator of the scale on ΔW, 1 to 1024; twice the rank is a common start."""
    lora_dropout: float = 0.0
    """Share of the adapter's inputs dropped while training, 0 to 0.9."""
    bias: BiasName = "none"
    """Which bias vectors are trained beside the adapter."""
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """Last names of the modules that get an adapter, `all-linear` (arXiv 2305.14314, § 4), or a
    regular expression over their whole paths."""
    layers_to_transform: tuple[int, ...] = ()
    """Transformer blocks that get an adapter, counted from 0; empty takes all."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Another `r` for some modules: last name or regular expression → rank."""
    alpha_pattern: Mapping[str, int] = field(default_factory=dict)
    """Another `lora_alpha` for some modules: last name or regular expression → alpha."""
    modules_to_save: tuple[str, ...] = ()
    """Last names of modules trained and saved whole beside the adapter, as `embed_tokens`."""
    use_rslora: bool = False
    """Scale by lora_alpha / √r instead of lora_alpha / r (arXiv 2312.03732)."""
    use_dora: bool = False
    """Learn the length of each weight column apart from its direction (arXiv 2402.09353)."""
    init_lora_weights: InitName = "default"
    """How A and B begin: `default` (A random, B zero), `gaussian`, `eva` (arXiv 2410.07170),
    `loftq` (arXiv 2310.08659), `pissa` (arXiv 2404.02948)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """How long and how fast; the names are those of `transformers.TrainingArguments`."""

    num_train_epochs: float = 1.0
    """Passes over the data; not used when `max_steps` is set."""
    max_steps: int | None = None
    """Number of optimizer steps, or None to go by epochs."""
    learning_rate: float = 2e-4
    """Peak learning rate of AdamW (QLoRA, arXiv 2305.14314, table 9)."""
    per_device_train_batch_size: int = 4
    """Rows per forward pass."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""
    warmup_ratio: float = 0.03
    """Share of the steps over which the learning rate rises from 0, 0 to 1; rounded up."""
    lr_scheduler_type: SchedulerName = "cosine"
    """How the learning rate falls after the warm-up."""
    activation_checkpointing: bool | None = None
    """Compute activations again instead of keeping them: less memory, 1.4 times the time; None
    does so where the run would not fit otherwise."""
    packing: bool = True
    """Lay a batch's rows end to end instead of padding them: nothing is computed for padding, and a
    common beginning once; the same loss and gradients. Where a model does not take it, rows are
    padded."""
    fused_layers: bool = True
    """Compute adapters, norms and feed-forwards in fewer passes; the same loss and gradients."""
    train_sampling_strategy: SamplingName = "group_by_length"
    """Order of rows that are padded: `group_by_length` has rows of about the same length in a step,
    so that little is computed for padding; `random` any. Packed rows are in any order."""
    torch_compile: bool = False
    """Compile the model's layers before the first step; the same loss and gradients. Where that
    fails, the run goes on without."""
    auto_find_batch_size: bool = False
    """Where memory runs out, go on with half the rows per forward pass and twice the passes, so the
    same rows per optimizer step. Not where several processes train together."""
    loraplus_lr_ratio: float | None = None
    """LoRA+: B learns so many times faster than A (arXiv 2402.12354); None is plain LoRA."""
    eval_steps: int | None = None
    """Measure the held-out loss every so many steps; None is five times in a run, or
    less often where that would take more than a tenth of it."""
    save_steps: int | None = None
    """Write a checkpoint every so many steps; None is as often as the held-out loss is measured."""
    save_total_limit: int = 2
    """How many of the newest checkpoints are kept; the best by held-out loss stays beside them."""
    load_best_model_at_end: bool = True
    """Take the adapter from where the held-out loss was lowest, if it rose afterwards."""
    early_stopping_patience: int | None = None
    """Stop after so many measurements in a row without a lower held-out loss; None never does."""
    report_to: tuple[TrackerName, ...] = ()
    """Programs that are told of every step beside the page; each must be installed."""

    @property
    def groups(self) -> bool:
        """Whether rows of about the same length are learned together, where rows are padded."""
        return self.train_sampling_strategy == "group_by_length"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """On how many devices and machines; the names are those of `accelerate launch`."""

    num_processes: int = 1
    """Training processes on all machines together, one for each device; a step then has so many
    times the rows of a batch."""
    num_machines: int = 1
    """Machines that train together, each of which starts its part."""
    machine_rank: int = 0
    """Which of the machines this is, counted from 0; the first one writes the adapter."""
    main_process_ip: str = ""
    """Name or IP address under which the others reach machine 0; not asked on one machine."""
    main_process_port: int = 29500
    """TCP port of machine 0 that the others connect to; on one machine a free one is taken."""
    strategy: StrategyName = "ddp"
    """`ddp` holds the whole model on every device, `fsdp` a part of it on each
    (arXiv 2304.11277)."""

    @property
    def processes_here(self) -> int:
        """How many of the processes run on this machine."""
        return self.num_processes // self.num_machines

    @property
    def is_shared(self) -> bool:
        """Whether several processes train together."""
        return self.num_processes > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One run, complete: the same recipe on the same machine gives the same loss curve."""

    version: int = VERSION
    """Version of this file's shape."""
    name: str = ""
    """What the run is called; empty is named after the data."""
    model: ModelSpec = field(default_factory=ModelSpec)
    precision: PrecisionName = "auto"
    """Number format of the frozen weights; `auto` takes what suits the machine."""
    data: DataSpec = field(default_factory=DataSpec)
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    launch: LaunchSpec = field(default_factory=LaunchSpec)
    prompts: tuple[str, ...] = ()
    """Questions answered while it learns; empty takes two from the held-out rows."""
    seed: int = 42
    """Seed of data order, adapter initialisation and dropout."""

    @property
    def task_type(self) -> TaskName:
        """What the adapter is for, as PEFT names it: writing text, or sorting it into classes."""
        return "SEQ_CLS" if self.data.format == CLASSIFICATION else "CAUSAL_LM"

    @property
    def packs(self) -> bool:
        """Whether rows are to be laid end to end; where a model does not take it, they are not."""
        return self.training.packing and self.task_type != "SEQ_CLS"

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """Build a checked recipe from plain values, as YAML or the page gives them.

        Raises:
            RecipeError: Naming every unknown name, wrong type and value out of range at once.
        """
        problems: list[StudioError] = []
        recipe = _build(cls, tree, at="", problems=problems)
        problems.extend(recipe.problems())
        if problems:
            raise RecipeError.of(problems)
        return recipe

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Read a recipe file's text.

        Raises:
            RecipeError: If it is not YAML, or as `from_dict`.
        """
        return cls.from_dict(read_tree(text))

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain lists, dicts and numbers."""
        return typing.cast("dict[str, Any]", _plain(asdict(self)))

    def to_yaml(self) -> str:
        """Return the recipe file's text; `from_yaml` gives back an equal recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def changed(self, settings: Iterable[str]) -> Self:
        """Return a recipe with `name=value` settings applied, as `adapter.r=8`.

        Values are read as YAML.

        Raises:
            RecipeError: For settings that are not `name=value`, all at once, and as `from_dict`.
        """
        tree = self.to_dict()
        problems = [
            StudioError("recipe.not_a_setting", setting=setting)
            for setting in settings
            if not _apply(setting, tree)
        ]
        if problems:
            raise RecipeError.of(problems)
        return type(self).from_dict(tree)

    def problems_of_adapter(self) -> Iterable[StudioError]:
        """Yield what does not fit within the adapter section, whatever the model is."""
        adapter = self.adapter
        if not adapter.target_modules:
            yield StudioError("recipe.no_target_modules")
        patterns = [*adapter.rank_pattern, *adapter.alpha_pattern]
        if isinstance(adapter.target_modules, str):
            patterns.append(adapter.target_modules)
        for pattern in patterns:
            if not _is_regex(pattern):
                yield StudioError("recipe.not_a_pattern", pattern=BRIEF.repr(pattern))
            elif not _is_quick(pattern):
                yield StudioError("recipe.pattern_too_open", pattern=BRIEF.repr(pattern))
        for name, path in (("rank_pattern", "adapter.r"), ("alpha_pattern", "adapter.lora_alpha")):
            low, high = BOUNDS[path]
            for module, value in getattr(adapter, name).items():
                if not low <= value <= high:
                    where = f"adapter.{name}.{module}"
                    yield StudioError(
                        "recipe.out_of_range", name=where, value=value, low=low, high=high
                    )
        if min(adapter.layers_to_transform, default=0) < 0:
            yield StudioError("recipe.negative_layer", layer=min(adapter.layers_to_transform))

    def problems_of_data(self) -> Iterable[StudioError]:
        """Yield what does not fit within the data section."""
        data = self.data
        unknown = sorted(set(data.columns) - set(PARTS))
        if unknown:
            yield StudioError("recipe.unknown_part", part=unknown[0], known=", ".join(PARTS))
        try:
            if data.encoding != "auto":
                codecs.lookup(data.encoding)
        except (LookupError, ValueError):
            yield StudioError("recipe.unknown_encoding", encoding=data.encoding)

    def problems_of_launch(self) -> Iterable[StudioError]:
        """Yield what does not fit within the launch section, but for how it is shared out."""
        address = self.launch.main_process_ip
        if address and not ADDRESS.fullmatch(address):
            yield StudioError("launch.bad_address", address=BRIEF.repr(address))

    def with_files(self, files: Iterable[str]) -> Self:
        """Return the same recipe over other data files."""
        return replace(self, data=replace(self.data, files=tuple(files)))

    def problems(self) -> Iterable[StudioError]:
        """Yield everything out of range; whether files and modules exist is not asked here."""
        if self.version != VERSION:
            yield StudioError("recipe.version", version=self.version, known=VERSION)
        if not self.model.source.strip():
            yield StudioError("recipe.no_model")
        yield from self.problems_of_adapter()
        yield from self.problems_of_data()
        yield from self.problems_of_launch()
        for path, (low, high) in BOUNDS.items():
            value = self.value(path)
            if value is not None and not low <= value <= high:
                yield StudioError("recipe.out_of_range", name=path, value=value, low=low, high=high)

    def value(self, path: str) -> Any:
        """Return the setting at a dotted path, as `adapter.r`."""
        branch: Any = self
        for name in path.split("."):
            branch = getattr(branch, name)
        return branch


# Inclusive. The page's sliders take their ends from here.
BOUNDS: dict[str, tuple[float, float]] = {
    "data.max_length": (8, 131_072),
    "data.chunk_overlap": (0, 0.5),
    "data.hub.start": (0, 10**12),
    "data.hub.rows": (1, 10**12),
    "data.eval_fraction": (0, 0.5),
    "adapter.r": (1, 256),
    "adapter.lora_alpha": (1, 1024),
    "adapter.lora_dropout": (0, 0.9),
    "training.num_train_epochs": (0.01, 1000),
    "training.max_steps": (1, 10_000_000),
    "training.learning_rate": (1e-8, 1),
    "training.per_device_train_batch_size": (1, 1024),
    "training.gradient_accumulation_steps": (1, 1024),
    "training.warmup_ratio": (0, 1),
    "training.loraplus_lr_ratio": (1, 64),
    "training.eval_steps": (1, 1_000_000),
    "training.save_steps": (1, 1_000_000),
    "training.save_total_limit": (1, 100),
    "training.early_stopping_patience": (1, 1000),
    "launch.num_processes": (1, 4096),
    "launch.num_machines": (1, 512),
    "launch.machine_rank": (0, 511),
    "launch.main_process_port": (1024, 65_535),
    "seed": (0, 2**32 - 1),
}


# A date such as 2026-13-40 is a ValueError, brackets without end are too deep.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
# Shows a wrong value, but never megabytes of it: aliases let a short file stand for a huge tree.
BRIEF = reprlib.Repr()
BRIEF.maxlevel, BRIEF.maxstring, BRIEF.maxother = 2, 80, 80


def read_tree(text: str) -> dict[str, Any]:
    """Return the names and values of a recipe file's text, unchecked.

    Raises:
        RecipeError: If it is not YAML.
    """
    try:
        tree = yaml.safe_load(text)
    except NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise RecipeError.of([StudioError("recipe.not_yaml", line=line)]) from error
    if not isinstance(tree, dict):
        raise RecipeError.of([StudioError("recipe.not_yaml", line=1)])
    return tree


def _is_regex(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _is_quick(pattern: str) -> bool:
    """Say whether a search cannot take for ever: a recipe may come from somebody else.

    Repeated groups take exponential time, each repeat multiplies it by the length of a path.
    """
    plain = re.sub(r"\\.", "x", pattern)
    return len(re.findall(r"[*+{]", plain)) <= 3 and not re.search(r"\)[*+{]", plain)


def _apply(setting: str, tree: dict[str, Any]) -> bool:
    """Put a `name=value` setting into the tree; return whether it is one."""
    path, separator, text = setting.partition("=")
    *parents, last = path.strip().split(".")
    branch: Any = tree
    for parent in parents:
        branch = branch.setdefault(parent, {}) if isinstance(branch, dict) else None
    if not separator or not isinstance(branch, dict):
        return False
    try:
        branch[last] = yaml.safe_load(text)
    except NOT_YAML:
        return False
    return True


def _build(kind: Any, tree: Any, *, at: str, problems: list[StudioError]) -> Any:
    """Build one dataclass of the tree, adding to `problems` what does not fit."""
    if not isinstance(tree, Mapping):
        problems.append(
            StudioError("recipe.not_a_section", name=at[:-1] or "recipe", value=BRIEF.repr(tree))
        )
        return kind()
    hints = _hints(kind)
    known = [entry.name for entry in fields(kind)]
    problems.extend(
        StudioError("recipe.unknown", name=f"{at}{name}", known=", ".join(sorted(known)))
        for name in tree
        if name not in known
    )
    values: dict[str, Any] = {}
    for name in filter(tree.__contains__, known):
        hint, value, path = hints[name], tree[name], f"{at}{name}"
        if is_dataclass(hint):
            values[name] = _build(hint, value, at=f"{path}.", problems=problems)
            continue
        try:
            values[name] = _fit(value, hint)
        except TypeError:
            expected = " | ".join(_names(hint))
            problems.append(
                StudioError(
                    "recipe.wrong_type", name=path, value=BRIEF.repr(value), expected=expected
                )
            )
    return kind(**values)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a section's settings; to work them out takes longer than all else."""
    return typing.get_type_hints(kind)


def _fit(value: Any, hint: Any) -> Any:
    """Return `value` as `hint` wants it, or raise TypeError."""
    if isinstance(hint, types.UnionType):
        for option in typing.get_args(hint):
            try:
                return _fit(value, option)
            except TypeError:
                continue
        raise TypeError
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value in typing.get_args(hint):
            return value
        raise TypeError
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_fit(item, typing.get_args(hint)[0]) for item in value)
        raise TypeError
    if origin is collections.abc.Mapping:
        if isinstance(value, Mapping):
            name_type, item_type = typing.get_args(hint)
            return {_fit(name, name_type): _fit(item, item_type) for name, item in value.items()}
        raise TypeError
    return _fit_scalar(_number_or(value) if hint in (int, float) else value, hint)


def _fit_scalar(value: Any, hint: Any) -> Any:
    if hint in (str, bool, types.NoneType) and isinstance(value, hint):
        return value
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError
    if hint is int and (isinstance(value, int) or value.is_integer()):
        return int(value)
    if hint is float:
        try:
            return float(value)
        except OverflowError as error:
            raise TypeError from error
    raise TypeError


def _number_or(value: Any) -> Any:
    """Read `2e-4`, which YAML 1.1 takes for text, as the number that was meant."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _names(hint: Any) -> list[str]:
    """Return what a type accepts, in a person's words."""
    if isinstance(hint, types.UnionType):
        return [name for option in typing.get_args(hint) for name in _names(option)]
    if typing.get_origin(hint) is Literal:
        return [str(option) for option in typing.get_args(hint)]
    if typing.get_origin(hint) in (tuple, collections.abc.Mapping):
        return ["list" if typing.get_origin(hint) is tuple else "names and values"]
    words = {int: "whole number", float: "number", str: "text", bool: "true | false"}
    return [words.get(hint, "null")]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
