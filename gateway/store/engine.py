"""SQLAlchemy engines for SQLite and PostgreSQL, with the options that Pushgate needs."""

import json
import re
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.errors import SettingError
from gateway.text.escape import storable

BUSY_MS = 10_000

# How long a pooled connection to PostgreSQL is used again without a round trip to test it.
_TRUSTED_SECONDS = 1.0

# An escaped surrogate in the form of Python's encoder, possibly one of a valid pair.
_ESCAPED_SURROGATE = b"\\ud"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """Takes seconds: how long a transaction has waited for its thread, and how long a commit took."""

    waited: Callable[[float], None] = lambda _: None
    committed: Callable[[float], None] = lambda _: None


def _from_json(text: str | bytes) -> Any:
    """Return a JSON value that can be displayed, even if it was stored before `storable` was applied."""
    value = json.loads(text)
    is_suspect = _ESCAPED_SURROGATE in (text.encode() if isinstance(text, str) else text)
    return storable(value) if is_suspect else value


# Bound values are webhook bodies and sealed secrets, which must not appear in errors.
_DISCREET: Mapping[str, Any] = {
    "hide_parameters": True,
    "json_serializer": lambda value: json.dumps(storable(value)),
    "json_deserializer": _from_json,
}

# The loss of a PostgreSQL server's machine is noticed within seconds: by keepalives on an idle connection, by
# the time limit in ms on one that has sent something. The system's own limit for that is 15 minutes.
KEEPALIVES = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

# These let the server notice the loss of a client's machine: until then, no other process can lead. They are
# set on each new connection, because a pooler such as PgBouncer refuses them as start-up options.
_LIMITS: Mapping[str, str] = {
    "statement_timeout": "60000",
    "lock_timeout": "30000",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}

_OVER_THE_NETWORK: Mapping[str, Any] = {
    **_DISCREET,
    "connect_args": KEEPALIVES,
}

WRONG_URL = "the setting database_url (PUSHGATE_DATABASE_URL) is wrong"

_GOOD_URLS = "postgresql://user:password@host/name, or sqlite:////folder/file.db"

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


# libpq's form of a URL with several hosts, which SQLAlchemy cannot read.
_HOST = r"(?:\[[^\]]*\]|[^\[\]:,/?@]*)(?::\d*)?"
_SEVERAL_HOSTS = re.compile(
    rf"(?P<start>[^:]*://(?:[^@?]*@)?)(?P<hosts>{_HOST}(?:,{_HOST})+)(?P<database>/[^?]*)?(?:\?(?P<query>.*))?"
)


def read_url(text: str) -> URL:
    """Return the URL of a database that Pushgate can use. Raise `SettingError`, without the password."""
    try:
        url = make_url(_with_hosts_as_options(text))
    except (ArgumentError, ValueError):
        raise SettingError(f"{WRONG_URL}: it cannot be read; write {_GOOD_URLS}") from None
    if url.drivername not in _DRIVERS:
        raise SettingError(f"{WRONG_URL}: Pushgate cannot use {url.drivername}; write {_GOOD_URLS}")
    if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
        raise SettingError(f"{WRONG_URL}: it names no file; write {_GOOD_URLS}")
    # Users write the usual scheme; the driver is an implementation detail.
    return url.set(drivername=_DRIVERS[url.drivername])


def _with_hosts_as_options(url: str) -> str:
    """Return the URL with several hosts as the options `host` and `port`, as SQLAlchemy reads them."""
    several = _SEVERAL_HOSTS.fullmatch(url)
    if several is None:
        return url
    split = [re.split(r":(?=\d*$)", host) for host in several["hosts"].split(",")]
    names = ",".join(name.strip("[]") for name, *_ in split)
    ports = ",".join("".join(port) or "5432" for _, *port in split)
    query = f"&{several['query']}" if several["query"] else ""
    return f"{several['start']}{several['database'] or '/'}?host={names}&port={ports}{query}"


def _leave_standbys(engine: Engine) -> None:
    """Close all connections when one cannot write: they may lead to a server that has become a standby."""

    @event.listens_for(engine, "handle_error")
    def _close(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, ReadOnlySqlTransaction):
            context.is_disconnect = True


def _limit(engine: Engine, limits: Mapping[str, str]) -> None:
    """Set these session settings on each new connection to PostgreSQL."""
    settings = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in limits.items())

    @event.listens_for(engine, "connect")
    def _configure(dbapi_connection: Any, _record: Any) -> None:
        # Outside a transaction, because a rollback would revert the settings.
        dbapi_connection.autocommit = True
        cursor = dbapi_connection.cursor()
        cursor.execute(f"SELECT {settings}")
        cursor.close()
        dbapi_connection.autocommit = False


def _test_idle(engine: Engine) -> None:
    """Test pooled connections before use, as `pool_pre_ping` does, but not those that were just in use.

    The test is a round trip, a fifth of a short transaction. A server that ends a connection says so on it,
    so an idle connection with something to read is tested as well.
    """

    @event.listens_for(engine, "checkin")
    def _rest(_dbapi_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _test(dbapi_connection: Any, record: Any, _proxy: Any) -> None:
        idle_since = record.info.get("idle_since", time.monotonic())
        is_trusted = time.monotonic() - idle_since < _TRUSTED_SECONDS
        try:
            if not is_trusted or _is_readable(record.driver_connection):
                engine.dialect.do_ping(dbapi_connection)
        except engine.dialect.loaded_dbapi.Error as error:
            # The pool opens another connection in its place, and instead of all that were idle: on a machine
            # that is lost, each of them would take seconds to fail.
            raise InvalidatePoolError from error


def _is_readable(driver_connection: Any) -> bool:
    readable = select.poll()
    readable.register(driver_connection.fileno(), select.POLLIN)
    return bool(readable.poll(0))


def create_async(url: URL) -> AsyncEngine:
    """Return a PostgreSQL engine for the event loop."""
    engine = create_async_engine(url, **_OVER_THE_NETWORK)
    _limit(engine.sync_engine, _LIMITS)
    _test_idle(engine.sync_engine)
    return engine


def create(url: URL) -> Engine:
    """Return an engine for use in threads."""
    if url.get_backend_name() != "sqlite":
        engine = create_engine(url, pool_size=10, **_OVER_THE_NETWORK)
        # Plan each statement for its values: a generic plan could not use the partial indexes of pending
        # rows.
        _limit(engine, {**_LIMITS, "plan_cache_mode": "force_custom_plan"})
        _leave_standbys(engine)
        _test_idle(engine)
        return engine
    return _create_sqlite(url)


def _create_sqlite(url: URL) -> Engine:
    engine = create_engine(
        url, **_DISCREET, connect_args={"check_same_thread": False, "timeout": BUSY_MS / 1000}
    )

    @event.listens_for(engine, "connect")
    def _configure(dbapi_connection: Any, _record: Any) -> None:
        # Pushgate begins transactions itself: Python's sqlite3 would begin them late and never IMMEDIATE.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # 32 MB. With SQLite's default of 2 MB, the indexes of the hot path would be read repeatedly.
        cursor.execute("PRAGMA cache_size = -32768")
        cursor.execute("PRAGMA temp_store = MEMORY")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads_only = connection.get_execution_options().get("reads_only", False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    return engine
