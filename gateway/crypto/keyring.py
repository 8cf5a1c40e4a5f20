"""Secrets at rest, in envelopes: each sealed with AES-256-GCM under a key of its own, itself sealed in turn.

The outer keys are derived from the operator's secret key. To change that one, only the small inner keys are
sealed anew: `rewrap`. While that happens, what was sealed under the previous secret key can be opened too.
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

_SHORTEST_KEY = 32
# An envelope: version, name of the outer key, the inner key under the outer one, the content under the inner.
_VERSION = b"\x02"
_NAME = 8
_NONCE = 12
_INNER = 32 + 16


class Vault:
    """Seals and opens small secrets, each bound to a context such as the connection that it belongs to."""

    def __init__(self, secret_key: str, previous: str | None = None) -> None:
        """Derive everything from `secret_key`: 32 characters or more, kept by the operator.

        What was sealed under the `previous` one can be opened, but nothing is sealed under it any more.
        """
        self._key = _checked(secret_key)
        keys = [self._key, *([_checked(previous)] if previous else [])]
        self._outer = {_name(key): AESGCM(_derive(key, "secrets at rest")) for key in keys}

    def seal(self, plain: bytes, *, context: str) -> bytes:
        """Return `plain` encrypted; only `open` with the same context gives it back."""
        inner = AESGCM.generate_key(256)
        return self._wrap(inner, context) + _encrypt(AESGCM(inner), plain, context)

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """Return what was sealed. Raises `SettingError` where it was sealed with another secret key."""
        inner, content = self._unwrap(sealed, context)
        return _decrypt(AESGCM(inner), content, context)

    def rewrap(self, sealed: bytes, *, context: str) -> bytes:
        """Return what was sealed under any key that is known, now under the present one."""
        inner, content = self._unwrap(sealed, context)
        return self._wrap(inner, context) + content

    def admin_token(self) -> str:
        """Return the token of the REST API for those who set none: the same on every replica and start."""
        return _derive(self._key, "admin token").hex()

    def ticket_key(self) -> bytes:
        """Return the key that signs the URLs of packages."""
        return _derive(self._key, "package tickets")

    def session_key(self) -> bytes:
        """Return the key that signs the sessions of the dashboard."""
        return _derive(self._key, "dashboard sessions")

    def _wrap(self, inner: bytes, context: str) -> bytes:
        name = _name(self._key)
        return _VERSION + name + _encrypt(self._outer[name], inner, context)

    def _unwrap(self, sealed: bytes, context: str) -> tuple[bytes, bytes]:
        start = len(_VERSION) + _NAME
        outer = self._outer.get(sealed[len(_VERSION) : start])
        if outer is None:
            raise _sealed_elsewhere(context)
        end = start + _NONCE + _INNER
        return _decrypt(outer, sealed[start:end], context), sealed[end:]


def secret_key_file(folder: Path) -> tuple[str, bool]:
    """Return the secret key of a data folder, made there with mode 0600 if it is new, and whether it is."""
    path = folder / "secret.key"
    fresh = path.with_name(f".secret.key.{secrets.token_hex(4)}")
    if not path.exists():
        write_key(fresh, secrets.token_hex(32))
        try:
            # A link fails where another process was faster, and then its key is the one that counts.
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
    """Return the key that a file holds. Raises `OSError`, and `SettingError` where it is no text."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise SettingError(
            f"{path} holds no key: it is no text. Restore it from a back-up; without it the secrets that are"
            " sealed with it are lost"
        ) from None


def write_key(path: Path, key: str) -> None:
    """Write a new file that nobody else can read, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make durable which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked(key: str) -> bytes:
    if len(key) < _SHORTEST_KEY:
        raise SettingError(
            f"PUSHGATE_SECRET_KEY has {len(key)} characters; {_SHORTEST_KEY} random ones or more are needed:"
            " openssl rand -hex 32"
        )
    return key.encode()


def _name(key: bytes) -> bytes:
    return hashlib.sha256(_derive(key, "name of the key")).digest()[:_NAME]


def _derive(key: bytes, purpose: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode()).derive(key)


def _encrypt(cipher: AESGCM, plain: bytes, context: str) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + cipher.encrypt(nonce, plain, context.encode())


def _decrypt(cipher: AESGCM, sealed: bytes, context: str) -> bytes:
    try:
        return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], context.encode())
    except InvalidTag as error:
        raise _sealed_elsewhere(context) from error


def _sealed_elsewhere(context: str) -> SettingError:
    return SettingError(
        f"the secret of {context} was sealed with another PUSHGATE_SECRET_KEY: bring that key back, as"
        " PUSHGATE_SECRET_KEY or PUSHGATE_SECRET_KEY_PREVIOUS"
    )
