"""The model card that goes to the Hub: what a run's own card says, and what others must know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from lora_studio.exports.facts import Facts
from lora_studio.exports.readme import public_name
from lora_studio.measuring.measurements import Measured
from lora_studio.measuring.remarks import on_rows
from lora_studio.models.sources import HUB_ID, hub_name
from lora_studio.training.card import model_card
from lora_studio.wording import say

CURVES = "curves.png"
FROM_ELSEWHERE = """\
---
base_model: {base}
library_name: peft
tags:
- lora
---

# {name}

A LoRA adapter for `{base}`, published with LoRA Studio. {known}
"""
NOT_TRAINED = "It was not trained there, so nothing is known of its data and training{more}."
MADE_HERE = (
    "It was made smaller there; what it was made of is gone, so nothing is known of its data and "
    "training{more}."
)
CHECKPOINT = """
## Checkpoint

The weights are those after step {step}; the losses are those of the whole run.
"""
SMALLER = """
## Made smaller

By truncated singular value decomposition of each module's change (the loss is that of its
Frobenius norm, over all modules):

{steps}
{trained}"""
TRAINED_BEFORE = """
Settings, losses, curves and data here are those of the training before that; what is measured on
held-out rows, where it is said, is of this adapter.
"""
UNFILLED = "# Model Card for Model ID"
LICENCE = ("license", "license_name", "license_link")
"""Where a card's head says under which licence a model is."""
MERGED = """
## Merged

This repository is the whole model: the adapter is in the base's weights ({dtype}), and
`AutoModelForCausalLM.from_pretrained` or `vllm serve` take it as it is. {differs}
"""
DIFFERS = (
    "Its logits differ from\nthose of base and adapter by {relative:.2g} of their size (root mean "
    "square over {tokens} positions\nof a few texts), which is what rounding takes."
)
UNMEASURED = "How far its logits\nare from those of base and adapter is measured when it is merged."
DATA = """
## Data

{trained_rows} rows were trained on and {eval_rows} held out; {skipped} of {rows} were left out.
{trained_tokens} of {tokens} tokens count in the loss. Format: {format}.
Fingerprint of the data and how it was read (SHA-256): `{fingerprint}`.
The data is not part of this repository.
"""
COUNTED = {
    "fingerprint",
    "format",
    "rows",
    "trained_rows",
    "eval_rows",
    "skipped",
    "tokens",
    "trained_tokens",
}
"""What of a `data.report.Report` the card says."""
LIMITS = """
## Limits

- It knows what the base knows, and has its faults; fine-tuning makes neither safer.
- Measured on rows like those it was trained on. How it does elsewhere is not known{forgetting}.
- Made to answer in the format it was trained in; other prompts may do worse than with the base.
"""


def hub_card(facts: Facts) -> str:
    """Return the README.md of a repository on the Hub."""
    card = ModelCard(_beginning(facts))
    came = _parsed(facts.came_with)
    _head(card, facts, came)
    parts = [
        card.text.rstrip() + "\n",
        _checkpoint(facts),
        _smaller(facts),
        f"\n## Curves\n\n![Loss]({CURVES})\n" if facts.has_curves else "",
        _merged(facts.merged),
        _data(facts.report),
        _measured(facts.measured),
        LIMITS.format(forgetting=_forgetting(facts.measured)),
        _came_with(came, facts.adapter.source),
    ]
    card.text = "".join(parts)
    return str(card)


def _parsed(text: str | None) -> ModelCard | None:
    """Return a card from elsewhere; one whose head is broken has its text alone."""
    if text is None:
        return None
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, YAMLError):
        return ModelCard(f"---\n{{}}\n---\n{text}")


def _beginning(facts: Facts) -> str:
    """Return the head of the card and what the run's own says, or that there was none."""
    base, name, history = public_name(facts.adapter.source), facts.adapter.name, facts.history
    if history is not None and history.plan:
        recipe = history.folder.read_recipe()
        best = None if facts.step else history.saved.get("best_step")
        return model_card(recipe, history, base=base, best_step=best, name=name)
    known = MADE_HERE if facts.smaller else NOT_TRAINED
    more = " beyond the card below" if facts.came_with else ""
    return FROM_ELSEWHERE.format(base=base, name=name, known=known.format(more=more))


