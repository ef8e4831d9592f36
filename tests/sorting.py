"""Adapters and runs that sort texts into classes, written without training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from lora_studio.models.loading import load_classifier
from lora_studio.recipe import CLASSIFICATION, DataSpec, ModelSpec, Recipe
from lora_studio.runs.folder import RunFolder

LABELS = ("bad", "fair", "good")
SEED = 11
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def make_sorter(
    base: Path, folder: Path, *, seed: int, labels: Sequence[str] = LABELS, **config: object
) -> str:
    """Save an adapter with a head of its own, neither as it began."""
    model = load_classifier(base, "fp32", "cpu", labels=labels, seed=SEED)
    kind = model.config.model_type
    config = {"r": 4, "target_modules": TARGETS[kind], "fan_in_fan_out": kind == "gpt2"} | config
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **config))
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "modules_to_save" in name):
            torch.nn.init.normal_(parameter, std=0.5)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return str(folder)


def write_run(
    folder: Path, base: str, labels: Sequence[str] = LABELS, prompts: Sequence[str] = ()
) -> RunFolder:
    """Write a finished run of eight steps; its adapter is the caller's to add."""
    folder.mkdir(parents=True)
    recipe = Recipe(
        model=ModelSpec(source=base), data=DataSpec(format=CLASSIFICATION, files=("rows.csv",)),
        seed=SEED,
    )  # fmt: skip
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    events = [
        {"event": "started", "total_steps": 8, "task_type": "SEQ_CLS", "labels": list(labels),
         "format": CLASSIFICATION, "precision": "fp32"},
    ]  # fmt: skip
    for step in range(9):
        if step:
            events.append(_step(step))
        if step % 4 == 0:
            events.append(evaluation(step, labels))
            events += [
                {"event": "sample", "step": step, "prompt": prompt, "answer": f"{labels[0]} (87 %)"}
                for prompt in prompts
            ]
    events.append({"event": "finished", "steps": 8})
    lines = (json.dumps({"time": 1e9 + at} | event) + "\n" for at, event in enumerate(events))
    (folder / "events.jsonl").write_text("".join(lines), encoding="utf-8")
    return RunFolder(folder)


def evaluation(step: int, labels: Sequence[str]) -> dict[str, object]:
    """Return an eval event: ten rows of each class, of which more are right with each step."""
    right = min(2 + step, 9)
    rows = [
        [right if true == said else (10 - right if said == (true + 1) % len(labels) else 0)
         for said in range(len(labels))]
        for true in range(len(labels))
    ]  # fmt: skip
    return {
        "event": "eval", "step": step, "loss": math.exp(-step / 8), "accuracy": right / 10,
        "f1": right / 10, "confusion": rows,
    }  # fmt: skip


def _step(step: int) -> dict[str, object]:
    return {
        "event": "step", "step": step, "loss": math.exp(-step / 8), "learning_rate": 1e-4,
        "grad_norm": 1.0, "tokens_per_s": 100.0, "memory_bytes": 1e9, "seconds_left": 8.0 - step,
    }  # fmt: skip
