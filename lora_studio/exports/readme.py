"""The README.md of an export: what it is, what was measured, how it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_studio.errors import from_dict
from lora_studio.exports.difference import TEXTS
from lora_studio.exports.snippets import of_merged, of_ollama
from lora_studio.library.names import Named
from lora_studio.models.sources import hub_name

HEAD = """\
# {name}

`{base}` with the LoRA adapter `{adapter}` in it, as {form}. Made with LoRA Studio.

| | |
|---|---|
| size | {size:,.1f} MB |
| merged model against base + adapter | {check} |
| the adapter's own change of the base | {change} |
{again}
Differences are those of the logits over the {tokens} positions of {texts} short texts (English,
Korean, JSON, Python), computed in float32 and given as a share of the logits' own size (root mean
square); in brackets, the divergence of the next token in nats and how often both find the same one
likeliest.
"""
FORMS = {
    "merged": "one model of safetensors in {dtype}",
    "gguf": "one GGUF file in {quantization}",
    "ollama": "one GGUF file in {quantization}, with a Modelfile",
}


def readme(adapter: Named, shipped: dict[str, Any]) -> str:
    """Return the README of an export.

    Args:
        adapter: What was exported.
        shipped: What was measured, as `shipping.Shipped.to_dict` gives it.
    """
    form, path = shipped["form"], Path(shipped["path"])
    text = HEAD.format(
        name=path.name,
        base=public_name(adapter.source),
        adapter=adapter.name,
        form=FORMS[form].format(**shipped),
        size=shipped["bytes"] / 1e6,
        check=_shown(shipped["check"]),
        change=_shown(shipped["change"]),
        again=_again(shipped),
        tokens=shipped["check"]["tokens"],
        texts=len(TEXTS),
    )
    notes = [f"- {from_dict(note).say('en')}" for note in shipped["notes"]]
    return "\n".join([text, *notes, *([""] if notes else []), *_use(form, path, shipped, adapter)])


def public_name(source: str) -> str:
    """Return a base's name as others may see it: a Hub id, or only the last part of a folder."""
    name = hub_name(source)
    return Path(name).name if Path(name).is_absolute() else name


def _use(form: str, path: Path, shipped: dict[str, Any], adapter: Named) -> list[str]:
    """Return how it is used, from within its folder."""
    if form == "ollama":
        commands = of_ollama(path.name, Path())
    elif form == "gguf":
        return ["## Use", "", "```sh", f"llama-cli -m {shipped['file']}", "```", ""]
    elif adapter.labels:
        return []
    else:
        commands = of_merged(Path())
    kinds = {"openai": "python"}
    blocks = [f"```{kinds.get(one.name, 'sh')}\n{one.text}```\n" for one in commands]
    return ["## Use", "", *blocks]


def _again(shipped: dict[str, Any]) -> str:
    again = shipped["again"]
    if again is None:
        return ""
    of = again["answer_tokens"]
    starts = ", ".join(str(count) for count in again["answers"])
    return (
        f"| this file, loaded again, against the merged model | {_shown(again)} |\n"
        f"| same first tokens of greedy answers, of {of} | {starts} |\n"
    )


def _shown(found: dict[str, Any]) -> str:
    return f"{found['relative']:.2g} ({found['divergence']:.2g}; {found['same_first']:.1%})"
