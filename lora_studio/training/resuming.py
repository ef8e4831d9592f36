"""What a run that goes on must find as it was: its rows, and the base beneath its adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils.other import transpose
from safetensors.torch import load_file

from lora_studio.data.report import Report
from lora_studio.errors import RunError
from lora_studio.runs.folder import WEIGHTS, RunFolder
from lora_studio.runs.history import History
from lora_studio.training.adapting import ADAPTER, PEFT_STARTS, adapt, adapted_layers

SAME = ("fingerprint", "trained_rows", "eval_rows", "tokens")
"""What of a report tells that its rows are those of another."""


def refuse_other_base(before: History, fingerprint: str, *, base: str) -> None:
    """Compare the base's weights with those that the run began with, where it noted them.

    Args:
        before: The run's events, until it was broken off.
        fingerprint: What `models.fingerprint` says of the base now.
        base: Its name.

    Raises:
        RunError: If they are others: what was learned belongs to the old ones.
    """
    if before.plan.get("base_fingerprint", fingerprint) != fingerprint:
        raise RunError("run.base_changed", run=before.folder.id, base=base)


def refuse_other_data(folder: RunFolder, report: Report) -> None:
    """Compare the rows with those that the run began with.

    Raises:
        RunError: If they are others: the same steps would not see the same rows.
    """
    before = json.loads((folder.data / "report.json").read_text(encoding="utf-8"))
    now = report.to_dict()
    if any(before[name] != now[name] for name in SAME):
        raise RunError("run.data_changed", run=folder.id)


def adapt_again(
    model: Any, config: LoraConfig, *, seed: int, initial: Path
) -> tuple[PeftModel, Path | None]:
    """Put the adapter of a run that goes on onto the model; its weights come from a checkpoint.

    They start anyhow here. What PiSSA took off the base is taken off as it was then.

    Args:
        model: The base.
        config: As `adapting.adapt` was given it.
        seed: The recipe's.
        initial: Where PiSSA's untrained adapter was kept.

    Returns:
        The adapted model, and what `adapting.initialise` returned.
    """
    start, config.init_lora_weights = config.init_lora_weights, True
    adapted = adapt(model, config, seed=seed)
    adapted.peft_config[ADAPTER].init_lora_weights = start
    if start != PEFT_STARTS["pissa"]:
        return adapted, None
    _take_off(adapted, initial)
    return adapted, initial


@torch.no_grad()
def _take_off(adapted: PeftModel, initial: Path) -> None:
    """Take PiSSA's untrained product off the base, in the steps in which PEFT does.

    So it is the same base to the last bit (peft 0.21.2, tuners/lora/layer.py, pissa_init).
    """
    stored = load_file(initial / WEIGHTS)
    for name, layer in adapted_layers(adapted):
        base = layer.get_base_layer()
        names = [f"base_model.model.{name}.lora_{side}.weight" for side in "AB"]
        a, b = (stored[name].to(base.weight.device) for name in names)
        weight = transpose(base.weight.to(torch.float32), layer.fan_in_fan_out)
        weight = weight.data - layer.scaling[ADAPTER] * b @ a
        base.weight.data = transpose(weight.to(base.weight.dtype), layer.fan_in_fan_out)
