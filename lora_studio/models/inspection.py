"""Looks at a model without its weights: builds it on torch's meta device and reads its layers."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from transformers.pytorch_utils import Conv1D

from lora_studio.models.description import (
    CLASS_HEAD,
    ModelInfo,
    ModuleGroup,
    ModuleKind,
    WholeModule,
    WholeRole,
    ranges,
)
from lora_studio.models.loading import LOCAL, reading

_Kind = tuple[str, int, int, ModuleKind, int]
"""Path template, d_in, d_out, kind of layer, bias parameters of one."""


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
    biases = [p.numel() for name, p in named if name.rpartition(".")[2] == "bias"]
    return ModelInfo(
        source=source,
        architecture=type(model).__name__,
        parameters=parameters,
        layers=text.num_hidden_layers,
        context_length=getattr(text, "max_position_embeddings", None),
        hidden_size=text.hidden_size,
        intermediate_size=_inner_width(text),
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=_of(text, "num_key_value_heads") or text.num_attention_heads,
        head_dim=_of(text, "head_dim") or text.hidden_size // text.num_attention_heads,
        vocab_size=text.vocab_size,
        tied_embeddings=bool(text.tie_word_embeddings),
        chat_template=_has_chat_template(folder),
        modules=module_groups(model),
        whole_modules=whole_modules(model),
        expert_parameters=sum(parameter.numel() for parameter in _expert_blocks(model)),
        biases=sum(biases),
        bias_tensors=len(biases),
        size_bytes=_stored_bytes(folder) or parameters * _stored_width(config),
        licence=licence(folder),
        can_classify=_can_classify(config, model),
    )


def module_groups(model: PreTrainedModel) -> tuple[ModuleGroup, ...]:
    """Gather a model's linear layers by place, shape and kind, in model order.

    The output head is left out, as PEFT's `all-linear` does: an adapter there is rarely meant,
    and with tied embeddings it would part them.
    """
    head = model.get_output_embeddings()
    found: dict[_Kind, list[tuple[int, ...]]] = defaultdict(list)
    for path, module in model.named_modules():
        if module is head or not isinstance(module, nn.Linear | Conv1D):
            continue
        kind: ModuleKind = "Linear" if isinstance(module, nn.Linear) else "Conv1D"
        # Linear keeps its weight as (d_out, d_in), Conv1D as (d_in, d_out).
        d_in, d_out = reversed(module.weight.shape) if kind == "Linear" else module.weight.shape
        bias = 0 if module.bias is None else module.bias.numel()
        template, numbers = _template(path)
        found[template, d_in, d_out, kind, bias].append(numbers)
    lost = _claimed_by_experts(model, {path.rpartition(".")[2] for path, *_ in found})
    return tuple(
        ModuleGroup(
            name=name, path=path, indices=tuple(map(ranges, sets)), count=math.prod(map(len, sets)),
            d_in=d_in, d_out=d_out, kind=kind, bias=bias * math.prod(map(len, sets)),
        )
        for (path, d_in, d_out, kind, bias), numbers in found.items()
        if (name := path.rpartition(".")[2]) not in lost
        for sets in _products(numbers)
    )  # fmt: skip


def whole_modules(model: PreTrainedModel) -> tuple[WholeModule, ...]:
    """Return the embeddings and the output head, in model order."""
    roles: dict[Any, WholeRole] = {
        model.get_input_embeddings(): "input",
        model.get_output_embeddings(): "output",
    }
    return tuple(
        WholeModule(
            name=path.rpartition(".")[2],
            path=path,
            role=roles.get(module, "other"),
            rows=module.weight.shape[0],
            columns=module.weight.shape[1],
            bias=0 if getattr(module, "bias", None) is None else module.bias.numel(),
        )
        for path, module in model.named_modules()
        if module in roles or isinstance(module, nn.Embedding)
    )


def _can_classify(config: Any, model: PreTrainedModel) -> bool:
    """Say whether a head over classes goes on exactly the layers of the language model."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return False
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    head = getattr(classifier, CLASS_HEAD, None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    if head.in_features != config.get_text_config().hidden_size:
        return False
    words = model.get_output_embeddings()
    own = {f"{path}." for path, module in model.named_modules() if module is words}
    rest = {name for name, _ in model.named_parameters() if not name.startswith(tuple(own))}
    return rest == {name for name, _ in classifier.named_parameters()} - {f"{CLASS_HEAD}.weight"}


def _template(path: str) -> tuple[str, tuple[int, ...]]:
    """Part a path into what is the same in every block and the numbers."""
    parts = path.split(".")
    numbers = tuple(int(part) for part in parts if part.isdecimal())
    return ".".join("{}" if part.isdecimal() else part for part in parts), numbers


def _products(found: Iterable[tuple[int, ...]]) -> Iterator[list[list[int]]]:
    """Yield sets of numbers, one per place, whose combinations are exactly those found.

    One product is enough where each block is like the others; blocks that differ make several.
    """
    tails: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for numbers in found:
        if not numbers:
            yield []
            continue
        tails[numbers[0]].append(numbers[1:])
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = defaultdict(list)
    for first, rest in tails.items():
        alike[tuple(rest)].append(first)
    for tail, firsts in alike.items():
        for sets in _products(tail):
            yield [firsts, *sets]


def _expert_blocks(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights that hold all experts of a block at once, (experts, …, …)."""
    for module in model.modules():
        if not isinstance(module, _ConvNd):
            yield from (p for p in module.parameters(recurse=False) if p.ndim == 3)


def _claimed_by_experts(model: PreTrainedModel, names: set[str]) -> set[str]:
    """Return the names that PEFT takes for experts, whichever layers have them.

    Where transformers 5 keeps experts as one block, PEFT reads `gate_proj` and its like as that
    block's old name and lets dense layers of that name go (peft/utils/
    transformers_weight_conversion.py). An adapter on such a block allows neither dropout nor two
    adapters in a batch, so neither is offered.
    """
    if not any(True for _ in _expert_blocks(model)):
        return set()
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=sorted(names))
    convert_peft_config_for_transformers(config, model, None)
    return names - set(config.target_modules or ())


def _of(config: Any, name: str) -> int:
    """Return a number that not every configuration has, 0 where it is missing."""
    return int(getattr(config, name, None) or 0)


def _inner_width(config: Any) -> int:
    """Return the feed-forward width; GPT-2 leaves it out where it is four times the hidden size."""
    names = ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim")
    return next(filter(None, (_of(config, name) for name in names)), 4 * config.hidden_size)


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


def licence(folder: Path) -> str | None:
    """Return `license:` of the front matter of a model folder's card."""
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = front and re.search(r"^license:\s*['\"]?([\w.+-]+)", front[1], re.MULTILINE)
    return found[1] if found else None
