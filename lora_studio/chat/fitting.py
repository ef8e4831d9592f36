"""Whether an adapter can answer on a base, found out without the base's weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lora_studio.chat.base import LoadedBase
from lora_studio.models.loading import LOCAL, load_tokenizer, reading


def check_fit(adapter: Path, base: Path, *, labels: Sequence[str] = ()) -> None:
    """Attach an adapter to a base of shapes alone, as is done before it answers.

    Args:
        adapter: A PEFT folder.
        base: The folder of a base model; its weights need not be there.
        labels: The classes that the adapter sorts texts into; none if it writes.

    Raises:
        AdapterError: If it cannot be attached, as `LoadedBase.attach` says.
        ModelError: If the base's configuration or tokenizer cannot be read.
    """
    loaded = LoadedBase(_bare(base, labels), load_tokenizer(base), classifies=bool(labels))
    with warnings.catch_warnings():
        # Here it is shapes that are looked at, and numbers have nowhere to go.
        warnings.filterwarnings("ignore", ".* to a meta parameter in the current model")
        loaded.attach({adapter.name: adapter})


def _bare(folder: Path, labels: Sequence[str]) -> Any:
    """Return a base's layers on the meta device: names and shapes, no numbers."""
    with reading(folder):
        config = AutoConfig.from_pretrained(folder, **LOCAL)
        if labels:
            config.num_labels = len(labels)
        kind = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
        with torch.device("meta"):
            return kind.from_config(config, trust_remote_code=False).eval()
