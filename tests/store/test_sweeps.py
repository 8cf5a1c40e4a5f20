"""Which remotes cannot be read."""

from datetime import timedelta

from gateway.store import connections, sweeps
from gateway.store.database import Database
from gateway.store.sweeps import Failing
from tests.store import make
from tests.store.make import NOW


def test_only_those_are_failing_whose_last_sweep_has_failed(database: Database) -> None:
    """By name; not those that answer again, and none that was deleted."""
    later = NOW + timedelta(minutes=5)
    for which in ("well", "again", "gone", "broken", "also"):
        make.connection(database, which, name=f"acme/{which}")
    with database.writing() as transaction:
        while (sweep := sweeps.claim(transaction, now=NOW, until=later)) is not None:
            if sweep.connection != "well":
                sweeps.fail(transaction, sweep, f"{sweep.connection} hangs", next_at=later)
            if sweep.connection == "again":
                found = make.arrival(connection="again", source="sweep")
                sweeps.record(transaction, sweep, found, next_at=later)
        connections.remove(transaction, "gone", now=NOW)
        found_failing = sweeps.failing(transaction, limit=10)
        assert sweeps.failing(transaction, limit=1) == found_failing[:1]
    assert found_failing == [
        Failing(connection=which, name=f"acme/{which}", reason=f"{which} hangs", due_at=later)
        for which in ("also", "broken")
    ]


def test_when_a_look_at_a_remote_was_tried_is_kept(database: Database) -> None:
    """Whether it succeeded or not: whoever asked for one knows by that which one was theirs."""
    make.connection(database)
    later = NOW + timedelta(minutes=5)
    with database.writing() as transaction:
        assert sweeps.states(transaction, ["c1"])["c1"].tried_at is None
        sweep = sweeps.claim(transaction, now=NOW, until=later)
        assert sweep is not None
        sweeps.ask(transaction, "c1", now=NOW + timedelta(seconds=1))
        sweeps.fail(transaction, sweep, "it hangs", next_at=later)
        assert sweeps.states(transaction, ["c1"])["c1"].tried_at == NOW
        sweep = sweeps.claim(transaction, now=later, until=later)
        assert sweep is not None
        sweeps.record(transaction, sweep, make.arrival(source="sweep"), next_at=later)
        assert sweeps.states(transaction, ["c1"])["c1"].tried_at == later
