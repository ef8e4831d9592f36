"""Runs and adapters as they lie in a home folder, written without training."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lora_studio.library.names import PEFT, Origin, write_origin
from lora_studio.recipe import Recipe
from lora_studio.runs.folder import LAST_WRITTEN, WEIGHTS, RunFolder, create
from lora_studio.settings import STARTER, Settings

ADAPTER_CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}


def write_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(b"weights")
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER_CONFIG))
    return folder


def write_run(
    settings: Settings, name: str = "poems", *changes: str, losses: tuple[float, ...] = (3, 2, 1),
    checkpoints: tuple[int, ...] = (), end: str | None = "finished", **started: Any,
) -> RunFolder:  # fmt: skip
    """A run as its worker leaves it."""
    recipe = Recipe.from_dict({"name": name, "data": {"files": [f"/data/{name}.txt"]}})
    run = create(settings.runs, recipe.changed(changes))
    lines: list[dict[str, Any]] = [
        {"event": "started", "precision": "fp32", "total_steps": len(losses)} | started
    ]
    lines += [
        {"event": "step", "step": step, "loss": loss, "learning_rate": 1e-4, "grad_norm": 1.0,
         "tokens_per_s": 100.0, "memory_bytes": 1e9, "seconds_left": 1.0}
        for step, loss in enumerate(losses, 1)
    ]  # fmt: skip
    lines += [{"event": "eval", "step": 0, "loss": 9.0}]
    lines += [{"event": "eval", "step": len(losses), "loss": losses[-1] + 0.5}]
    lines += [{"event": "sample", "step": 1, "prompt": "Hello?", "answer": f"{name} begins"}]
    lines += [{"event": "sample", "step": 2, "prompt": "Hello?", "answer": f"{name} says hello"}]
    lines += [{"event": end}] if end else []
    text = "".join(json.dumps({"time": 1000.0 + at} | line) + "\n" for at, line in enumerate(lines))
    run.events.write_text(text)
    for step in checkpoints:
        write_adapter(run.checkpoint(step))
        (run.checkpoint(step) / LAST_WRITTEN).write_text("{}")
    write_adapter(run.adapter)
    # Its worker is gone.
    run.process.write_text(json.dumps({"pid": 2**22 + 1, "started": 0}))
    return run


def write_answering(
    settings: Settings, name: str, base: str, *changes: str, r: int = 4, **about: Any
) -> RunFolder:
    """A run whose adapter answers otherwise than its base; what else is said of it, `write_run`."""
    run = write_run(settings, name, f"adapter.r={r}", f"model.source={base}", *changes, **about)
    shutil.rmtree(run.adapter)
    save(base, run.adapter, r=r)
    return run


def write_elsewhere(settings: Settings, name: str = "from-afar-a1", **about: Any) -> Path:
    folder = settings.adapters / name
    write_adapter(folder / PEFT)
    origin = {"kind": "zip", "of": "afar.zip", "source": STARTER, "created": time.time()}
    write_origin(folder, Origin(**origin | about))
    return folder


def save(base: str, folder: Path, **about: Any) -> Path:
    """Save an adapter of a base that does something, as PEFT does."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | about
    wrapped = get_peft_model(model, LoraConfig(**config))
    for name, one in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(one, std=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder
