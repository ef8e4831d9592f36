"""The result of a run: a PEFT folder that other programs load as it is."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lora_studio.runs.folder import RunFolder


def write_adapter(
    model: Any, folder: Path, initial: Path | None, *, state: Mapping[str, Any] | None = None
) -> None:
    """Write a PEFT folder that works on the true base, and ask the Hub for nothing.

    Beside an adapter that sorts texts lies the base's `config.json` with the names of the classes.

    Args:
        model: The PeftModel; its weights stay as they are.
        folder: Where to.
        initial: PiSSA's untrained adapter, whose product is taken off again: the base that this
            adapter will meet still has those directions. The rank in the file is then twice r.
        state: The model's whole state, where no process holds all of it (FSDP).
    """
    # PEFT loads the untrained adapter beside the other one for a moment: it warns of what would
    # be wrong for good, and draws random numbers that the next step must not miss.
    with warnings.catch_warnings(), torch.random.fork_rng(enabled=initial is not None):
        warnings.filterwarnings("ignore", "PiSSA changes the base weights", UserWarning)
        model.save_pretrained(
            folder,
            state_dict=state,
            # "auto" asks the Hub at every save for the base's vocabulary size
            # (peft 0.21.2, utils/save_and_load.py).
            save_embedding_layers=False,
            path_initial_model_for_weight_conversion=None if initial is None else str(initial),
        )
    if model.active_peft_config.task_type == "SEQ_CLS":
        _write_classes(model.get_base_model(), folder)


def _write_classes(base: Any, folder: Path) -> None:
    """Write the base's configuration, from which the classes are read back."""
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # whoever loads it chooses the number format
    config.save_pretrained(folder)


def save_adapter(
    folder: RunFolder,
    model: Any,
    tokenizer: Any,
    *,
    card: str,
    initial: Path | None = None,
    state: Mapping[str, Any] | None = None,
) -> Path:
    """Write `adapter/` aside and rename it, so that it is there whole or not at all.

    The chat template travels with the tokenizer; the recipe is copied in. `initial` and `state`
    are as in `write_adapter`.
    """
    partial = folder.path / "adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    write_adapter(model, partial, initial, state=state)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.copyfile(folder.recipe, partial / "recipe.yaml")
    shutil.rmtree(folder.adapter, ignore_errors=True)
    partial.rename(folder.adapter)
    return folder.adapter
