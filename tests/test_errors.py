"""An error is a key and values: its sentence in either language, through a pipe and a file."""

from __future__ import annotations

import json
import pickle

import pytest

from lora_studio.errors import KINDS, RecipeError, RunError, StudioError, from_dict


def samples() -> list[StudioError]:
    plain = [kind("run.unknown", run="a-1") for kind in KINDS.values() if kind is not RecipeError]
    inner = [StudioError("recipe.no_model"), RunError("run.unknown", run="b")]
    return [*plain, RecipeError.of(inner), RecipeError.of([RecipeError.of(inner)])]


@pytest.mark.parametrize("error", samples(), ids=lambda error: type(error).__name__)
def test_an_error_comes_back_the_same_from_a_file_and_from_a_pipe(error: StudioError) -> None:
    read = from_dict(json.loads(json.dumps(error.to_dict())))
    for copy in (read, pickle.loads(pickle.dumps(error))):
        assert type(copy) is type(error)
        assert copy.to_dict() == error.to_dict()
        assert str(copy) == str(error)
        assert copy.say("ko") == error.say("ko")


def test_the_text_of_an_error_is_its_english_sentence() -> None:
    error = RunError("run.unknown", run="a-1")
    assert str(error) == error.say("en") == error.say("fr")
    assert "a-1" in str(error)
    assert "없어요" in error.say("ko")


def test_a_recipe_error_says_each_of_its_problems_on_a_line() -> None:
    error = RecipeError.of([StudioError("recipe.no_model"), RunError("run.unknown", run="b")])
    for language in ("en", "ko"):
        lines = error.say(language).splitlines()
        assert lines[1:] == [problem.say(language) for problem in error.problems]
        assert len(lines) == 3
    assert str(error) == error.say("en")


def test_an_error_without_a_sentence_cannot_be_made() -> None:
    with pytest.raises(KeyError):
        StudioError("run.no_such_key")
    with pytest.raises(KeyError):
        StudioError("run.unknown")
