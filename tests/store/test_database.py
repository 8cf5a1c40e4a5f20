"""Transactions of the hot path: on the event loop, on either database, whole or not at all."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from gateway.errors import StoreUnavailable
from gateway.store.database import Database
from gateway.store.tables import leases, refs
from tests.descriptors import open_files
from tests.postgres import Postgres
from tests.store.make import connection


def names(transaction: Connection) -> list[str]:
    """Return the refs that are known."""
    return list(transaction.execute(select(refs.c.ref).order_by(refs.c.ref)).scalars())


def add_next(transaction: Connection, known: list[str]) -> None:
    """Make one more known than there were."""
    row = {"connection": "c1", "ref": f"refs/heads/{len(known)}", "generation": 1}
    transaction.execute(insert(refs).values(row))


def add_then_fail(transaction: Connection, known: list[str]) -> None:
    """Write, and then write what cannot be: a lease on no connection."""
    add_next(transaction, known)
    transaction.execute(insert(leases).values(connection="none", attempts=0, due_at=None))


def prepared(url: str) -> Database:
    """Return a database with one connection of a repository."""
    database = Database(url)
    database.migrate()
    connection(database)
    return database


def test_what_is_decided_is_kept(url: str) -> None:
    """Each sees what the one before has written."""
    database = prepared(url)

    async def run() -> list[list[str]]:
        try:
            return [await database.write_inline(names, add_next) for _ in range(3)]
        finally:
            await database.aclose()

    assert asyncio.run(run()) == [[], ["refs/heads/0"], ["refs/heads/0", "refs/heads/1"]]


def test_what_fails_leaves_nothing_and_the_next_goes_on(url: str) -> None:
    """Also what was written before the failure is not there."""
    database = prepared(url)

    async def run() -> list[list[str]]:
        try:
            with pytest.raises(IntegrityError):
                await database.write_inline(names, add_then_fail)
            return [await database.write_inline(names, add_next) for _ in range(2)]
        finally:
            await database.aclose()

    assert asyncio.run(run()) == [[], ["refs/heads/0"]]


def test_what_is_closed_leaves_no_file_open(tmp_path: Path) -> None:
    """However the connections were used, and as often as it is closed; Python 3.13 warns of each one left."""
    database = prepared(f"sqlite:///{tmp_path / 'used.db'}")

    async def run() -> None:
        await database.write_inline(names, add_next)
        with pytest.raises(IntegrityError):
            await database.write_inline(names, add_then_fail)
        await database.write_inline(names, add_next)
        with database.reading() as transaction:
            assert await database.read(names) == names(transaction)
        assert "used.db" in open_files(tmp_path)
        await database.aclose()

    asyncio.run(run())
    database.close()
    assert open_files(tmp_path) == set()


def test_a_file_that_is_no_database_is_told_and_closed(tmp_path: Path) -> None:
    """It is found out when the first connection is set up."""
    (tmp_path / "damaged.db").write_bytes(b"no database " * 1000)
    database = Database(f"sqlite:///{tmp_path / 'damaged.db'}")
    with pytest.raises(StoreUnavailable, match="is damaged: file is not a database") as told:
        database.migrate()
    database.close()
    assert open_files(tmp_path) == set()
    assert "restore it from a back-up" in str(told.value)


def test_a_server_that_is_away_is_told_and_found_again() -> None:
    """Before the transaction, and in the middle of it, where the commit is not answered."""
    with Postgres() as server:
        database = prepared(server.database())

        def add_and_lose_the_server(transaction: Connection, known: list[str]) -> None:
            server.stop()
            add_next(transaction, known)

        async def run() -> list[str]:
            try:
                await database.write_inline(names, add_next)
                with pytest.raises(StoreUnavailable):
                    await database.write_inline(names, add_and_lose_the_server)
                with pytest.raises(StoreUnavailable):
                    await database.write_inline(names, add_next)
                server.start()
                return await database.write_inline(names, add_next)
            finally:
                await database.aclose()

        assert asyncio.run(run()) == ["refs/heads/0"]
