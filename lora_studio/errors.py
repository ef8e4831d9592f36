"""What can go wrong, as a tree of exceptions that carry a key and values instead of a text.

The sentence comes from the string table, so that one error can be shown in either language;
`str(error)` is the English one. An error survives a pipe and an events file through
`to_dict` and `from_dict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_studio.wording import say


class StudioError(Exception):
    """Something a person can mend: what happened, the value, and what to do next.

    Args:
        key: The sentence's key in the string table, as in `data.empty_file`.
        values: What fills the sentence's braces; plain strings, numbers and lists of them.
    """

    def __init__(self, key: str, **values: Any) -> None:
        self.key = key
        self.values = values
        super().__init__(say(key, **values))

    def say(self, language: str) -> str:
        """Return the sentence in `language`."""
        return say(self.key, language, **self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` needs to build the same error again."""
        return {"kind": type(self).__name__, "key": self.key, "values": self.values}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by key and values, for the pipes between processes."""
        return from_dict, (self.to_dict(),)


class DatasetError(StudioError):
    """The data cannot be read, understood or used."""


class ModelError(StudioError):
    """The base model cannot be found, fetched, read or loaded."""


class RunError(StudioError):
    """A run cannot be started, stopped, found or finished."""


class AdapterError(StudioError):
    """An adapter folder cannot be used."""


class RecipeError(StudioError):
    """The recipe is not usable; `problems` names everything wrong with it at once."""

    def __init__(self, key: str = "recipe.problems", **values: Any) -> None:
        self.problems: list[StudioError] = [
            from_dict(item) if isinstance(item, dict) else item
            for item in values.pop("problems", ())
        ]
        super().__init__(key, **values)
        self.args = (self.say("en"),)

    @classmethod
    def of(cls, problems: Sequence[StudioError]) -> RecipeError:
        """Gather problems under one error."""
        return cls(problems=problems)

    def say(self, language: str) -> str:
        """Return the sentence, then one line per problem."""
        lines = [super().say(language), *(problem.say(language) for problem in self.problems)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` needs, problems included."""
        values = self.values | {"problems": [problem.to_dict() for problem in self.problems]}
        return {"kind": type(self).__name__, "key": self.key, "values": values}


KINDS = {
    kind.__name__: kind
    for kind in (StudioError, RecipeError, DatasetError, ModelError, RunError, AdapterError)
}


def from_dict(fields: dict[str, Any]) -> StudioError:
    """Build the error that `StudioError.to_dict` described."""
    return KINDS[fields["kind"]](fields["key"], **fields["values"])
