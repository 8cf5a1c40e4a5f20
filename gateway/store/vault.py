"""Secrets at rest: sealed with AES-256-GCM under keys that are derived from one secret key."""

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.errors import SettingError

_SHORTEST_KEY = 32
_VERSION = b"\x01"
_NONCE = 12


class Vault:
    """Seals and opens small secrets, each bound to a context such as the connection that it belongs to."""

    def __init__(self, secret_key: str) -> None:
        """Derive everything from `secret_key`: 32 characters or more, kept by the operator."""
        if len(secret_key) < _SHORTEST_KEY:
            raise SettingError(
                f"PUSHGATE_SECRET_KEY has {len(secret_key)} characters; {_SHORTEST_KEY} random ones or more"
                " are needed: openssl rand -hex 32"
            )
        self._secret_key = secret_key.encode()
        self._cipher = AESGCM(self._derive("secrets at rest"))

    def seal(self, plain: bytes, *, context: str) -> bytes:
        """Return `plain` encrypted; only `open` with the same context gives it back."""
        nonce = os.urandom(_NONCE)
        return _VERSION + nonce + self._cipher.encrypt(nonce, plain, context.encode())

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """Return what was sealed. Raises `SettingError` where it was sealed with another secret key."""
        nonce, body = sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
        try:
            return self._cipher.decrypt(nonce, body, context.encode())
        except InvalidTag as error:
            raise SettingError(
                f"the secret of {context} was sealed with another PUSHGATE_SECRET_KEY: bring that key back,"
                " or rotate the secret"
            ) from error

    def admin_token(self) -> str:
        """Return the token of the REST API for those who set none: the same on every replica and start."""
        return self._derive("admin token").hex()

    def _derive(self, purpose: str) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode()).derive(self._secret_key)


def secret_key_file(folder: Path) -> tuple[str, bool]:
    """Return the secret key of a data folder, made there with mode 0600 if it is new, and whether it is."""
    path = folder / "secret.key"
    fresh = path.with_name(f".secret.key.{secrets.token_hex(4)}")
    if not path.exists():
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link fails where another process was faster, and then its key is the one that counts.
            os.link(fresh, path)
        except FileExistsError:
            pass
        else:
            return path.read_text().strip(), True
        finally:
            fresh.unlink()
    return path.read_text().strip(), False
