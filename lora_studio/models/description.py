"""What is known of a model without its weights: sizes, layers, licence. Plain values, no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Self

ModuleKind = Literal["Linear", "Conv1D"]
WholeRole = Literal["input", "output", "other"]
CLASS_HEAD = "score"
"""What transformers calls the layer of a decoder that scores classes."""
HEAD_STD = 0.02
"""Deviation of an untrained head's weights: `initializer_range` of nearly every model."""
FUSED_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
"""Families whose norms are weight·x/rms(x) and whose feed-forwards are down(silu(gate)·up), as
`training.fused` computes them (transformers 5.23)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleGroup:
    """The linear layers of one place in the model and one shape; an adapter may go on each."""

    name: str
    """Last part of the layers' path, as in `q_proj`."""
    path: str
    """Their path with `{}` for each number, as in `model.layers.{}.self_attn.q_proj`."""
    indices: tuple[str, ...] = ()
    """The numbers that stand for each `{}`, as in `0-3,5`; every combination is a layer."""
    count: int
    """How many such layers the model has."""
    d_in: int
    """Input width of each."""
    d_out: int
    """Output width of each."""
    kind: ModuleKind = "Linear"
    """`Conv1D` is GPT-2's linear layer, whose weight is stored transposed (d_in, d_out)."""
    bias: int = 0
    """Bias parameters of the whole group."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The whole path of each layer, in model order."""
        return _paths(self.path, self.indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeModule:
    """An embedding or the output head: trained whole, as one of `modules_to_save`, or not."""

    name: str
    """Last part of its path, as in `embed_tokens`."""
    path: str
    """Its whole path."""
    role: WholeRole
    """`input` reads tokens, `output` is the head, `other` is what else is looked up: positions."""
    rows: int
    """Rows of its weight: the vocabulary, or positions."""
    columns: int
    """Width of each row."""
    bias: int = 0
    """Its bias parameters."""

    @property
    def parameters(self) -> int:
        """Weight and bias."""
        return self.rows * self.columns + self.bias


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A base model as inspection found it."""

    source: str
    """What the person chose: `starter`, a Hub id or a folder."""
    architecture: str
    """Class name, as in `LlamaForCausalLM`."""
    parameters: int
    """All parameters; tied embeddings count once."""
    layers: int
    """Transformer blocks."""
    context_length: int | None
    """Longest input in tokens, or None where the model sets no limit."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width inside a block's feed-forward part; of one expert's where there are several."""
    num_attention_heads: int
    """Query heads of a block."""
    num_key_value_heads: int
    """Key and value heads of a block; fewer than query heads where those share them."""
    head_dim: int
    """Width of one head."""
    vocab_size: int
    """Rows of the embedding."""
    tied_embeddings: bool
    """Whether the output head is the embedding."""
    chat_template: bool
    """Whether the tokenizer knows how to write a conversation."""
    modules: tuple[ModuleGroup, ...]
    """Every group of linear layers in model order, the output head left out."""
    whole_modules: tuple[WholeModule, ...] = ()
    """Embeddings and the output head."""
    expert_parameters: int = 0
    """Parameters of experts that are kept as one block, on which no adapter goes."""
    biases: int
    """Parameters named `bias` anywhere in the model, normalisation layers included."""
    bias_tensors: int
    """How many tensors those are."""
    size_bytes: int
    """The weights on disk; where they are not here yet, parameters times the stored width."""
    licence: str | None = None
    """As the model card states it, or None."""
    can_classify: bool = False
    """Whether transformers has the same layers with a head over classes, and nothing else new."""

    def as_classifier(self, labels: int) -> Self:
        """Describe the model with a head over so many classes in place of the one over words.

        It is a linear layer without bias, labels × hidden_size (transformers 5.23,
        `GenericForSequenceClassification`); an embedding that was also the head is one no more.
        """
        heads = [module for module in self.whole_modules if module.role == "output"]
        score = WholeModule(
            name=CLASS_HEAD, path=CLASS_HEAD, role="output", rows=labels, columns=self.hidden_size
        )
        biases = sum(head.bias for head in heads)
        lost = biases if self.tied_embeddings else sum(head.parameters for head in heads)
        return replace(
            self,
            parameters=self.parameters - lost + score.parameters,
            tied_embeddings=False,
            whole_modules=(*(one for one in self.whole_modules if one not in heads), score),
            biases=self.biases - biases,
            bias_tensors=self.bias_tensors - sum(head.bias > 0 for head in heads),
        )

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names that may be target modules, each once, in model order.

        The last part of the path says enough, except where layers of several places share it:
        GPT-2's are `attn.c_proj` and `mlp.c_proj`.
        """
        return _target_names(tuple(group.path for group in self.modules))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file; `from_dict` gives back an equal description."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """Build the description that `to_dict` wrote.

        Raises:
            KeyError, TypeError: If it is not one, or of another version of this program.
        """
        groups = (
            ModuleGroup(**{**group, "indices": tuple(group["indices"])})
            for group in tree["modules"]
        )
        whole = (WholeModule(**module) for module in tree["whole_modules"])
        made = {"modules": tuple(groups), "whole_modules": tuple(whole)}
        return cls(**{**tree, **made, "can_classify": tree["can_classify"]})


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers shortly: 0, 1, 2, 5 are `0-2,5`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def numbers_in(written: str) -> Iterator[int]:
    """Yield the numbers that `ranges` wrote.

    Raises:
        ValueError: If it is not numbers and ranges with commas.
    """
    for part in written.split(","):
        low, _, high = part.partition("-")
        yield from range(int(low), int(high or low) + 1)


@lru_cache(maxsize=4096)
def _paths(template: str, indices: tuple[str, ...]) -> tuple[str, ...]:
    sets = [tuple(numbers_in(written)) for written in indices]
    return tuple(template.format(*numbers) for numbers in itertools.product(*sets))


@lru_cache(maxsize=64)
def _target_names(templates: tuple[str, ...]) -> tuple[str, ...]:
    """Return the shortest endings of path templates that tell them apart."""
    return tuple(dict.fromkeys(_ending(path, templates) for path in templates))


def _ending(path: str, templates: tuple[str, ...]) -> str:
    """Return as much of a path's end as no path of another place has; numbers are not in it."""
    parts = path.split(".")
    for size in range(1, len(parts)):
        ending = ".".join(parts[-size:])
        if "{}" in ending:
            break
        if all(other == path or not f".{other}".endswith(f".{ending}") for other in templates):
            return ending
    return parts[-1]
