"""Which layers of a model an adapter goes on, found as PEFT finds them; what cannot be found.

No torch: it needs a model's description only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from lora_studio.errors import RecipeError, StudioError
from lora_studio.models.description import ModelInfo, ModuleGroup, WholeModule, ranges
from lora_studio.recipe import ALL_LINEAR, AdapterSpec

# As in peft/tuners/tuners_utils.py `check_target_module_exists`: the first number is the block's.
_BLOCK = re.compile(r".*?\.[^.]*\.(?P<number>\d+)\.")
_TIED_NAMES = frozenset({"embed_tokens", "lm_head"})
_QUERY_AND_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("wq", "wv"))
_FUSED = ("c_attn", "qkv_proj", "query_key_value", "qkv", "Wqkv", "W_pack", "att_proj")


def selected(info: ModelInfo, adapter: AdapterSpec) -> Iterator[tuple[ModuleGroup, list[str]]]:
    """Yield each group of layers with the paths of those that get an adapter, in model order."""
    for group in info.modules:
        paths = [path for path in _named(group, adapter) if _in_layers(path, adapter)]
        if paths:
            yield group, paths


def target_modules(info: ModelInfo, adapter: AdapterSpec) -> list[str]:
    """Return the names of the layers that get an adapter, in model order.

    Raises:
        RecipeError: Naming everything of the choice that the model does not have.
    """
    wrong = problems(info, adapter)
    if wrong:
        raise RecipeError.of(wrong)
    chosen = {group.path for group, _ in selected(info, adapter)}
    return [
        name
        for name in info.target_names
        if any(group.path in chosen and _ends(group.path, name) for group in info.modules)
    ]


def peft_targets(info: ModelInfo, adapter: AdapterSpec) -> list[str]:
    """Return `target_modules` for PEFT's LoraConfig: names, or whole paths for an expression.

    `layers_to_transform` goes to LoraConfig beside it (None where it is empty); PEFT does not
    allow it beside an expression, so an expression is resolved to the paths of linear layers.

    Raises:
        RecipeError: As `target_modules`.
    """
    names = target_modules(info, adapter)
    if adapter.target_modules == ALL_LINEAR:
        return names
    if isinstance(adapter.target_modules, str):
        return [path for _, paths in selected(info, adapter) for path in paths]
    return list(adapter.target_modules)


def fan_in_fan_out(info: ModelInfo, targets: Iterable[str]) -> bool:
    """Say whether the targets store their weights as (d_in, d_out), as GPT-2's Conv1D does."""
    names = list(targets)
    return any(
        any(_ends(path, name) for name in names)
        for group in info.modules
        if group.kind == "Conv1D"
        for path in group.paths
    )


def saved_modules(info: ModelInfo, adapter: AdapterSpec) -> list[WholeModule]:
    """Return the embeddings and heads that are trained whole.

    Where the head is the embedding, both stay one: choosing either trains the embedding.
    """
    # PEFT compares ends, as in peft/utils/other.py `_set_trainable`.
    chosen = [
        module
        for module in info.whole_modules
        if any(module.path.endswith(name) for name in adapter.modules_to_save)
    ]
    if not keeps_tied(info, adapter):
        return chosen
    embedding = [module for module in info.whole_modules if module.role == "input"]
    return embedding + [module for module in chosen if module.role == "other"]


def keeps_tied(info: ModelInfo, adapter: AdapterSpec) -> bool:
    """Say whether PEFT must be told `ensure_weight_tying`.

    It knows embeddings by two names (peft/utils/constants.py `EMBEDDING_LAYER_NAMES`); GPT-2's
    `wte` is not among them and is parted from the head when it is trained alone.
    """
    names = {name.rpartition(".")[2] for name in adapter.modules_to_save}
    return info.tied_embeddings and bool(names & _TIED_NAMES)


def rank_of(path: str, adapter: AdapterSpec) -> int:
    """Return the rank of the layer at a path."""
    key = pattern_of(path, adapter.rank_pattern)
    return adapter.r if key is None else adapter.rank_pattern[key]


def pattern_of(path: str, patterns: Mapping[str, int]) -> str | None:
    """Return the first pattern that fits a path's end, as peft/utils/other.py `get_pattern_key`."""
    return next((key for key in patterns if _fits(path, key)), None)


