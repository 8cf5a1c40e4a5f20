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
