"""The health of the components on the overview."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.dashboard.components import Component, Components, StoreFacts
from gateway.packages.storage import PackageStorage
from gateway.store import outages
from gateway.store.database import Database
from gateway.store.reconciliations import Progress

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=2)


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    """Return an empty database."""
    path = tmp_path / "pushgate.db"
    path.write_bytes(migrated.read_bytes())
    with closing(Database(f"sqlite:///{path}")) as database:
        yield database


async def _no_trouble() -> str | None:
    return None


def components(
    database: Database,
    folder: Path,
    *,
    has_broker: bool = True,
    disk_trouble: Callable[[], Awaitable[str | None]] = _no_trouble,
) -> Components:
    """Return the components of a gateway."""
    return Components(
        database=database,
        storage=PackageStorage(f"file://{folder}/packages"),
        has_broker=has_broker,
        disk_trouble=disk_trouble,
    )


def facts(database: Database) -> StoreFacts:
    """Return what the store says."""
    with database.reading() as conn:
        return StoreFacts.of(conn, now=NOW)


def described(found: Components, given: StoreFacts) -> dict[str, Component]:
    """Return the components by name."""
    return {each.name: each for each in asyncio.run(found.described(given, now=NOW))}


def test_in_an_empty_gateway_everything_is_well(database: Database, tmp_path: Path) -> None:
    """Each component says so."""
    shown = described(components(database, tmp_path), facts(database))
    assert {name: each.state for name, each in shown.items()} == {
        "Database": "ok",
        "Broker": "ok",
        "Package storage": "ok",
        "Workers": "ok",
        "Reconciliation": "ok",
    }


def test_an_outage_of_the_broker_is_shown_with_its_reason(database: Database, tmp_path: Path) -> None:
    """And since when it lasts. Without a broker, the component is off."""
    with database.writing() as conn:
        outages.record(conn, "request", "connection refused", now=LONG_AGO)
    shown = described(components(database, tmp_path), facts(database))["Broker"]
    assert (shown.state, shown.since) == ("failing", LONG_AGO)
    assert "connection refused" in shown.text
    without = described(components(database, tmp_path, has_broker=False), facts(database))["Broker"]
    assert without.state == "off"


def test_work_that_waits_for_long_is_a_warning(database: Database, tmp_path: Path) -> None:
    """Whether it waits for workers, for the broker, or for reconciliation."""
    empty = facts(database)
    backlog = replace(empty.backlog, updates=3, oldest=LONG_AGO, requests=2, oldest_request=LONG_AGO)
    progress = Progress(connections=4, failing=0, oldest=None, newest=NOW, due_at=LONG_AGO)
    shown = described(components(database, tmp_path), replace(empty, backlog=backlog, progress=progress))
    for name in ("Workers", "Broker", "Reconciliation"):
        assert (shown[name].state, shown[name].since) == ("warning", LONG_AGO), name


def test_remotes_that_cannot_be_read_are_counted(database: Database, tmp_path: Path) -> None:
    """With the time at which the first of them could last be read."""
    progress = Progress(connections=4, failing=1, oldest=LONG_AGO, newest=NOW, due_at=NOW)
    shown = described(components(database, tmp_path), replace(facts(database), progress=progress))
    assert shown["Reconciliation"].text == "1 of 4 remotes cannot be read."
    assert shown["Reconciliation"].since == LONG_AGO


def test_a_storage_that_fails_is_shown_since_it_was_first_seen(database: Database, tmp_path: Path) -> None:
    """The time stays until it works again."""
    found, given = components(database, tmp_path), facts(database)
    folder = tmp_path / "packages"
    folder.rmdir()
    first = described(found, given)["Package storage"]
    assert first.state == "failing"
    assert str(folder) in first.text
    assert described(found, given)["Package storage"].since == first.since is not None
    folder.mkdir()
    found.forget()
    assert described(found, given)["Package storage"] == Component(
        name="Package storage", state="ok", text="Packages can be stored."
    )


def test_a_disk_on_which_nothing_can_be_fetched_is_shown(database: Database, tmp_path: Path) -> None:
    """As the trouble of the workers."""

    async def trouble() -> str | None:
        return "nothing can be fetched: the disk is full"

    found = components(database, tmp_path, disk_trouble=trouble)
    shown = described(found, facts(database))["Workers"]
    assert (shown.state, shown.text) == ("failing", "Nothing can be fetched: the disk is full.")


def test_without_its_database_the_gateway_shows_why(database: Database, tmp_path: Path) -> None:
    """What the store would say about the others is unknown."""
    shown = asyncio.run(components(database, tmp_path).without_store("the database does not answer: no"))
    assert [(each.name, each.state) for each in shown] == [
        ("Database", "failing"),
        ("Broker", "unknown"),
        ("Package storage", "ok"),
        ("Workers", "unknown"),
        ("Reconciliation", "unknown"),
    ]
    assert shown[0].text == "The database does not answer: no."
    assert shown[0].since is not None


def test_viewers_share_a_check_of_the_storage(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that come while it runs, or within two seconds; a check after an action is a new one."""
    found, given = components(database, tmp_path), facts(database)
    checks = []
    check = PackageStorage.check

    async def counted(storage: PackageStorage) -> None:
        checks.append(storage)
        await check(storage)

    monkeypatch.setattr(PackageStorage, "check", counted)

    async def view() -> int:
        await asyncio.gather(*(found.described(given, now=NOW) for _ in range(3)))
        return len(checks)

    assert asyncio.run(view()) == 1
    found.forget()
    assert asyncio.run(view()) == 2
