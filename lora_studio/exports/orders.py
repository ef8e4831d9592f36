"""What is exported, and what became of it: plain values, for the page and the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_studio.library.names import Named

Form = Literal["zip", "merged", "gguf", "ollama"]
FORMS: tuple[Form, ...] = ("zip", "merged", "gguf", "ollama")
DTYPES = ("bf16", "fp16")
"""What a merged model may be asked for in."""
QUANTIZATIONS: dict[str, float] = {"f16": 2.0, "q8_0": 34 / 32}
"""What weights of a GGUF file are written in, and the bytes of each: q8_0 has for 32 numbers of 8
bit a scale of 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is exported, as what, and where to."""

    adapter: Named
    form: Form
    target: Path
    replaces: bool = False
    """Whether an earlier export goes when this one is whole."""
    dtype: str | None = None
    """Of a merged model: `bf16`, `fp16` or `fp32`; None is the base's own."""
    quantization: str = "f16"
    """Of a GGUF file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """What was exported, and what was measured of it."""

    form: Form
    path: str
    bytes: int
    dtype: str | None = None
    """Of a merged model."""
    quantization: str | None = None
    """Of a GGUF file."""
    file: str | None = None
    """Name of the GGUF file."""
    check: dict[str, Any] | None = None
    """How far the merged model is from base and adapter: an `exports.difference.Difference`."""
    change: dict[str, Any] | None = None
    """How far the bare base is from base and adapter."""
    again: dict[str, Any] | None = None
    """How far the GGUF file is from the merged model; None where that was not read again."""
    notes: list[dict[str, Any]] = field(default_factory=list)
    """What is to be said, as `StudioError.to_dict` gives it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What is brought to the Hub."""

    adapter: Named
    repository: str
    """`owner/name`."""
    merged: bool = False
    """Whether the merged model goes instead of the adapter."""
    private: bool = True
    """Whether a new repository is seen by its owner only."""
    updates: bool = False
    """Whether a repository that is there already gets a new commit."""
    is_dry: bool = False
    """Whether it is only said what would leave, and where to."""
    visitor: str | None = None
    """On a Space, whose it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What was brought to the Hub, or would be."""

    repository: str
    files: list[dict[str, Any]]
    """`name` and `bytes` of each; `is_foreseen` where it is made only for a real push."""
    card: str
    """The README.md."""
    private: bool
    """Whether its owner alone sees it; of one that was there before, as it is."""
    exists: bool | None
    """Whether the repository was there before, None where the Hub did not say."""
    deleted: list[str] = field(default_factory=list)
    """Names of files of an earlier push that go from there."""
    address: str | None = None
    """Where it is now; None after a dry run."""
    notes: list[dict[str, Any]] = field(default_factory=list)
    """What is to be said, as `StudioError.to_dict` gives it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)
