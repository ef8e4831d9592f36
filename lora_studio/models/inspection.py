"""Looks at a model without its weights: builds it on torch's meta device and reads its layers."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lora_studio.models.description import ModelInfo, ModuleGroup, ModuleKind
from lora_studio.models.loading import LOCAL, reading


def inspect_model(folder: Path, source: str) -> ModelInfo:
    """Describe the model in a folder; the weights need not be there.

    Args:
        folder: A folder from `sources.resolve`.
        source: What the person chose, kept in the description.

    Raises:
        ModelError: If the configuration cannot be read or built.
    """
    with reading(folder):
        config = AutoConfig.from_pretrained(folder, **LOCAL)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    text = config.get_text_config()
    named = list(model.named_parameters())
    parameters = sum(parameter.numel() for _, parameter in named)
    return ModelInfo(
        source=source,
        architecture=type(model).__name__,
        parameters=parameters,
        layers=text.num_hidden_layers,
        context_length=getattr(text, "max_position_embeddings", None),
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        chat_template=_has_chat_template(folder),
        modules=module_groups(model),
        biases=sum(p.numel() for name, p in named if name.rpartition(".")[2] == "bias"),
        size_bytes=_stored_bytes(folder) or parameters * _stored_width(config),
        licence=_licence(folder),
    )


def module_groups(model: nn.Module) -> tuple[ModuleGroup, ...]:
    """Gather a model's linear layers by last name, shape and kind, in model order.

    The output head is left out, as PEFT's `all-linear` does: an adapter there is rarely meant,
    and with tied embeddings it would part them.
    """
    head = model.get_output_embeddings()
    counts: Counter[tuple[str, int, int, ModuleKind]] = Counter()
    biases: Counter[tuple[str, int, int, ModuleKind]] = Counter()
    for path, module in model.named_modules():
        if module is head or not isinstance(module, nn.Linear | Conv1D):
            continue
        kind: ModuleKind = "Linear" if isinstance(module, nn.Linear) else "Conv1D"
        # Linear keeps its weight as (d_out, d_in), Conv1D as (d_in, d_out).
        d_in, d_out = reversed(module.weight.shape) if kind == "Linear" else module.weight.shape
        key = (path.rpartition(".")[2], d_in, d_out, kind)
        counts[key] += 1
        biases[key] += 0 if module.bias is None else module.bias.numel()
    return tuple(
        ModuleGroup(name=name, count=n, d_in=d_in, d_out=d_out, kind=kind, bias=biases[key])
        for key, n in counts.items()
        for name, d_in, d_out, kind in [key]
    )


def _stored_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _stored_width(config: Any) -> int:
    """Return the bytes per parameter that the configuration says the weights are saved in."""
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return dtype.itemsize


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    file = folder / "tokenizer_config.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError):
        return False


def _licence(folder: Path) -> str | None:
    """Return `license:` of the model card's front matter."""
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = front and re.search(r"^license:\s*['\"]?([\w.+-]+)", front[1], re.MULTILINE)
    return found[1] if found else None
