"""What an adapter's configuration may say: each setting by name, with the test that it must pass.

Nothing that it says is used as a path. Torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_studio.errors import AdapterError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LARGEST = 1_000_000
"""No rank, alpha or number of a layer is larger."""
SHOWN = 80
"""So many characters of a wrong value are shown."""

Test = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST  # NaN is not


def _is_layer(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_start(value: Any) -> bool:
    return _is_switch(value) or _is_text(value)


def _is_bias(value: Any) -> bool:
    return value in ("none", "all", "lora_only")


def _list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _one_or_more(test: Test) -> Test:
    return lambda value: test(value) or _list_of(test)(value)


def _pattern_of(test: Test) -> Test:
    return lambda value: isinstance(value, dict) and all(map(test, value.values()))


SETTINGS: dict[str, Test] = {
    "alpha_pattern": _pattern_of(_is_number),
    "base_model_name_or_path": _is_text,
    "bias": _is_bias,
    "ensure_weight_tying": _is_switch,
    "exclude_modules": _one_or_more(_is_text),
    "fan_in_fan_out": _is_switch,
    "inference_mode": _is_switch,
    "init_lora_weights": _is_start,
    "layers_pattern": _one_or_more(_is_text),
    "layers_to_transform": _one_or_more(_is_layer),
    "lora_alpha": _is_number,
    "lora_bias": _is_switch,
    "lora_dropout": _is_share,
    "modules_to_save": _list_of(_is_text),
    "peft_type": _is_text,
    "peft_version": _is_text,
    "r": _is_count,
    "rank_pattern": _pattern_of(_is_count),
    "target_modules": _one_or_more(_is_text),
    "target_parameters": _list_of(_is_text),
    "task_type": _is_text,
    "use_dora": _is_switch,
    "use_rslora": _is_switch,
}
"""PEFT's settings of LoRA that are believed (peft 0.21.2, LoraConfig)."""
NEEDED = {"lora_alpha", "r"}
"""They have no default here; of the others null says nothing."""
FOREIGN = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""LoRA relatives that need more than the matrices, or that change the base."""
NOTES = {
    "auto_mapping",
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "velora_config",
}
"""How its training began and where its base lay: nothing that an answer depends on."""
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base as it is; PiSSA, OLoRA, CorDA and LoftQ
replace its weights by a residual (PEFT, developer guide on LoRA initialisation)."""


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what an adapter's configuration says, of `SETTINGS` alone.

    Raises:
        AdapterError: If it cannot be read, says what it cannot, or is not of plain LoRA.
    """
    said = _read(folder)
    kind = said.get("peft_type")
    if kind != "LORA":
        raise AdapterError("adapters.kind", folder=str(folder), kind=str(kind)[:SHOWN])
    unknown = sorted(name for name in said.keys() - {*SETTINGS, *FOREIGN, *NOTES} if said[name])
    if unknown:
        raise AdapterError("adapters.unknown_settings", folder=str(folder), names=unknown)
    for name in FOREIGN:
        if said.get(name):
            raise AdapterError("adapters.kind", folder=str(folder), kind=f"LORA ({name})")
    found: dict[str, Any] = {
        name: said.get(name) for name in SETTINGS if name in NEEDED or said.get(name) is not None
    }
    for name, value in found.items():
        if not SETTINGS[name](value):
            shown = json.dumps(value, ensure_ascii=False)[:SHOWN]
            raise AdapterError("adapters.odd_setting", folder=str(folder), name=name, value=shown)
    init = found.get("init_lora_weights", True)
    if init not in PLAIN_STARTS:
        raise AdapterError("adapters.rewrites_base", folder=str(folder), init=init[:SHOWN])
    return found


def weights_of(folder: Path) -> str:
    """Return what tells an adapter's weights from others: the SHA-256 of their file.

    Raises:
        OSError: If there is no such file.
    """
    file = folder / WEIGHTS
    at = file.stat()
    return _digest(file, (at.st_ino, at.st_mtime_ns, at.st_size))


@lru_cache(maxsize=64)
def _digest(file: Path, _written: tuple[int, int, int]) -> str:
    """Return the SHA-256 of a file, read once as long as it is the same."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def largest_rank(said: Mapping[str, Any]) -> int:
    """Return the largest rank of an adapter's modules, of what `read_settings` gives."""
    return max([said["r"], *said.get("rank_pattern", {}).values()])


def _read(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise AdapterError("adapters.incomplete", folder=str(folder), missing=CONFIG)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise AdapterError("adapters.unreadable", file=str(file), cause=cause) from error
    if not isinstance(said, dict):
        cause = type(said).__name__
        raise AdapterError("adapters.unreadable", file=str(file), cause=cause)
    return said
