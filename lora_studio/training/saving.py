"""The result of a run: a PEFT folder that other programs load as it is."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from lora_studio.methods import LABELS, chosen
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
| method | {method} |
| target modules | {targets} |
| precision of the frozen base | {precision} |
| optimizer steps | {steps} |
| learning rate | {rate:g} |
| training rows, held-out rows | {train_rows}, {eval_rows} |
| training loss, first and last | {first_loss}, {last_loss} |
| held-out loss, first and last | {first_eval}, {last_eval} |

```python
from peft import PeftModel
from transformers import {classes}

base = AutoModelForCausalLM.from_pretrained("{base}"{options})
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```

`recipe.yaml` beside this file reproduces the training.
"""


# LoftQ's adapter mends what rounding to NF4 takes, so it wants the base in NF4.
NF4_OPTIONS = """,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
"""


def write_adapter(model: Any, folder: Path, initial: Path | None) -> None:
    """Write a PEFT folder that works on the true base, and ask the Hub for nothing.

    Args:
        model: The PeftModel; its weights stay as they are.
        folder: Where to.
        initial: PiSSA's untrained adapter, whose product is taken off again: the base that this
            adapter will meet still has those directions. The rank in the file is then twice r.
    """
    # PEFT loads the untrained adapter beside the other one for a moment: it warns of what would
    # be wrong for good, and draws random numbers that the next step must not miss.
    with warnings.catch_warnings(), torch.random.fork_rng(enabled=initial is not None):
        warnings.filterwarnings("ignore", "PiSSA changes the base weights", UserWarning)
        model.save_pretrained(
            folder,
            # "auto" asks the Hub at every save for the base's vocabulary size
            # (peft 0.21.2, utils/save_and_load.py).
            save_embedding_layers=False,
            path_initial_model_for_weight_conversion=None if initial is None else str(initial),
        )


def save_adapter(
    folder: RunFolder, model: Any, tokenizer: Any, *, card: str, initial: Path | None = None
) -> Path:
    """Write `adapter/` aside and rename it, so that it is there whole or not at all.

    The chat template travels with the tokenizer; the recipe is copied in. `initial` is as in
    `write_adapter`.
    """
    partial = folder.path / "adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    write_adapter(model, partial, initial)
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
    is_loftq = recipe.adapter.init_lora_weights == "loftq"
    return CARD.format(
        base=base,
        name=history.folder.id,
        r=recipe.adapter.r,
        alpha=recipe.adapter.lora_alpha,
        method=_method(recipe),
        classes="AutoModelForCausalLM, AutoTokenizer"
        + (", BitsAndBytesConfig" if is_loftq else ""),
        options=NF4_OPTIONS if is_loftq else "",
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


def _method(recipe: Recipe) -> str:
    """Return the methods as the literature writes them; what is saved is always an adapter."""
    names = [LABELS[name] for name in chosen(recipe)] or ["LoRA"]
    converted = recipe.adapter.init_lora_weights == "pissa"
    return ", ".join(names) + (" (saved as plain LoRA of rank 2·r)" if converted else "")


def _rounded(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
