"""Leading: one process at a time holds an advisory lock of PostgreSQL, or that of a publishing lane.

All locks of a process are held over one connection, and end with it.
https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
"""

import threading
import time

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import DBAPIError

from gateway.store.publishing_lanes import PublishingLane

# Longer than a relay continues to send after it has read requests: see gateway/publish/relay.py.
TAKE_OVER_SECONDS = 2.0

_HOLDERS = text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND classid = CAST(:high AS bigint) AND objid = CAST(:low AS bigint)"
)


class Leading:
    """The locks that this process holds on one server."""

    def __init__(self, engine: Engine) -> None:
        """Hold nothing yet."""
        self._engine = engine
        self._alone = threading.Lock()
        self._connection: Connection | None = None
        # Since when, by lock and lane.
        self._since: dict[tuple[int, PublishingLane], float] = {}
        # The shared locks of a process that relays in lanes.
        self._candidacies: set[int] = set()

    def holds(self, lock: int, lane: PublishingLane) -> bool:
        """Return whether this process held the lock when it last looked."""
        return (lock, lane) in self._since

    def hold(self, lock: int, lane: PublishingLane) -> float | None:
        """Return for how many seconds this process has held the lock; None if it does not hold it.

        Take it if no other process does, up to this process's share of the lanes; give up what exceeds it.
        """
        with self._alone:
            connection = self._usable()
            try:
                seconds = self._decide(connection, lock, lane)
                connection.commit()
            except BaseException:
                # The connection may hold the lock nevertheless, so it must not return to the pool.
                self.drop()
                raise
            self._close_unneeded(connection)
            return seconds

    def step_down(self, lock: int, lane: PublishingLane) -> None:
        """Give up a lane, and this process's share, until the process asks again."""
        with self._alone:
            if self._connection is None:
                return
            connection = self._usable()
            try:
                if self.holds(lock, lane):
                    self._release(connection, lock, lane)
                if (key := lane.candidates_key(lock)) in self._candidacies:
                    connection.execute(select(func.pg_advisory_unlock_shared(key)))
                    self._candidacies.remove(key)
                connection.commit()
            except BaseException:
                self.drop()
                raise
            self._close_unneeded(connection)

    def drop(self) -> None:
        """Close the connection, which ends all locks."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
        self._connection = None
        self._since.clear()
        self._candidacies.clear()

    def _usable(self) -> Connection:
        """Return the connection that holds the locks; another one, without locks, if it was lost.

        The locks of a standby do not count: the primary has its own.
        """
        if self._connection is not None:
            try:
                is_standby = self._connection.execute(select(func.pg_is_in_recovery())).scalar_one()
                self._connection.commit()
            except DBAPIError:
                self.drop()
            else:
                if is_standby:
                    self.drop()
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _close_unneeded(self, connection: Connection) -> None:
        """Return the connection to the pool if it holds no lock."""
        if not self._since and not self._candidacies:
            connection.close()
            self._connection = None

    def _decide(self, connection: Connection, lock: int, lane: PublishingLane) -> float | None:
        room = 1 if lane.of == 1 else self._room(connection, lock, lane)
        if self.holds(lock, lane):
            if room >= 0:
                return time.monotonic() - self._since[lock, lane]
            self._release(connection, lock, lane)
        elif room > 0 and _take(connection, lock, lane):
            self._since[lock, lane] = time.monotonic()
            return 0.0
        return None

    def _room(self, connection: Connection, lock: int, lane: PublishingLane) -> int:
        """Return how many more lanes this process may take; negative if it has too many."""
        key = lane.candidates_key(lock)
        if key not in self._candidacies:
            connection.execute(select(func.pg_advisory_lock_shared(key)))
            self._candidacies.add(key)
        # The view shows a key as two halves of 32 bits.
        halves = {"high": key >> 32, "low": key & 0xFFFFFFFF}
        processes = connection.execute(_HOLDERS, halves).scalar_one()
        mine = sum(held == lock and one.of == lane.of for held, one in self._since)
        # Rounded up, so that the shares of all processes cover all lanes.
        return -(-lane.of // int(processes)) - mine

    def _release(self, connection: Connection, lock: int, lane: PublishingLane) -> None:
        del self._since[lock, lane]
        connection.execute(select(func.pg_advisory_unlock(lane.key(lock))))
        _unshare(connection, lane.shared_keys(lock))


def may_lead(transaction: Connection, lock: int, lane: PublishingLane) -> bool:
    """Take the lock until the transaction ends; return whether that was possible."""
    shared = [func.pg_try_advisory_xact_lock_shared(key) for key in lane.shared_keys(lock)]
    own = func.pg_try_advisory_xact_lock(lane.key(lock))
    return all(transaction.execute(select(*shared, own)).one())


def _take(connection: Connection, lock: int, lane: PublishingLane) -> bool:
    """Take the locks of a lane, all or none; return whether no other process has one."""
    # Its own first: while another process leads the lane, that is the only statement.
    own = lane.key(lock)
    if not connection.execute(select(func.pg_try_advisory_lock(own))).scalar():
        return False
    shared: list[int] = []
    for key in lane.shared_keys(lock):
        if not connection.execute(select(func.pg_try_advisory_lock_shared(key))).scalar():
            _unshare(connection, shared)
            connection.execute(select(func.pg_advisory_unlock(own)))
            return False
        shared.append(key)
    return True


def _unshare(connection: Connection, keys: list[int]) -> None:
    for key in keys:
        connection.execute(select(func.pg_advisory_unlock_shared(key)))
