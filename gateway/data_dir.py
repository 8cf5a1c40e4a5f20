"""The data folder and its database: opening, schema upgrade, and rotation of the secret key."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from gateway.crypto.keyring import Keyring, read_key, secret_key_file, sync_folder, write_key
from gateway.errors import SettingError
from gateway.settings import MIN_TOKEN_LENGTH, Settings
from gateway.store import (
    claims,
    connections,
    idempotency,
    identities,
    notification_channels,
    platforms,
    reconciliations,
    source_apps,
    status_webhooks,
)
from gateway.store.database import Database

log = structlog.get_logger()

# This file exists while a rotation of the secret key is in progress.
_PREVIOUS = "secret.key.previous"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDir:
    """The contents of the data folder. `fresh_token` is the admin token, if it was generated now.

    As a context manager it closes the database at the end of the block.
    """

    database: Database
    keyring: Keyring
    admin_token: str
    fresh_token: str | None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the database."""
        self.database.close()


def open_data(settings: Settings) -> DataDir:
    """Create the data folder if necessary, and upgrade the schema. Raises `SettingError`."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if settings.secret_key is not None:
            secret_key, is_new = settings.secret_key.get_secret_value(), False
        else:
            secret_key, is_new = secret_key_file(settings.data_dir)
        previous = _previous_key(settings)
    except OSError as error:
        raise SettingError(f"cannot use the data folder {settings.data_dir}: {error.strerror}") from error
    keyring = Keyring(secret_key, previous)
    token = settings.admin_token.get_secret_value() if settings.admin_token else keyring.admin_token()
    database = Database(settings.database)
    try:
        if len(token) < MIN_TOKEN_LENGTH:
            _check_weak_token(database)
        database.migrate()
    except BaseException:
        database.close()
        raise
    return DataDir(
        database=database,
        keyring=keyring,
        admin_token=token,
        fresh_token=token if is_new and settings.admin_token is None else None,
    )


def _check_weak_token(database: Database) -> None:
    """Refuse a short admin token for a new database; only warn for an existing database."""
    sentence = f"the admin token (PUSHGATE_ADMIN_TOKEN) has fewer than {MIN_TOKEN_LENGTH} characters"
    if database.is_new():
        raise SettingError(f"{sentence}: set a longer token, or unset it to have one generated")
    log.warning("admin token too short: set a longer one", reason=sentence)


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Hold the lock of the data folder until the block, or the process, ends.

    Only one gateway works on it: a single process, or the processes of one supervisor, which holds the lock
    for them. Raises `SettingError` where another gateway holds the lock.
    """
    with (settings.data_dir / "occupied.lock").open("ab") as lock:
        try:
            # The kernel releases the lock when the process dies, for any reason.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingError(
                f"a gateway runs on the data folder {settings.data_dir}: stop it, or choose another folder"
            ) from None
        yield


def _previous_key(settings: Settings) -> str | None:
    """Return the previous secret key, while secrets may still be sealed under it."""
    if settings.secret_key_previous is not None:
        return settings.secret_key_previous.get_secret_value()
    left = settings.data_dir / _PREVIOUS
    return read_key(left) if settings.secret_key is None and left.exists() else None


def rotate_key(settings: Settings) -> int:
    """Seal all secrets under the present secret key; a key in the data folder is replaced first.

    Each step is durable before the next, so an interrupted rotation can be repeated. Returns the number of
    secrets. Raises `SettingError`.
    """
    if settings.secret_key is not None:
        if settings.secret_key_previous is None:
            raise SettingError(
                "set PUSHGATE_SECRET_KEY to the new key and PUSHGATE_SECRET_KEY_PREVIOUS to the old one"
            )
        return _rewrap(settings)
    if not (settings.data_dir / "secret.key").exists():
        raise SettingError(
            f"no secret key in {settings.data_dir}: give the gateway's data folder with --data"
        )
    with locked(settings):
        _make_new_key(settings.data_dir)
        count = _rewrap(settings)
        (settings.data_dir / _PREVIOUS).unlink()
    return count


def learn_refs(settings: Settings) -> int:
    """Make the next reconciliation of every connection only record the remote's refs.

    For a restored database: pushes since its backup would look like missed pushes. Returns the number of
    connections. Raises `SettingError` while a gateway works on the database.
    """
    with open_data(settings) as opened, locked(settings), opened.database.writing() as conn:
        now = datetime.now(UTC)
        working = claims.alive(conn, now=now)
        if working:
            raise SettingError(
                f"workers run on this database, such as {working[0]}: stop them first; a killed worker counts"
                f" as running for {claims.GONE_AFTER.seconds} s"
            )
        restored = connections.addresses(conn)
        for connection in restored:
            reconciliations.start_over(conn, connection, now=now)
    return len(restored)


def _rewrap(settings: Settings) -> int:
    with open_data(settings) as opened, opened.database.writing() as conn:
        sealed = (
            connections.rewrap,
            platforms.rewrap,
            identities.rewrap,
            notification_channels.rewrap,
            source_apps.rewrap,
            status_webhooks.rewrap,
            idempotency.rewrap,
        )
        return sum(rewrap(conn, opened.keyring) for rewrap in sealed)


def _make_new_key(folder: Path) -> None:
    """Replace the present key by a new key, and keep it as the previous key."""
    present, previous = folder / "secret.key", folder / _PREVIOUS
    try:
        if not previous.exists():
            os.link(present, previous)
            sync_folder(folder)
        if previous.samefile(present):
            fresh = folder / f".secret.key.{secrets.token_hex(4)}"
            write_key(fresh, secrets.token_hex(32))
            fresh.replace(present)
            sync_folder(folder)
    except OSError as error:
        raise SettingError(f"cannot use the data folder {folder}: {error.strerror}") from error
