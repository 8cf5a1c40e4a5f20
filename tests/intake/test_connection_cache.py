"""The endpoint's connection cache: its contents and lifetime, and the connections' repositories."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
from sqlalchemy import update

from gateway.errors import NotFound
from gateway.intake.connection_cache import CachedConnection, ConnectionCache
from gateway.store import connections, tables
from gateway.store.database import Database
from providers import PROVIDERS
from providers.model import Repository
from testing.records import NOW, connection
from tests.intake.local import KEYRING, Clock

T = TypeVar("T")


class CountingDatabase(Database):
    """A database that counts lookups."""

    looks = 0

    async def look_up(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Count the lookup, and do it."""
        self.looks += 1
        return await super().look_up(work, *args, **kwargs)


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[CountingDatabase]:
    """Return a database with the connections c1, c2 and c3."""
    database = CountingDatabase(f"sqlite:///{shutil.copy(migrated, tmp_path)}")
    for name in ("c1", "c2", "c3"):
        connection(database, name)
    yield database
    database.close()


def test_a_connection_is_remembered_for_two_seconds(database: CountingDatabase) -> None:
    """Within them a change by another process may go unnoticed; a change by this process never does."""
    clock = Clock()
    cache = ConnectionCache(database, KEYRING, clock=clock)

    def found() -> str:
        return asyncio.run(cache.find("c1")).repository_key

    def move(url: str) -> None:
        with database.writing() as conn:
            conn.execute(update(tables.connections).values(url=url))

    first = found()
    move("https://github.example/acme/letters.git")
    clock.now += 1.9
    assert found() == first
    clock.now = 1002.0
    second = found()
    assert second == "github.example/acme/letters"
    move("https://github.example/acme/words.git")
    clock.now += 1.9
    assert found() == second
    clock.now += 60
    assert found() == "github.example/acme/words"
    move("https://github.example/acme/letters.git")
    cache.forget("c1")
    cache.forget("c1")
    assert found() == second


def test_requests_share_a_lookup_unless_the_connection_changes(database: CountingDatabase) -> None:
    """A request after the change reads again, and what was read before it is not kept."""
    cache = ConnectionCache(database, KEYRING, clock=Clock())

    async def find() -> None:
        await asyncio.gather(*(cache.find("c1") for _ in range(9)))
        assert database.looks == 1
        early = asyncio.create_task(cache.find("c2"))
        await asyncio.sleep(0)
        cache.forget("c2")
        await asyncio.gather(early, cache.find("c2"), cache.find("c2"))
        await cache.find("c2")

    asyncio.run(find())
    assert database.looks == 3


def test_of_a_deleted_connection_nothing_is_remembered(database: CountingDatabase) -> None:
    """It is no longer found, and its secrets are no longer in memory."""
    clock = Clock()
    cache = ConnectionCache(database, KEYRING, clock=clock)
    asyncio.run(cache.find("c1"))
    with database.writing() as conn:
        connections.remove(conn, "c1", now=NOW)
    clock.now += 2
    for _ in range(2):
        with pytest.raises(NotFound):
            asyncio.run(cache.find("c1"))
    assert not cache._connections._cached  # noqa: SLF001 - what is left in memory


def test_only_so_many_connections_are_remembered(
    database: CountingDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that fit are looked up once; one more replaces another."""
    monkeypatch.setattr("gateway.intake.lookup_cache.MAX_CACHED", 2)
    cache = ConnectionCache(database, KEYRING, clock=Clock())

    def looks(*names: str) -> int:
        before = database.looks
        for name in names:
            assert asyncio.run(cache.find(name)).id == name
        return database.looks - before

    assert looks("c1", "c2", "c1", "c2") == 2
    assert looks("c3", "c3") == 1
    assert looks("c1", "c2") == 2


def test_a_weak_secret_is_logged_once(database: CountingDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each connection that has one, as long as the cache holds the fact."""
    monkeypatch.setattr("gateway.intake.connection_cache.MAX_CACHED", 1)
    with database.writing() as conn:
        for name, secret in (("c1", b"weak"), ("c2", b"one of enough bytes"), ("c3", b"weak")):
            connections.add_secret(conn, KEYRING, name, secret, now=NOW)
    cache = ConnectionCache(database, KEYRING)

    def warned(*names: str) -> list[str]:
        with structlog.testing.capture_logs() as lines:
            for name in names:
                cache.forget(name)
                asyncio.run(cache.find(name))
        return [line["connection"] for line in lines]

    assert warned("c1", "c1", "c2", "c2") == ["c1"]
    assert warned("c3", "c3", "c1") == ["c3", "c3"]


@pytest.mark.parametrize(
    ("known", "repository", "is_ours"),
    [
        ("2", Repository(id="2", full_name="evil/digits"), True),
        ("2", Repository(id="1", full_name="acme/digits"), False),
        ("2", Repository(id="3", full_name="acme/digits"), False),
        ("2", Repository(full_name="acme/digits"), True),
        ("2", Repository(full_name="evil/digits"), False),
        (None, Repository(id="2", full_name="acme/digits"), True),
        (None, Repository(id="2", full_name="evil/digits"), False),
        (None, Repository(id="2"), True),
    ],
)
def test_the_providers_id_says_which_repository_it_is(
    known: str | None, repository: Repository, *, is_ours: bool
) -> None:
    """If it is known and sent; before that the name does, if there is one."""
    connection = CachedConnection(
        id="c1",
        provider_name="github",
        provider=PROVIDERS["github"],
        auth={},
        secrets=(),
        secret_ids=(),
        repository_id=known,
        repository_key="github.example/acme/digits",
        networks=(),
    )
    assert connection.is_about(repository) is is_ours
