"""The model card of an adapter: its settings, what was measured, and how to load it."""

from __future__ import annotations

from typing import Any

from lora_studio.methods import LABELS, chosen
from lora_studio.recipe import Recipe
from lora_studio.runs.history import History

CARD = """\
---
base_model: {base}
library_name: peft
pipeline_tag: {pipeline}
tags:
- lora
- base_model:adapter:{base}
---

# {name}

A LoRA adapter for `{base}`, trained with LoRA Studio{purpose}.

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
{measured}
```python
{loading}
```

`recipe.yaml` beside this file reproduces the training.
"""
SORTED = """\
| held-out accuracy, first and last | {first_accuracy}, {last_accuracy} |
| held-out F1 (macro), first and last | {first_f1}, {last_f1} |
| classes | {classes} |
"""
WRITING = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer{more}

base = AutoModelForCausalLM.from_pretrained("{base}"{options})
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = PeftModel.from_pretrained(base, "path/to/this/folder")"""
SORTING = """\
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer{more}

config = AutoConfig.from_pretrained("path/to/this/folder")  # the classes
base = AutoModelForSequenceClassification.from_pretrained("{base}", config=config{options})
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()

scores = model(**tokenizer("A text.", return_tensors="pt")).logits
print(config.id2label[int(scores.argmax())])"""
# LoftQ's adapter mends what rounding to NF4 takes, so it wants the base in NF4.
NF4_OPTIONS = """,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
"""


def model_card(
    recipe: Recipe,
    history: History,
    *,
    base: str,
    best_step: int | None = None,
    name: str | None = None,
) -> str:
    """Return the adapter's README.md: the settings and what was measured.

    Args:
        recipe: The settings.
        history: What was measured.
        base: The base model's name.
        best_step: Whose weights these are, where they are not the last step's.
        name: What the adapter is called, if not after its run.
    """
    plan, summary = history.plan, history.summary()
    evals = summary["eval_losses"] or [None]
    sorts = recipe.task_type == "SEQ_CLS"
    is_loftq = recipe.adapter.init_lora_weights == "loftq"
    loading = (SORTING if sorts else WRITING).format(
        base=base,
        more=", BitsAndBytesConfig" if is_loftq else "",
        options=NF4_OPTIONS if is_loftq else "",
    )
    return CARD.format(
        base=base,
        pipeline="text-classification" if sorts else "text-generation",
        name=name or history.folder.id,
        purpose=f" to sort texts into {len(plan['labels'])} classes" if sorts else "",
        r=recipe.adapter.r,
        alpha=recipe.adapter.lora_alpha,
        method=_method(recipe),
        targets=", ".join(plan["target_modules"]),
        precision=plan["precision"],
        steps=_steps(history, best_step),
        rate=recipe.training.learning_rate,
        train_rows=plan["train_rows"],
        eval_rows=plan["held_out_rows"],
        first_loss=_rounded(summary["first_train_loss"]),
        last_loss=_rounded(summary["last_train_loss"]),
        first_eval=_rounded(evals[0]),
        last_eval=_rounded(evals[-1]),
        measured=_measured(plan, summary) if sorts else "",
        loading=loading,
    )


def _steps(history: History, best_step: int | None) -> str:
    """Return how many steps were taken, how many of them the weights have, and why not more."""
    taken = f"{best_step} of {history.step}" if best_step else str(history.step)
    best = ", where the held-out loss was lowest" if best_step else ""
    early = f"; stopped early of {history.total_steps}" if history.early else ""
    return taken + best + early


def _measured(plan: dict[str, Any], summary: dict[str, Any]) -> str:
    """Return the card's lines of a text classification."""
    accuracies, f1s = (summary[name] or [None] for name in ("eval_accuracies", "eval_f1s"))
    return SORTED.format(
        first_accuracy=_rounded(accuracies[0]),
        last_accuracy=_rounded(accuracies[-1]),
        first_f1=_rounded(f1s[0]),
        last_f1=_rounded(f1s[-1]),
        classes=", ".join(" ".join(name.split()).replace("|", "\\|") for name in plan["labels"]),
    )


def _method(recipe: Recipe) -> str:
    """Return the methods as the literature writes them; what is saved is always an adapter."""
    names = [LABELS[name] for name in chosen(recipe)] or ["LoRA"]
    converted = recipe.adapter.init_lora_weights == "pissa"
    return ", ".join(names) + (" (saved as plain LoRA of rank 2·r)" if converted else "")


def _rounded(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
