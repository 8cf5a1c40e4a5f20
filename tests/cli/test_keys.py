"""A new secret key by `pushgate keys rotate`, also after an interruption at any point."""

import asyncio
import os
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from gateway.crypto.keyring import write_key
from gateway.data_dir import locked, open_data, rotate_key
from gateway.errors import RemoteUnavailable, SettingError, StoreUnavailable
from gateway.fetch.git import Git
from gateway.fetch.mirror import Mirrors
from gateway.provider_apis.sign_in import SignIn
from gateway.server.server import serve
from gateway.settings import Settings
from gateway.store import connections
from gateway.worker.remotes import Remotes
from testing import records
from testing.descriptors import open_files
from testing.service import Service, run_pushgate


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return the settings of a data folder with one stored secret."""
    settings = Settings(data_dir=tmp_path / "data")
    with open_data(settings) as opened:
        records.connection(opened.database)
        with opened.database.writing() as conn:
            connections.keep_credentials(conn, opened.keyring, "c1", b"the secret")
    return settings


def kept(settings: Settings) -> bytes | None:
    """Return the secret, as a service with these settings reads it."""
    with open_data(settings) as opened, opened.database.reading() as conn:
        return connections.credentials(conn, opened.keyring, "c1")


def _before(_folder: Path) -> None:
    """Do nothing: the rotation has not begun."""


def _linked(folder: Path) -> None:
    os.link(folder / "secret.key", folder / "secret.key.previous")


def _written(folder: Path) -> None:
    _linked(folder)
    write_key(folder / ".secret.key.left", "x" * 7)


def _replaced(folder: Path) -> None:
    _linked(folder)
    write_key(folder / "fresh", "n" * 64)
    (folder / "fresh").replace(folder / "secret.key")


@pytest.mark.parametrize("stop", [_before, _linked, _written, _replaced])
def test_a_rotation_can_stop_anywhere(settings: Settings, stop: object) -> None:
    """The secret can be read at any time; after a second run the old key decrypts nothing."""
    assert callable(stop)
    key = settings.data_dir / "secret.key"
    old = key.read_text()
    stop(settings.data_dir)
    assert kept(settings) == b"the secret"
    assert rotate_key(settings) == 1
    assert key.read_text() != old
    assert not (settings.data_dir / "secret.key.previous").exists()
    assert kept(settings) == b"the secret"
    key.write_text(old)
    with pytest.raises(SettingError, match="PUSHGATE_SECRET_KEY_PREVIOUS"):
        kept(settings)


def test_machines_that_share_a_database_change_over_one_by_one(settings: Settings) -> None:
    """First each can decrypt with the new key, then each encrypts with it, then all is encrypted again."""
    old, new = (settings.data_dir / "secret.key").read_text(), "n" * 64

    def machine(secret_key: str, previous: str | None) -> Settings:
        return Settings(
            data_dir=settings.data_dir,
            secret_key=SecretStr(secret_key),
            secret_key_previous=SecretStr(previous) if previous else None,
        )

    steps = [machine(old, None), machine(old, new), machine(new, old), machine(new, None)]
    assert [kept(step) for step in steps[:3]] == [b"the secret"] * 3
    assert rotate_key(steps[2]) == 1
    assert [kept(step) for step in steps[1:]] == [b"the secret"] * 3


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "no secret key in"),
        ({"PUSHGATE_SECRET_KEY": "n" * 64}, "and PUSHGATE_SECRET_KEY_PREVIOUS to the old one"),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path: Path, variables: dict[str, str], expected: str) -> None:
    """And nothing is created."""
    done = run_pushgate("keys", "rotate", "--data", tmp_path / "none", variables=variables)
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_what_fails_leaves_no_database_open(settings: Settings) -> None:
    """A rotation with a wrong key, a start on a later schema, and one next to a running gateway."""
    wrong = settings.model_copy(
        update={"secret_key": SecretStr("x" * 64), "secret_key_previous": SecretStr("y" * 64)}
    )
    with pytest.raises(SettingError):
        rotate_key(wrong)
    assert open_files(settings.data_dir) == set()
    with locked(settings), pytest.raises(SettingError, match="a gateway runs"):
        serve(settings, open_data(settings))
    assert open_files(settings.data_dir) == set()
    with open_data(settings) as opened, opened.database.writing() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        conn.execute(text("DROP TABLE schema_compatibility"))
    with pytest.raises(StoreUnavailable) as refused:
        open_data(settings)
    assert open_files(settings.data_dir) == set(), refused


def test_a_wrong_secret_key_is_a_reason(settings: Settings, tmp_path: Path) -> None:
    """A delivery waits with the reason, as with any remote that cannot be fetched."""
    git = Git(home=tmp_path / "home", allow_http=False, timeout=30)
    mirrors = Mirrors(git, tmp_path / "mirrors")
    with open_data(settings.model_copy(update={"secret_key": SecretStr("x" * 64)})) as opened:
        remotes = Remotes(
            mirrors=mirrors, database=opened.database, keyring=opened.keyring, sign_in=SignIn({})
        )
        with opened.database.reading() as conn:
            connection = connections.get(conn, "c1")
        with pytest.raises(RemoteUnavailable, match="credentials of c1 was sealed with another"):
            asyncio.run(remotes.of(connection))


def test_a_gateway_that_runs_keeps_its_key(service: Service) -> None:
    """It would encrypt later secrets under the old one."""
    key = (service.data / "secret.key").read_text()
    done = run_pushgate("keys", "rotate", "--data", service.data)
    assert (done.returncode, f"a gateway runs on the data folder {service.data}" in done.stderr) == (1, True)
    assert (service.data / "secret.key").read_text() == key
