"""What is known of a model without its weights: sizes, layers, licence. Plain values, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

ModuleKind = Literal["Linear", "Conv1D"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleGroup:
    """The linear layers of one last name and one shape; an adapter may go on each."""

    name: str
    """Last part of the layers' path, as in `q_proj`; target modules are chosen by it."""
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
    vocab_size: int
    """Rows of the embedding."""
    chat_template: bool
    """Whether the tokenizer knows how to write a conversation."""
    modules: tuple[ModuleGroup, ...]
    """Every group of linear layers in model order, the output head left out."""
    biases: int
    """Parameters named `bias` anywhere in the model, normalisation layers included."""
    size_bytes: int
    """The weights on disk; where they are not here yet, parameters times the stored width."""
    licence: str | None = None
    """As the model card states it, or None."""

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names that may be target modules, each once, in model order."""
        return tuple(dict.fromkeys(group.name for group in self.modules))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file; `from_dict` gives back an equal description."""
        return asdict(self) | {"modules": [asdict(group) for group in self.modules]}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """Build the description that `to_dict` wrote.

        Raises:
            KeyError, TypeError: If it is not one, or of another version of this program.
        """
        return cls(**{**tree, "modules": tuple(ModuleGroup(**group) for group in tree["modules"])})
