"""Counts what an adapter trains, exactly as PEFT will, from a model's description alone.

A LoRA adapter on a d_out×d_in weight is B (d_out×r) times A (r×d_in): r·(d_in + d_out) parameters
(arXiv 2106.09685, section 4.1). No torch: the page counts at every move of a slider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from lora_studio.errors import RecipeError, StudioError
from lora_studio.models.description import CLASS_HEAD, ModelInfo, ModuleGroup, WholeModule
from lora_studio.models.targets import (
    fan_in_fan_out,
    keeps_tied,
    pattern_of,
    peft_targets,
    presets,
    problems,
    rank_of,
    saved_modules,
    selected,
    target_modules,
)
from lora_studio.recipe import AdapterSpec

__all__ = [
    "ModuleCount",
    "ParameterCount",
    "classifying",
    "count",
    "fan_in_fan_out",
    "keeps_tied",
    "peft_targets",
    "presets",
    "problems",
    "saved_bytes",
    "saved_modules",
    "target_modules",
    "unsortable",
    "warnings",
]

FLOAT32_BYTES = 4
HEADER_BYTES = 45
"""Length, `__metadata__` and padding of a safetensors header."""
USUAL_SCALING = (0.25, 4.0)
"""lora_alpha/r in the papers' own settings: QLoRA 16/64 (arXiv 2305.14314, table 9) to 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCount:
    """Layers of one name and shape with an adapter on each."""

    name: str
    """Name of the layers, as in `q_proj`; longer where layers of several places share it."""
    count: int
    """How many layers get one."""
    d_in: int
    """Input width of each layer."""
    d_out: int
    """Output width of each layer."""
    full: int
    """Parameters of the frozen weights: count·d_in·d_out."""
    adapter: int
    """Parameters of the adapter: r·(d_in + d_out) a layer, with DoRA d_out more."""

    @property
    def saved_percent(self) -> float:
        """How much smaller the adapter is than the weights; below 0 where it is larger."""
        return 100 * (1 - self.adapter / self.full)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """What a run trains, out of what."""

    trainable: int
    """Adapter parameters, trained biases and modules trained whole."""
    total: int
    """The base model's parameters, the adapter's, and copies of modules trained whole."""
    percent: float
    """100·trainable/total."""
    adapter_bytes: int
    """Size of the saved adapter's safetensors file, in float32; within a percent or so."""
    per_module: tuple[ModuleCount, ...]
    """The kinds of layer with an adapter, in model order."""
    biases: int = 0
    """Bias parameters that are trained, without those of modules trained whole."""
    whole: tuple[WholeModule, ...] = ()
    """Modules that are trained whole beside the adapter."""


def unsortable(info: ModelInfo) -> list[StudioError]:
    """Return why texts cannot be sorted with a model; nothing where they can."""
    if info.can_classify:
        return []
    return [StudioError("model.cannot_classify", source=info.source, name=info.architecture)]


def classifying(
    info: ModelInfo, adapter: AdapterSpec, labels: int | None
) -> tuple[ModelInfo, AdapterSpec]:
    """Return model and adapter as they are where so many classes are learned.

    The head over classes takes the place of the one over words, and is trained whole: PEFT adds it
    to `modules_to_save` by itself (peft 0.21.2, `PeftModelForSequenceClassification`). With None
    both stay as they are.
    """
    if labels is None:
        return info, adapter
    saved = tuple(dict.fromkeys((*adapter.modules_to_save, CLASS_HEAD)))
    return info.as_classifier(labels), replace(adapter, modules_to_save=saved)


