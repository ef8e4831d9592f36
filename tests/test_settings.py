"""The surroundings of a studio: read from the environment and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.errors import StudioError
from lora_studio.settings import Settings


def test_an_empty_environment_is_a_private_studio_in_the_home_folder() -> None:
    settings = Settings.from_environment({})
    assert settings.home == Path.home() / "lora-studio"
    assert (settings.host, settings.port) == ("127.0.0.1", 7860)
    assert settings.auth is None
    assert not settings.offline
    assert settings.hub_token is None
    assert settings.max_training_s is None
    assert not settings.stop_runs_on_exit


def test_the_environment_sets_each_of_them() -> None:
    settings = Settings.from_environment(
        {
            "LORA_STUDIO_HOME": "~/elsewhere",
            "LORA_STUDIO_AUTH": "me:a:b",
            "LORA_STUDIO_MAX_UPLOAD_MB": "7",
            "LORA_STUDIO_STOP_RUNS_ON_EXIT": "yes",
            "GRADIO_SERVER_PORT": "8000",
            "HF_HUB_OFFLINE": "1",
            "HF_TOKEN": "hf_x",
        }
    )
    assert settings.home == Path.home() / "elsewhere"
    assert settings.auth == ("me", "a:b")
    assert (settings.max_upload_mb, settings.port) == (7, 8000)
    assert settings.offline
    assert settings.stop_runs_on_exit
    assert settings.hub_token == "hf_x"


def test_the_command_line_wins_where_it_says_something() -> None:
    environment = {"GRADIO_SERVER_PORT": "8000"}
    assert Settings.from_environment(environment, port=9000, host=None).port == 9000
    assert Settings.from_environment(environment, port=None).port == 8000


@pytest.mark.parametrize("name", ["GRADIO_SERVER_PORT", "LORA_STUDIO_MAX_UPLOAD_MB"])
def test_a_variable_that_is_no_number_is_named_with_its_value(name: str) -> None:
    with pytest.raises(StudioError, match=f"{name} is “lots”"):
        Settings.from_environment({name: "lots"})


@pytest.mark.parametrize("value", ["", "0", "false", "no", "off"])
def test_a_switch_is_off_unless_it_says_on(value: str) -> None:
    assert not Settings.from_environment({"HF_HUB_OFFLINE": value}).offline


def test_a_password_without_a_user_is_still_a_lock_and_an_empty_one_is_none() -> None:
    assert Settings.from_environment({"LORA_STUDIO_AUTH": ":secret"}).auth == ("", "secret")
    assert Settings.from_environment({"LORA_STUDIO_AUTH": "me:"}).auth is None
    assert Settings.from_environment({"LORA_STUDIO_AUTH": "me"}).auth is None


def test_a_space_is_reached_from_outside_and_limits_what_it_gives() -> None:
    settings = Settings.from_environment({"SPACE_ID": "me/studio"})
    assert settings.host == "0.0.0.0"
    assert settings.max_training_s == 240
    assert settings.max_upload_mb == 20


def test_visitors_share_models_and_nothing_else(tmp_path: Path) -> None:
    owner = Settings(home=tmp_path)
    one, other = owner.for_visitor("one"), owner.for_visitor("other")
    assert len({owner.runs, one.runs, other.runs}) == 3
    assert len({owner.uploads, one.uploads, other.uploads}) == 3
    assert owner.models == one.models == other.models


def test_secrets_are_not_shown() -> None:
    settings = Settings(home=Path("h"), auth=("me", "pass-word"), hub_token="hf_secret")
    assert "pass-word" not in repr(settings)
    assert "hf_secret" not in repr(settings)
