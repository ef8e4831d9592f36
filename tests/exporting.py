"""Adapters with values in them, and what they make of a base, by PEFT itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from lora_studio.exports.orders import Order
from lora_studio.library.names import Named

TOKENS = torch.tensor([[5, 9, 44, 120, 7, 300, 18, 2]])


def save_adapter(base: Path, folder: Path, *, std: float = 0.3, **config: Any) -> Path:
    """Save an adapter whose every trained weight differs from where it began."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | config
    torch.manual_seed(3)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * std
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


@torch.no_grad()
def said_by_peft(base: Path, adapter: Path) -> torch.Tensor:
    """Return the logits of base and adapter in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).eval()(TOKENS).logits


@torch.no_grad()
def said_by(folder: Path) -> torch.Tensor:
    """Return the logits of a model folder in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(TOKENS).logits


def named(adapter: Path, base: Path, **about: Any) -> Named:
    """Return an adapter as the library knows it."""
    facts = {"precision": "fp32", "run": None, "fingerprint": None, "labels": (), "seed": 42}
    return Named(name=adapter.name, folder=adapter, source=str(base), **facts | about)


def order(adapter: Path, base: Path, target: Path, form: str = "merged", **about: Any) -> Order:
    """Return an order of one export."""
    options = {
        name: about.pop(name) for name in ("dtype", "quantization", "replaces") if name in about
    }
    chosen = named(adapter, base, **about)
    return Order(adapter=chosen, form=form, target=target, **options)  # type: ignore[arg-type]


def silent(*_: object) -> None:
    """Take a progress report."""