def count(info: ModelInfo, adapter: AdapterSpec, labels: int | None = None) -> ParameterCount:
    """Count an adapter's parameters on a model.

    The numbers are those of PEFT's `get_nb_trainable_parameters`: with bias `all` every parameter
    named bias is trained, with `lora_only` those of the layers that have an adapter
    (`_mark_only_adapters_as_trainable` in peft/tuners/tuners_utils.py); a module of
    `modules_to_save` is trained as a copy, its original stays.

    Args:
        info: The language model.
        adapter: The choices.
        labels: How many classes a classifier learns; None where the model writes.

    Raises:
        RecipeError: If the model does not have what is chosen.
    """
    info, adapter = classifying(info, adapter, labels)
    wrong = problems(info, adapter)
    if wrong:
        raise RecipeError.of(wrong)
    chosen = list(selected(info, adapter))
    counted = [_count_layers(info, group, paths, adapter) for group, paths in chosen]
    whole = tuple(saved_modules(info, adapter))
    biases = _biases(info, adapter, chosen, whole)
    copies = sum(module.parameters for module in whole)
    weights = sum(layers.adapter for layers in counted)
    trainable, total = weights + biases + copies, info.parameters + weights + copies
    return ParameterCount(
        trainable=trainable,
        total=total,
        percent=100 * trainable / total,
        adapter_bytes=_file_bytes(info, adapter, chosen, trainable),
        per_module=tuple(_merged(counted)),
        biases=biases,
        whole=whole,
    )


def warnings(info: ModelInfo, adapter: AdapterSpec) -> list[StudioError]:
    """Return what can be done but is worth a second look, each as a sentence to be."""
    return [
        *_ranks_beyond_the_layer(info, adapter),
        *_odd_scaling(adapter),
        *_large_modules(info, adapter),
        *_without_effect(info, adapter),
    ]


def saved_bytes(info: ModelInfo, name: str) -> int:
    """Return what the adapter's file grows by when one module is trained whole."""
    adapter = AdapterSpec(modules_to_save=(name,))
    return sum(
        _copies(info, adapter, module) * FLOAT32_BYTES * module.parameters
        for module in saved_modules(info, adapter)
    )


def _count_layers(
    info: ModelInfo, group: ModuleGroup, paths: Sequence[str], adapter: AdapterSpec
) -> ModuleCount:
    ranks = sum(rank * n for rank, n in _ranks(paths, adapter).items())
    magnitudes = group.d_out * len(paths) if adapter.use_dora else 0
    return ModuleCount(
        name=_name_of(info.target_names, group),
        count=len(paths),
        d_in=group.d_in,
        d_out=group.d_out,
        full=len(paths) * group.d_in * group.d_out,
        adapter=ranks * (group.d_in + group.d_out) + magnitudes,
    )


def _ranks(paths: Sequence[str], adapter: AdapterSpec) -> Counter[int]:
    """Return how many layers have each rank."""
    if not adapter.rank_pattern:
        return Counter({adapter.r: len(paths)})
    return Counter(rank_of(path, adapter) for path in paths)


def _name_of(names: Sequence[str], group: ModuleGroup) -> str:
    """Return the target name of a group."""
    return next(name for name in names if f".{group.path}".endswith(f".{name}"))


def _merged(counted: Sequence[ModuleCount]) -> Iterator[ModuleCount]:
    """Yield one count for all layers of one name and shape."""
    alike: dict[tuple[str, int, int], list[ModuleCount]] = {}
    for layers in counted:
        alike.setdefault((layers.name, layers.d_in, layers.d_out), []).append(layers)
    for (name, d_in, d_out), group in alike.items():
        yield ModuleCount(
            name=name,
            count=sum(layers.count for layers in group),
            d_in=d_in,
            d_out=d_out,
            full=sum(layers.full for layers in group),
            adapter=sum(layers.adapter for layers in group),
        )


