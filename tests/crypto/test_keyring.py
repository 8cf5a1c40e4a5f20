"""Secrets at rest."""

import stat
from pathlib import Path

import pytest

from gateway.crypto import keyring as module
from gateway.crypto.keyring import Keyring, read_key, secret_key_file, sync_folder, write_key
from gateway.errors import SettingError
from testing.descriptors import open_files

# Encrypted by an earlier version: later versions must decrypt stored values.
KEPT = bytes.fromhex(
    "0239fbb2923d13072b4bce0944bf830f929ce9d37820c0c2a204ec03c2905ee80355b7d4341302a6e17651090271d4f5826eac39339f368b51dbf1a46d91bcc5951caf9f8863315ef771c42acc81a9d05453c673a22fcaf90b42fce046a336bfd18bfca6b14515dfb2a6f0"
)


def test_what_is_sealed_can_be_opened(keyring: Keyring) -> None:
    """The envelope does not contain the plain secret."""
    sealed = keyring.seal(b"the secret", context="connection c1")
    assert b"secret" not in sealed
    assert keyring.open(sealed, context="connection c1") == b"the secret"


def test_the_same_secret_is_sealed_differently_each_time(keyring: Keyring) -> None:
    """Equal secrets of two connections cannot be recognized."""
    assert keyring.seal(b"x", context="c") != keyring.seal(b"x", context="c")


def test_a_sealed_secret_cannot_be_moved_to_another_connection(keyring: Keyring) -> None:
    """Write access to the database does not suffice to use the secret of a connection for another."""
    with pytest.raises(SettingError, match="connection c2 was sealed with another"):
        keyring.open(keyring.seal(b"x", context="connection c1"), context="connection c2")


def test_another_key_opens_nothing(keyring: Keyring) -> None:
    """The error names the setting, and no secret."""
    with pytest.raises(SettingError, match="PUSHGATE_SECRET_KEY"):
        Keyring("other" * 8).open(keyring.seal(b"x", context="c"), context="c")


def test_a_short_key_is_refused() -> None:
    """The message names the command that makes a good key."""
    with pytest.raises(SettingError, match="openssl rand -hex 32"):
        Keyring("short")


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    """The second start finds the key of the first."""
    first, is_new = secret_key_file(tmp_path)
    assert is_new
    assert secret_key_file(tmp_path) == (first, False)
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]


def test_what_a_previous_key_sealed_is_opened_and_rewrapped(keyring: Keyring) -> None:
    """After `rewrap`, the previous key is no longer needed; the sealed content is unchanged."""
    sealed = keyring.seal(b"the secret", context="c")
    both = Keyring("n" * 32, "k" * 32)
    assert both.open(sealed, context="c") == b"the secret"
    rewrapped = both.rewrap(sealed, context="c")
    assert Keyring("n" * 32).open(rewrapped, context="c") == b"the secret"
    with pytest.raises(SettingError):
        keyring.open(rewrapped, context="c")
    assert rewrapped[-20:] == sealed[-20:]


def test_what_earlier_versions_sealed_is_still_opened(keyring: Keyring) -> None:
    """The form of an envelope, and how keys are derived, do not change."""
    assert keyring.open(KEPT, context="connection c1") == b"the secret"


def test_derived_keys_stay_the_same(keyring: Keyring) -> None:
    """Tokens in use, URLs of packages and sessions survive an upgrade; each purpose has a key of its own."""
    assert keyring.admin_token() == "d13e64357ef155ba6c514d67f8408b647405e067e944b9430be1ba3cc8b81e73"
    url_key = keyring.package_url_key().hex()
    assert url_key == "ade1aa703dcdf529128d659325250b32a901c86e1a0348ea24b2ef77f95b44d2"
    assert keyring.session_key().hex() == "6585cddb100dc9e8e6d8c669637598465c6e84679b3b748fbceb32fc334fbc38"


def test_an_envelope_is_as_small_as_it_can_be(keyring: Keyring) -> None:
    """A version, eight bytes that name the key, two nonces and tags, the data key and the content."""
    assert len(keyring.seal(b"x", context="c")) == 1 + 8 + (12 + 32 + 16) + (12 + 1 + 16)


def test_a_key_of_32_characters_is_long_enough() -> None:
    """A key of 31 is not, even as the previous key."""
    Keyring("k" * 32, "p" * 32)
    Keyring("k" * 33)
    with pytest.raises(SettingError, match="has 31 characters; it needs at least 32 random ones"):
        Keyring("k" * 31)
    with pytest.raises(SettingError, match="has 31 characters"):
        Keyring("k" * 32, "p" * 31)


def test_the_key_that_is_made_is_256_random_bits_in_hex(tmp_path: Path) -> None:
    """This is what the message about short keys recommends."""
    key, _ = secret_key_file(tmp_path)
    assert len(bytes.fromhex(key)) == 32
    assert (tmp_path / "secret.key").read_text() == key


def test_of_two_processes_that_make_the_key_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both processes use the same key, and no temporary file is left in the folder."""
    written = module.write_key

    def write_late(path: Path, key: str) -> None:
        written(path, key)
        written(tmp_path / "secret.key", "the key of the other process")

    monkeypatch.setattr(module, "write_key", write_late)
    assert secret_key_file(tmp_path) == ("the key of the other process", False)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]


def test_a_key_file_that_is_not_text_is_reported(tmp_path: Path) -> None:
    """The error names the file and what is lost without it."""
    (tmp_path / "secret.key").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match=r"secret\.key does not hold a key: .*backup"):
        read_key(tmp_path / "secret.key")


def test_a_key_file_is_never_written_over(tmp_path: Path) -> None:
    """Without the old key, all secrets would be lost."""
    path = tmp_path / "key"
    write_key(path, "the first")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_key(path, "the second")
    assert path.read_text() == "the first"


def test_only_a_folder_is_synced_as_one(tmp_path: Path) -> None:
    """For a file, it raises; no descriptor is left open."""
    (tmp_path / "file").touch()
    sync_folder(tmp_path)
    assert open_files(tmp_path) == set()
    with pytest.raises(NotADirectoryError):
        sync_folder(tmp_path / "file")