def _head(card: ModelCard, facts: Facts, came: ModelCard | None) -> None:
    """Say what the Hub finds a model by; a base that nobody else has is not named there."""
    data: Any = card.data
    is_public = HUB_ID.fullmatch(hub_name(facts.adapter.source)) is not None
    if facts.licence:
        data.license = facts.licence
    said = {} if came is None else came.data.to_dict()
    if said.get("license"):  # its author's word stands above the base's
        for name in LICENCE:
            data[name] = said.get(name)
    data.tags = [*(data.tags or []), "lora-studio"]
    if not is_public:
        data.base_model = None
        data.tags = [tag for tag in data.tags if not tag.startswith("base_model:")]
    if facts.merged is not None:
        data.library_name = "transformers"


def _checkpoint(facts: Facts) -> str:
    return CHECKPOINT.format(step=facts.step) if facts.step and facts.history else ""


def _smaller(facts: Facts) -> str:
    """Return how the adapter was made smaller, step by step from the first."""
    if not facts.smaller:
        return ""
    lines = []
    for one in reversed(facts.smaller):
        ranks = f"rank {one.rank}" if one.before is None else f"rank {one.before} to {one.rank}"
        lost = "" if one.lost is None else f", which lost {one.lost:.1%} of the change"
        lines.append(f"- From `{one.of}`, {ranks}{lost}.")
    trained = TRAINED_BEFORE if facts.history else ""
    return SMALLER.format(steps="\n".join(lines), trained=trained)


def _came_with(came: ModelCard | None, source: str) -> str:
    """Return what an author wrote, unless it is the form that PEFT leaves to be filled in."""
    if came is None or UNFILLED in came.text or not came.text.strip():
        return ""
    text = (
        came.text.replace(source, public_name(source)) if Path(source).is_absolute() else came.text
    )
    return f"\n## The card it came with\n\n{text.strip()}\n"


def _merged(merged: Mapping[str, Any] | None) -> str:
    if merged is None:
        return ""
    if not merged:
        return MERGED.format(dtype="the base's own number format", differs=UNMEASURED)
    check = merged["check"]
    differs = DIFFERS.format(relative=check["relative"], tokens=check["tokens"])
    return MERGED.format(dtype=merged["dtype"], differs=differs)


def _data(report: Mapping[str, Any] | None) -> str:
    """Return what is known of the data; the report of an earlier version's run may lack it."""
    if report is None or not report.keys() >= COUNTED:
        return ""
    skipped = sum(report["skipped"].values())
    return DATA.format(skipped=skipped, **{name: report[name] for name in COUNTED - {"skipped"}})


def _measured(found: Measured | None) -> str:
    """Return the table of what was measured; questions and answers are the person's own."""
    if found is None:
        return ""
    rows = []
    if found.loss is not None:
        before, after = found.loss.perplexity
        rows.append(("loss on the answers", found.loss.mean.base, found.loss.mean.adapter))
        rows.append(("perplexity on the answers", before, after))
    if found.answers is not None:
        rows += [(name, one.base, one.adapter) for name, one in found.answers.scores.items()]
    if found.classes is not None:
        rows.append(("accuracy", found.classes.accuracy.base, found.classes.accuracy.adapter))
        rows.append(("F1 (macro)", found.classes.f1.base, found.classes.f1.adapter))
    for one in found.forgetting:
        rows.append((f"loss on a general text ({one.language})", one.base, one.adapter))
        rows.append((f"perplexity on a general text ({one.language})", *one.perplexity))
    if not rows:
        return ""
    lines = [f"| {name} | {base:.4f} | {adapter:.4f} |" for name, base, adapter in rows]
    said = [say(key, **values) for key, values in on_rows(found)]
    said += [f"Computed on {found.device} in {found.precision}.", *map(say, found.notes)]
    head = f"\n## Measured\n\n{' '.join(said)}\n"
    return "\n".join([head, "| | base | with adapter |", "|---|---|---|", *lines, ""])


def _forgetting(found: Measured | None) -> str:
    if found is None or not found.forgetting:
        return ", and what it has forgotten of the base was not measured"
    rises = ", ".join(f"{one.rise:+.1%} ({one.language})" for one in found.forgetting)
    return f"; its loss on general text against the base's: {rises}"
