"""Measures the store: statements, commits, connections, and the wait for a thread.

Only a process that serves imports this: the supervisor of several processes must not create metrics before it
has set where they are shared.
"""

import time
from typing import Any

from sqlalchemy import Engine, Pool, event
from sqlalchemy.pool import QueuePool

from gateway.metrics import COMMIT_SECONDS, STATEMENT_SECONDS, STORE_CONNECTIONS, STORE_WAIT_SECONDS
from gateway.store.database import Database
from gateway.store.engine import Meter


def measure(database: Database) -> None:
    """Measure a database from now on."""
    database.meter = Meter(waited=STORE_WAIT_SECONDS.observe, committed=COMMIT_SECONDS.observe)
    for name, engine in database.engines().items():
        _measure_statements(engine)
        _count_connections(engine.pool, name)


def _measure_statements(engine: Engine) -> None:
    observe = STATEMENT_SECONDS.observe

    def begin(*given: Any) -> None:
        given[4].began_at = time.monotonic()

    def end(*given: Any) -> None:
        observe(time.monotonic() - given[4].began_at)

    # The fifth argument is the context of the execution.
    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)


def _count_connections(pool: Pool, name: str) -> None:
    if not isinstance(pool, QueuePool):
        return
    in_use, idle = STORE_CONNECTIONS.labels(name, "in_use"), STORE_CONNECTIONS.labels(name, "idle")

    def take(*_: Any) -> None:
        in_use.set(pool.checkedout())
        idle.set(pool.checkedin())

    def give_back(*_: Any) -> None:
        # The pool counts it as in use until after this call.
        in_use.set(pool.checkedout() - 1)
        idle.set(pool.checkedin() + 1)

    event.listen(pool, "checkout", take)
    event.listen(pool, "checkin", give_back)