def _biases(
    info: ModelInfo,
    adapter: AdapterSpec,
    chosen: Sequence[tuple[ModuleGroup, Sequence[str]]],
    whole: Sequence[WholeModule],
) -> int:
    if adapter.bias == "none":
        return 0
    if adapter.bias == "all":
        return info.biases - sum(module.bias for module in whole)
    return sum(group.bias // group.count * len(paths) for group, paths in chosen)


# The file


def _file_bytes(
    info: ModelInfo,
    adapter: AdapterSpec,
    chosen: Sequence[tuple[ModuleGroup, Sequence[str]]],
    trainable: int,
) -> int:
    """Return the size of a safetensors file: its weights and a JSON header that names each.

    PiSSA's is converted to an ordinary adapter of twice the rank when it is saved.
    """
    doubled = 2 if adapter.init_lora_weights == "pissa" else 1
    digits = len(str(FLOAT32_BYTES * trainable))
    weights, header = trainable, 0
    other_biases = info.bias_tensors if adapter.bias == "all" else 0
    for group, paths in chosen:
        ranks = sum(rank * n for rank, n in _ranks(paths, adapter).items())
        weights += (doubled - 1) * ranks * (group.d_in + group.d_out)
        entries = _entry("lora_A.weight", (doubled * adapter.r, group.d_in), digits)
        entries += _entry("lora_B.weight", (group.d_out, doubled * adapter.r), digits)
        tensors = 2
        if adapter.use_dora:
            entries, tensors = entries + _entry("lora_magnitude_vector", (group.d_out,), digits), 3
        if adapter.bias != "none" and group.bias:
            entries += _entry("base_layer.bias", (group.d_out,), digits)
            tensors += 1
            other_biases -= len(paths) if adapter.bias == "all" else 0
        header += len(paths) * entries + tensors * sum(map(len, paths))
    header += other_biases * _entry("model.layers.0.some_layernorm.bias", (999,), digits)
    for module in saved_modules(info, adapter):
        copies = _copies(info, adapter, module)
        weights += (copies - 1) * module.parameters
        # With bias `all` PEFT writes the bias of a copied module three times.
        weights += 2 * module.bias if adapter.bias == "all" else 0
        header += copies * _entry(f"{module.path}.weight", (module.rows, module.columns), digits)
    return FLOAT32_BYTES * weights + header + HEADER_BYTES


def _copies(info: ModelInfo, adapter: AdapterSpec, module: WholeModule) -> int:
    """Return how often a module trained whole is in the file: a tied head is written beside it."""
    return 2 if module.role == "input" and keeps_tied(info, adapter) else 1


@lru_cache(maxsize=4096)
def _entry(tensor: str, shape: tuple[int, ...], digits: int) -> int:
    """Return the bytes of a tensor's entry in the header, without its layer's path."""
    form = f'"base_model.model..{tensor}":{{"dtype":"F32","shape":[],"data_offsets":[,]}},'
    return len(form) + len(",".join(map(str, shape))) + 2 * digits


# What is worth a second look


def _ranks_beyond_the_layer(info: ModelInfo, adapter: AdapterSpec) -> Iterator[StudioError]:
    """Yield layers whose rank is more than ΔW can have: that of its shorter side."""
    names: dict[tuple[int, int], dict[str, None]] = {}
    for group, paths in selected(info, adapter):
        limit = min(group.d_in, group.d_out)
        beyond = [rank for rank in _ranks(paths, adapter) if rank > limit]
        if beyond:
            name = _name_of(info.target_names, group)
            names.setdefault((max(beyond), limit), {})[name] = None
    for (rank, limit), found in names.items():
        yield StudioError("adapter.rank_beyond_layer", names=", ".join(found), r=rank, limit=limit)


def _odd_scaling(adapter: AdapterSpec) -> Iterator[StudioError]:
    scaling = adapter.lora_alpha / adapter.r
    low, high = USUAL_SCALING
    if not adapter.use_rslora and not low <= scaling <= high:
        yield StudioError("adapter.odd_scaling", scaling=scaling, low=low, high=high)


def _large_modules(info: ModelInfo, adapter: AdapterSpec) -> Iterator[StudioError]:
    for module in saved_modules(info, adapter):
        size = _copies(info, adapter, module) * FLOAT32_BYTES * module.parameters
        yield StudioError(
            "adapter.saved_whole",
            name=module.name,
            parameters=module.parameters,
            mb=size / 1e6,
        )


def _without_effect(info: ModelInfo, adapter: AdapterSpec) -> Iterator[StudioError]:
    if adapter.bias != "none" and not _biases(info, adapter, list(selected(info, adapter)), ()):
        yield StudioError("adapter.no_biases", bias=adapter.bias)
    paths = [path for _, chosen in selected(info, adapter) for path in chosen]
    for setting in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(adapter, setting)
        used = {pattern_of(path, patterns) for path in paths} if patterns else set()
        unused = [pattern for pattern in patterns if pattern not in used]
        if unused:
            yield StudioError(
                "adapter.pattern_without_effect", setting=setting, patterns=", ".join(unused)
            )
    if info.expert_parameters:
        yield StudioError(
            "adapter.experts_frozen", percent=100 * info.expert_parameters / info.parameters
        )
