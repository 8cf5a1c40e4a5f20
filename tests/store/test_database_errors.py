"""What a database that is wrong, broken or away is reported as."""

from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
)

from gateway.errors import SettingError, StoreUnavailable
from gateway.store import database as module
from gateway.store.database import Database
from gateway.store.tables import connections, leases
from testing.descriptors import open_files
from testing.records import NOW, connection


def test_a_file_that_is_not_a_database_is_reported_and_closed(tmp_path: Path) -> None:
    """The first connection finds it out."""
    (tmp_path / "damaged.db").write_bytes(b"no database " * 1000)
    database = Database(f"sqlite:///{tmp_path / 'damaged.db'}")
    with pytest.raises(StoreUnavailable, match="is damaged: file is not a database") as raised:
        database.migrate()
    database.close()
    assert open_files(tmp_path) == set()
    assert "restore it from a back-up" in str(raised.value)
    assert str(raised.value).endswith(f"({tmp_path / 'damaged.db'})")


OUTAGES = [
    (OperationalError("SELECT 1", {}, Exception("disk full\nmore")), "does not answer: disk full"),
    (InternalError("SELECT 1", {}, Exception("only reads")), "does not answer: only reads"),
    (psycopg.OperationalError("the connection is lost"), "does not answer: the connection is lost"),
    (TimeoutError("too slow"), "does not answer: too slow"),
    (DatabaseError("SELECT 1", {}, Exception("malformed")), "is damaged: malformed; restore it from"),
    (InterfaceError("SELECT 1", {}, Exception("closed"), connection_invalidated=True), "went away: closed"),
]


@pytest.mark.parametrize(("error", "reason"), OUTAGES)
def test_an_outage_is_reported_in_a_line(embedded: Database, error: Exception, reason: str) -> None:
    """Whatever the driver's error, callers see one error type, with the reason."""
    with pytest.raises(StoreUnavailable, match=f"the database {reason}") as raised, embedded.reading():
        raise error
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("error", "reason"), OUTAGES)
def test_an_outage_at_the_start_is_reported_with_the_file(
    embedded: Database, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """An operator sees a reason and where to look, not a traceback."""

    def fail(_connection: Connection) -> None:
        raise error

    monkeypatch.setattr(module, "present_revision", fail)
    with pytest.raises(StoreUnavailable, match=f"the database {reason}") as raised:
        embedded.is_new()
    assert str(raised.value).endswith(f"({embedded.url.database})")


@pytest.mark.parametrize(
    "error",
    [
        InterfaceError("SELECT 1", {}, Exception("a bug")),
        OperationalError("INSERT", {}, psycopg.errors.ProgramLimitExceeded("a bug")),
        psycopg.errors.ProgramLimitExceeded("a bug"),
        KeyError("a bug"),
        ValueError("a bug"),
    ],
)
def test_a_bug_is_no_outage(embedded: Database, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """It is raised, not retried for ever."""

    def fail(_connection: Connection) -> None:
        raise error

    monkeypatch.setattr(module, "present_revision", fail)
    with pytest.raises(type(error), match="a bug"):
        embedded.is_new()
    with pytest.raises(type(error), match="a bug"), embedded.reading():
        raise error


def test_an_error_shows_no_value(embedded: Database) -> None:
    """Values are bodies and encrypted secrets, and errors are logged."""
    with pytest.raises(IntegrityError) as raised, embedded.writing() as transaction:
        transaction.execute(insert(leases).values(connection="a secret", attempts=0, due_at=NOW))
    assert "a secret" not in str(raised.value)


def test_json_that_was_kept_with_half_a_character_can_be_shown(embedded: Database) -> None:
    """Earlier versions stored it unchanged; it cannot be encoded as UTF-8 in an answer."""
    connection(embedded)
    with embedded.writing() as transaction:
        transaction.exec_driver_sql("UPDATE connections SET triggers = ?", ('["a\\ud800z", "b"]',))
        [shown] = transaction.execute(select(connections.c.triggers)).scalars()
    assert shown[0].encode()
    assert (shown[0][0], shown[0][-1], shown[1]) == ("a", "z", "b")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense with s3cret", "it cannot be read"),
        ("postgresql://me:s3cret@host:port/name", "it cannot be read"),
        ("postgresql://me:s3cret@one:port,two/name", "it cannot be read"),
        ("mysql://me:s3cret@host/name", "cannot use mysql"),
        ("sqlite://", "it names no file"),
        ("sqlite:///:memory:", "it names no file"),
    ],
)
def test_a_url_of_no_use_is_a_wrong_setting(url: str, reason: str) -> None:
    """As soon as it is read, and without its password."""
    with pytest.raises(SettingError, match=f"PUSHGATE_DATABASE_URL.*{reason}") as raised:
        Database(url)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("url", ["postgresql://host", "postgres://host/", "postgresql+psycopg://host/name"])
def test_a_url_of_a_server_need_not_name_the_database(url: str) -> None:
    """The server's default has the user's name."""
    with closing(Database(url)) as database:
        assert not database.is_embedded


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://me:a,b@one:1,two:2/name?target_session_attrs=read-write", "one,two", "1,2"),
        ("postgres://me:a,b@one,two:2/name?target_session_attrs=read-write", "one,two", "5432,2"),
        ("postgresql://me:a,b@[::1],two/name?target_session_attrs=read-write", "::1,two", "5432,5432"),
        (
            "postgresql://me:a,b@/name?host=one:1&host=two:2&target_session_attrs=read-write",
            "one,two",
            "1,2",
        ),
    ],
)
def test_a_url_may_name_several_servers(url: str, hosts: str, ports: str) -> None:
    """In libpq's form, or in SQLAlchemy's."""
    with closing(Database(url)) as database:
        _, options = database.engine.dialect.create_connect_args(database.url)
    given = {"user": "me", "password": "a,b", "dbname": "name", "target_session_attrs": "read-write"}
    assert options.items() >= {**given, "host": hosts, "port": ports}.items()


@pytest.mark.parametrize("url", ["postgresql://one,two", "postgresql://me@one,two?connect_timeout=1"])
def test_several_servers_need_neither_user_nor_database(url: str) -> None:
    """As with a single server."""
    with closing(Database(url)) as database:
        assert database.url.query["host"] == "one,two"


def test_an_option_that_no_driver_takes_is_a_wrong_setting() -> None:
    """The error comes before anything is sent."""
    with (
        closing(Database("postgresql://me@127.0.0.1:9/name?nonsense=1")) as database,
        pytest.raises(SettingError, match=r"PUSHGATE_DATABASE_URL.*nonsense"),
    ):
        database.is_new()


def test_a_server_that_is_away_at_the_start_is_reported() -> None:
    """With the driver's reason; there is no file to name."""
    with (
        closing(Database("postgresql://me@127.0.0.1:9/name")) as database,
        pytest.raises(StoreUnavailable, match=r"does not answer: .*refused") as raised,
    ):
        database.is_new()
    assert "(name)" not in str(raised.value)
