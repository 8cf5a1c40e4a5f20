"""The sentences that describe invalid input."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from gateway.api.schemas import ConnectionChange, NewConnection
from gateway.errors import SettingError
from gateway.settings import read_settings
from gateway.text.validation import describe

GOOD = {"provider": "github", "url": "https://github.com/acme/digits", "project": "digits"}


@pytest.mark.parametrize(
    ("model", "given", "sentence"),
    [
        (
            NewConnection,
            {"provder": "github", **GOOD, "provider": None},
            "provder: there is no such field; do you mean provider?",
        ),
        (NewConnection, {**GOOD, "colour": "red"}, "colour: there is no such field"),
        (
            NewConnection,
            {**GOOD, "credentials": {"pasword": "s3cret"}},
            "credentials.pasword: there is no such field; do you mean password?",
        ),
        (
            ConnectionChange,
            {"platform": {"url": "https://x", "projcet": "p"}},
            "platform.projcet: there is no such field; do you mean project?",
        ),
        (NewConnection, {"provider": "github"}, "url: Field required"),
        (NewConnection, [], "the body: Input should be a valid dictionary or instance of NewConnection"),
    ],
)
def test_an_unknown_key_is_named_before_a_missing_one(
    model: type[BaseModel], given: Any, sentence: str
) -> None:
    """A misspelt key is the cause of a missing one. The sentence contains no value."""
    with pytest.raises(ValidationError) as raised:
        model.model_validate(given)
    assert describe(raised.value, model, whole="the body") == sentence


def test_an_unknown_setting_is_named_with_the_most_similar_one(tmp_path: Any) -> None:
    """Also if another setting in the file is wrong."""
    config = tmp_path / "pushgate.yaml"
    config.write_text("port: x\nbody_limt: 2048\n")
    with pytest.raises(SettingError, match=r"no setting body_limt; do you mean body_limit\?"):
        read_settings(given={"data_dir": tmp_path}, config=config, secrets_dir=None)
