"""Each provider declares the facts that the gateway needs."""

import pytest

from gateway.cli.options import PROVIDER_NAMES
from providers import PROVIDERS
from providers.model import Provider


def test_the_command_line_names_every_provider() -> None:
    """The help texts list the names without importing the providers."""
    assert tuple(PROVIDERS) == PROVIDER_NAMES


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_declares_every_fact(name: str) -> None:
    """A module that lacks a member of the Protocol fails here as well as in mypy."""
    missing = [member for member in Provider.__annotations__ if not hasattr(PROVIDERS[name], member)]
    assert not missing


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_token_has_a_user_name(name: str) -> None:
    """The empty prefix fits any token."""
    assert PROVIDERS[name].TOKEN_USERS[""]