def problems(info: ModelInfo, adapter: AdapterSpec) -> list[StudioError]:
    """Return everything of an adapter's choice of layers that the model does not have."""
    return [
        *_unknown_targets(info, adapter),
        *_unknown_layers(info, adapter),
        *_unknown_saved(info, adapter),
    ]


def presets(info: ModelInfo) -> dict[str, tuple[str, ...]]:
    """Return usual choices of target modules by name; only those that the model has.

    `attention_qv` is the LoRA paper's (arXiv 2106.09685, section 4.2), with the one layer that
    holds query, key and value where they are one; `attention` is all of the attention;
    `all_linear` is QLoRA's (arXiv 2305.14314, section 4).
    """
    attention = tuple(
        name
        for name in info.target_names
        if any(_ends(group.path, name) for group in info.modules if _is_attention(group))
    )
    lasts = {name.rpartition(".")[2]: name for name in attention}
    pairs = [pair for pair in _QUERY_AND_VALUE if set(pair) <= set(lasts)]
    fused = [(name,) for name in _FUSED if name in lasts]
    found = {}
    for pair in [*pairs, *fused][:1]:
        found["attention_qv"] = tuple(lasts[name] for name in pair)
    if attention and attention != found.get("attention_qv"):
        found["attention"] = attention
    if info.target_names:
        found["all_linear"] = info.target_names
    return found


def _named(group: ModuleGroup, adapter: AdapterSpec) -> tuple[str, ...]:
    """Return the group's layers that the target modules name, in whichever block."""
    targets = adapter.target_modules
    if targets == ALL_LINEAR:
        return group.paths
    if isinstance(targets, str):
        matches = re.compile(targets).fullmatch
        return tuple(path for path in group.paths if matches(path))
    if any(_ends(group.path, name) for name in targets):
        return group.paths
    if not any(any(map(str.isdecimal, name.split("."))) for name in targets):
        return ()
    return tuple(path for path in group.paths if any(_ends(path, name) for name in targets))


def _in_layers(path: str, adapter: AdapterSpec) -> bool:
    """Say whether a layer's block is among those chosen; a whole path is chosen wherever it is."""
    if not adapter.layers_to_transform or path in adapter.target_modules:
        return True
    return block_of(path) in adapter.layers_to_transform


@lru_cache(maxsize=65_536)
def block_of(path: str) -> int | None:
    """Return the number of the transformer block that a path lies in, None for none."""
    match = _BLOCK.match(path)
    return int(match["number"]) if match else None


@lru_cache(maxsize=65_536)
def _fits(path: str, pattern: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _is_attention(group: ModuleGroup) -> bool:
    place = group.path.split(".")[-2:-1]
    return any("attn" in part.lower() or "attention" in part.lower() for part in place)


def _unknown_targets(info: ModelInfo, adapter: AdapterSpec) -> Iterator[StudioError]:
    known = ", ".join(info.target_names)
    if isinstance(adapter.target_modules, str):
        if not any(_named(group, adapter) for group in info.modules):
            example = next((group.paths[0] for group in info.modules), "–")
            yield StudioError(
                "model.pattern_without_match", pattern=adapter.target_modules, example=example
            )
        return
    paths = [path for group in info.modules for path in group.paths]
    lasts = {path.rpartition(".")[2] for path in paths}
    unknown = [
        name
        for name in adapter.target_modules
        if name not in lasts and not any(_ends(path, name) for path in paths)
    ]
    if unknown:
        yield StudioError(
            "model.unknown_targets", names=", ".join(unknown), source=info.source, known=known
        )


def _unknown_layers(info: ModelInfo, adapter: AdapterSpec) -> Iterator[StudioError]:
    beyond = [layer for layer in adapter.layers_to_transform if layer >= info.layers]
    if beyond:
        yield StudioError("model.unknown_layers", layers=ranges(beyond), last=info.layers - 1)
    elif any(_named(group, adapter) for group in info.modules) and not any(selected(info, adapter)):
        yield StudioError("model.nothing_in_layers", layers=ranges(adapter.layers_to_transform))


def _unknown_saved(info: ModelInfo, adapter: AdapterSpec) -> Iterator[StudioError]:
    unknown = [
        name
        for name in adapter.modules_to_save
        if not any(_ends(module.path, name) for module in info.whole_modules)
    ]
    if unknown:
        known = ", ".join(module.name for module in info.whole_modules)
        yield StudioError("model.unknown_saved", names=", ".join(unknown), known=known)
