"""The result of a run: a PEFT folder that other programs load as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lora_studio.recipe import Recipe
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History

CARD = """\
---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags:
- lora
- base_model:adapter:{base}
---

# {name}

A LoRA adapter for `{base}`, trained with LoRA Studio.

| | |
|---|---|
| rank r, lora_alpha | {r}, {alpha} |
| target modules | {targets} |
| precision of the frozen base | {precision} |
| optimizer steps | {steps} |
| learning rate | {rate:g} |
| training rows, held-out rows | {train_rows}, {eval_rows} |
| training loss, first and last | {first_loss}, {last_loss} |
| held-out loss, first and last | {first_eval}, {last_eval} |

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```

`recipe.yaml` beside this file reproduces the training.
"""


def save_adapter(folder: RunFolder, model: Any, tokenizer: Any, *, card: str) -> Path:
    """Write `adapter/` aside and rename it, so that it is there whole or not at all.

    The chat template travels with the tokenizer; the recipe is copied in.
    """
    partial = folder.path / "adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    # With save_embedding_layers="auto" PEFT asks the Hub for the base's vocabulary.
    model.save_pretrained(partial, save_embedding_layers=False)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.copyfile(folder.recipe, partial / "recipe.yaml")
    shutil.rmtree(folder.adapter, ignore_errors=True)
    partial.rename(folder.adapter)
    return folder.adapter


def model_card(recipe: Recipe, history: History, *, base: str) -> str:
    """Return the adapter's README.md: the settings and the measured losses."""
    plan, summary = history.plan, history.summary()
    evals = summary["eval_losses"] or [None]
    return CARD.format(
        base=base,
        name=history.folder.id,
        r=recipe.adapter.r,
        alpha=recipe.adapter.lora_alpha,
        targets=", ".join(plan["target_modules"]),
        precision=plan["precision"],
        steps=summary["steps"],
        rate=recipe.training.learning_rate,
        train_rows=plan["train_rows"],
        eval_rows=plan["held_out_rows"],
        first_loss=_rounded(summary["first_train_loss"]),
        last_loss=_rounded(summary["last_train_loss"]),
        first_eval=_rounded(evals[0]),
        last_eval=_rounded(evals[-1]),
    )


def _rounded(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
