"""Who answers in a pane, as votes and tables name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from lora_studio.chat.request import Message, Pane

BASE = "(base)"
"""Key of the base model; no adapter's name has brackets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """The base, an adapter, an adapter at another strength, or a mixture of adapters."""

    adapter: str | None = None
    """Name of an adapter; None for the base, and where several are mixed."""
    strength: float = 1.0
    """What its change of the base is multiplied by, 0 to 2."""
    mixture: tuple[tuple[str, float], ...] = ()
    """Names and weights of adapters that are added up."""

    @classmethod
    def of(
        cls,
        adapter: str | None = None,
        strength: float = 1.0,
        mixture: Mapping[str, float] | None = None,
    ) -> Self:
        """Name who answers in a pane, by the pane's own settings."""
        mixed = tuple(sorted((mixture or {}).items()))
        is_base = adapter is None and not mixed
        return cls(
            adapter=None if mixed else adapter,
            strength=1.0 if is_base else float(strength),
            mixture=mixed,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters that answer; none for the base."""
        if self.mixture:
            return tuple(name for name, _ in self.mixture)
        return () if self.adapter is None else (self.adapter,)

    @property
    def key(self) -> str:
        """The same text for the same contender: `(base)`, `cafe-1`, `cafe-1×0.5`, `a×0.7+b×0.3`."""
        if self.mixture:
            mixed = "+".join(f"{name}×{weight:g}" for name, weight in self.mixture)
            return mixed if self.strength == 1 else f"({mixed})×{self.strength:g}"
        if self.adapter is None:
            return BASE
        return self.adapter if self.strength == 1 else f"{self.adapter}×{self.strength:g}"

    def pane(self, messages: Sequence[Message] = (), text: str | None = None) -> Pane:
        """Return the pane in which this contender answers."""
        return Pane(
            adapter=self.adapter,
            strength=self.strength,
            mixture=dict(self.mixture),
            messages=messages,
            text=text,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "adapter": self.adapter,
            "strength": self.strength,
            "mixture": dict(self.mixture),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Build what `to_dict` described."""
        return cls.of(fields["adapter"], fields["strength"], fields["mixture"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What stood behind the names when they answered: a name may come to mean other weights."""

    precision: str = ""
    """What the base was held in; empty where that is not known."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each adapter's file of weights, by its name."""

    def of(self, contender: Contender) -> dict[str, str]:
        """Return the weights of a contender's adapters."""
        return {name: self.weights[name] for name in contender.names if name in self.weights}

    def changed(self, now: Loaded) -> str:
        """Return the names that mean other weights now, and the base's precisions if those differ.

        Nothing where all is as it was, or where it is not known how it was.
        """
        if self == Loaded():
            return ""
        changes = [
            name for name, weights in self.weights.items() if weights != now.weights.get(name)
        ]
        if self.precision != now.precision:
            changes.append(f"{self.precision} → {now.precision}")
        return ", ".join(changes)
