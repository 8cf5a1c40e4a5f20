"""Connections: which may stand side by side, and what becomes of a deleted one's pushes."""

from datetime import timedelta
from typing import Any

import pytest

from gateway.errors import Conflict
from gateway.store import connections, deliveries, work
from gateway.store.claims import Claims
from gateway.store.database import Database
from tests.store import make
from tests.store.make import NOW, A, B, arrival, move


def add(database: Database, connection_id: str, *, is_forced: bool = False, **changes: Any) -> str:
    """Connect a repository as the API does; return its name."""
    wanted = make.made(connection_id, **changes)
    with database.writing() as transaction:
        kept = connections.add_another(transaction, wanted, is_named="name" in changes, is_forced=is_forced)
    return kept.name


def test_a_repository_is_connected_to_a_project_once(database: Database) -> None:
    """By whichever of its URLs; more often only by force, and to other projects as it is."""
    assert add(database, "c1") == "acme/digits"
    with pytest.raises(Conflict, match=r"connected to project digits already, as acme/digits \(c1\)"):
        add(database, "c2", url="git@github.example:acme/digits.git")
    assert add(database, "c2", is_forced=True) == "acme/digits (digits)"
    assert add(database, "c3", is_forced=True) == "acme/digits (digits) 2"
    assert add(database, "c4", project="vision") == "acme/digits (vision)"


def test_a_name_is_given_once(database: Database) -> None:
    """Also when it is changed; a deleted connection's name is free, and an old duplicate goes on."""
    add(database, "c1", name="digits")
    elsewhere: dict[str, Any] = {"url": "https://github.example/acme/other.git"}
    with pytest.raises(Conflict, match="the name digits is taken, by connection c1"):
        add(database, "c2", name="digits", is_forced=True, **elsewhere)
    add(database, "c2", name="other", **elsewhere)
    with pytest.raises(Conflict, match="taken"), database.writing() as transaction:
        connections.change(transaction, make.made("c2", name="digits", **elsewhere))
    make.connection(database, "old", name="digits")
    with database.writing() as transaction:
        connections.change(transaction, make.made("old", name="digits", yaml_path="other.yaml"))
        connections.remove(transaction, "c1", now=NOW)
        connections.remove(transaction, "old", now=NOW)
        connections.change(transaction, make.made("c2", name="digits", **elsewhere))


def test_a_deleted_connection_leaves_nothing_pending(database: Database) -> None:
    """Its pushes end with the reason, and no longer count as waiting; a worker that had them goes on well."""
    make.connection(database)
    sent = arrival(move(A, B))
    with database.writing() as transaction:
        deliveries.record(transaction, [sent])
        Claims(process="p1").claim(transaction, owner="w1", now=NOW, until=NOW + timedelta(seconds=60))
        [update] = work.pending(transaction, "c1", limit=9)
        connections.remove(transaction, "c1", now=NOW)
        work.tell(transaction, [update], "fetching")
        work.release(transaction, "c1", owner="w1", now=NOW)
        backlog = work.backlog(transaction)
        [ended] = deliveries.get(transaction, sent.id).updates
    assert (backlog.updates, backlog.oldest) == (0, None)
    assert (ended.state, ended.reason, ended.settled_at) == ("failed", "the connection was deleted", NOW)
