"""What tests of the keyring share."""

import pytest

from gateway.crypto.keyring import Keyring


@pytest.fixture
def keyring() -> Keyring:
    """Return a keyring."""
    return Keyring("k" * 32)
