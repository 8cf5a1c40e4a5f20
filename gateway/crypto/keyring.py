"""Envelope encryption of secrets at rest: each secret has a data key of its own, and AES-256-GCM seals both.

The wrapping key, which seals the data keys, is derived from the operator's secret key. When the secret key
changes, `rewrap` seals only the data keys again; meanwhile, the previous secret key still opens secrets.
"""

import hashlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.errors import SettingError

_MIN_KEY_CHARACTERS = 32
# An envelope: version, name of the wrapping key, data key under the wrapping key, content under the data key.
_VERSION = b"\x02"
_NAME_BYTES = 8
_NONCE_BYTES = 12
_SEALED_KEY_BYTES = 32 + 16


class Keyring:
    """Seals and opens small secrets. Each is bound to a context, such as its connection."""

    def __init__(self, secret_key: str, previous: str | None = None) -> None:
        """Derive all keys from `secret_key`, at least 32 characters that the operator keeps.

        The `previous` secret key only opens secrets; nothing new is sealed under it.
        """
        self._key = _checked(secret_key)
        keys = [self._key, *([_checked(previous)] if previous else [])]
        self._wrapping = {_name(key): AESGCM(_derive(key, "secrets at rest")) for key in keys}

    def seal(self, plain: bytes, *, context: str) -> bytes:
        """Return `plain` encrypted. Only `open` with the same context decrypts it."""
        data_key = AESGCM.generate_key(256)
        return self._wrap(data_key, context) + _encrypt(AESGCM(data_key), plain, context)

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """Return the plain secret. Raise `SettingError` if it was sealed with another secret key."""
        data_key, content = self._unwrap(sealed, context)
        return _decrypt(AESGCM(data_key), content, context)

    def rewrap(self, sealed: bytes, *, context: str) -> bytes:
        """Return an envelope whose data key is sealed under the current wrapping key."""
        data_key, content = self._unwrap(sealed, context)
        return self._wrap(data_key, context) + content

    def admin_token(self) -> str:
        """Return the default token of the REST API: stable across replicas and restarts."""
        return _derive(self._key, "admin token").hex()

    def package_url_key(self) -> bytes:
        """Return the key that signs package URLs."""
        return _derive(self._key, "package tickets")  # stays: every URL in use was signed with it

    def app_state_key(self) -> bytes:
        """Return the key that signs what GitHub sends back with a new App."""
        return _derive(self._key, "states of new Apps")

    def status_url_key(self) -> bytes:
        """Return the key that signs status URLs."""
        return _derive(self._key, "status URLs")

    def idempotency_key(self) -> bytes:
        """Return the key of the hashes by which repeated requests are recognized."""
        return _derive(self._key, "repeated requests")

    def session_key(self) -> bytes:
        """Return the key that signs dashboard sessions and flash messages."""
        return _derive(self._key, "dashboard sessions")

    def _wrap(self, data_key: bytes, context: str) -> bytes:
        name = _name(self._key)
        return _VERSION + name + _encrypt(self._wrapping[name], data_key, context)

    def _unwrap(self, sealed: bytes, context: str) -> tuple[bytes, bytes]:
        start = len(_VERSION) + _NAME_BYTES
        wrapping = self._wrapping.get(sealed[len(_VERSION) : start])
        if wrapping is None:
            raise _sealed_elsewhere(context)
        end = start + _NONCE_BYTES + _SEALED_KEY_BYTES
        return _decrypt(wrapping, sealed[start:end], context), sealed[end:]


def secret_key_file(folder: Path) -> tuple[str, bool]:
    """Return the secret key of a data folder, created with mode 0600 if missing, and whether it is new."""
    path = folder / "secret.key"
    fresh = path.with_name(f".secret.key.{secrets.token_hex(4)}")
    if not path.exists():
        write_key(fresh, secrets.token_hex(32))
        try:
            # The link fails if another process was faster; then the key of that process is the key.
            os.link(fresh, path)
        except FileExistsError:
            pass
        else:
            sync_folder(folder)
            return read_key(path), True
        finally:
            fresh.unlink()
    return read_key(path), False


def read_key(path: Path) -> str:
    """Return the key in a file. Raise `OSError`, or `SettingError` if the file is not text."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise SettingError(
            f"{path} does not hold a key: it is not text. Restore it from a backup; without the key, the"
            " secrets that are sealed with it are lost"
        ) from None


def write_key(path: Path, key: str) -> None:
    """Write a key to a new file that only its owner can read, and sync it to disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked(key: str) -> bytes:
    if len(key) < _MIN_KEY_CHARACTERS:
        raise SettingError(
            f"PUSHGATE_SECRET_KEY has {len(key)} characters; it needs at least {_MIN_KEY_CHARACTERS} random"
            " ones: openssl rand -hex 32"
        )
    return key.encode()


def _name(key: bytes) -> bytes:
    return hashlib.sha256(_derive(key, "name of the key")).digest()[:_NAME_BYTES]


def _derive(key: bytes, purpose: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode()).derive(key)


def _encrypt(cipher: AESGCM, plain: bytes, context: str) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, plain, context.encode())


def _decrypt(cipher: AESGCM, sealed: bytes, context: str) -> bytes:
    try:
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context.encode())
    except InvalidTag as error:
        raise _sealed_elsewhere(context) from error


def _sealed_elsewhere(context: str) -> SettingError:
    return SettingError(
        f"the secret of {context} was sealed with another PUSHGATE_SECRET_KEY: set that key again, as"
        " PUSHGATE_SECRET_KEY or PUSHGATE_SECRET_KEY_PREVIOUS"
    )
