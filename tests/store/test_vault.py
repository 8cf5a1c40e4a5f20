"""Secrets at rest."""

import stat
from pathlib import Path

import pytest

from gateway.errors import SettingError
from gateway.store.vault import Vault, secret_key_file


def test_what_is_sealed_can_be_opened(vault: Vault) -> None:
    """And nothing of it shows."""
    sealed = vault.seal(b"the secret", context="connection c1")
    assert b"secret" not in sealed
    assert vault.open(sealed, context="connection c1") == b"the secret"


def test_the_same_secret_is_sealed_differently_each_time(vault: Vault) -> None:
    """Two connections with the same secret do not show it."""
    assert vault.seal(b"x", context="c") != vault.seal(b"x", context="c")


def test_a_sealed_secret_cannot_be_moved_to_another_connection(vault: Vault) -> None:
    """Who can write the database can't make one connection's secret another's."""
    with pytest.raises(SettingError, match="connection c2 was sealed with another"):
        vault.open(vault.seal(b"x", context="connection c1"), context="connection c2")


def test_another_key_opens_nothing(vault: Vault) -> None:
    """The error names the setting, and no secret."""
    with pytest.raises(SettingError, match="PUSHGATE_SECRET_KEY"):
        Vault("other" * 8).open(vault.seal(b"x", context="c"), context="c")


def test_a_short_key_is_refused() -> None:
    """And the message says how to make a good one."""
    with pytest.raises(SettingError, match="openssl rand -hex 32"):
        Vault("short")


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    """The second start finds the key of the first."""
    first, is_new = secret_key_file(tmp_path)
    assert is_new
    assert secret_key_file(tmp_path) == (first, False)
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]


def test_what_a_previous_key_sealed_is_opened_and_wrapped_anew(vault: Vault) -> None:
    """Once wrapped anew, the previous key is not needed any more; the content stays as it was sealed."""
    sealed = vault.seal(b"the secret", context="c")
    both = Vault("n" * 32, "k" * 32)
    assert both.open(sealed, context="c") == b"the secret"
    anew = both.rewrap(sealed, context="c")
    assert Vault("n" * 32).open(anew, context="c") == b"the secret"
    with pytest.raises(SettingError):
        vault.open(anew, context="c")
    assert anew[-20:] == sealed[-20:]
