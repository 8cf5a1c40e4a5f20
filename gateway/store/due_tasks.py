"""Tasks with a due time, at most one for each connection or other key, and their claims.

A claim moves the due time to the end of its lease, so that one process at a time works on a task, and the
task of a process that died becomes due again. What a process records at the end leaves a due time alone that
was set meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, Row, Table, and_, delete, select, update


@dataclass(frozen=True, slots=True)
class DueTasks:
    """The tasks of a table, by its column `due_at` and the columns of its `key`.

    No task or lease is due later than `longest` from now; a later time was set by a wrong clock.
    """

    table: Table
    longest: timedelta
    key: tuple[str, ...] = ("connection",)

    def is_due(self, conn: sqlalchemy.Connection, *where: ColumnElement[bool], now: datetime) -> bool:
        """Return whether a task is due that fulfils `where`. It waits for no writer."""
        due_at = select(self.table.c.due_at)
        queries = (due_at.where(condition, *where).limit(1) for condition in self._conditions(now))
        return any(conn.execute(query).first() is not None for query in queries)

    def claim(
        self,
        conn: sqlalchemy.Connection,
        *where: ColumnElement[bool],
        now: datetime,
        until: datetime,
        first: ColumnElement[bool] | None = None,
    ) -> Row[Any] | None:
        """Claim the task that has been due the longest until `until`, and return its row as it was before.

        Only tasks that fulfil `where` are claimed; those that fulfil `first` come before others.
        """
        order = [self.table.c.due_at] if first is None else [first.desc(), self.table.c.due_at]
        # One condition at a time: for both, the databases would sort all tasks that are due.
        for condition in self._conditions(now):
            query = select(self.table).where(condition, *where).order_by(*order).limit(1)
            row = conn.execute(query.with_for_update(skip_locked=True)).one_or_none()
            if row is not None:
                mine = self.has_key(*tuple(getattr(row, name) for name in self.key))
                conn.execute(update(self.table).where(mine).values(due_at=until))
                return row
        return None

    def end(self, conn: sqlalchemy.Connection, *key: str, claimed_until: datetime, **values: Any) -> bool:
        """Set `values`, and return True, unless another due time was set since the claim."""
        mine = self._claimed(key, claimed_until)
        return conn.execute(update(self.table).where(mine).values(**values)).rowcount == 1

    def forget(self, conn: sqlalchemy.Connection, *key: str, claimed_until: datetime) -> None:
        """Delete a task, unless another due time was set since the claim."""
        conn.execute(delete(self.table).where(self._claimed(key, claimed_until)))

    def has_key(self, *key: str) -> ColumnElement[bool]:
        """Return the condition of the task with a key."""
        return and_(*(self.table.c[name] == value for name, value in zip(self.key, key, strict=True)))

    def _claimed(self, key: tuple[str, ...], until: datetime) -> ColumnElement[bool]:
        return and_(self.has_key(*key), self.table.c.due_at == until)

    def _conditions(self, now: datetime) -> Sequence[ColumnElement[bool]]:
        """Return the conditions of a due task, and of one that a wrong clock has postponed too far."""
        return self.table.c.due_at <= now, self.table.c.due_at > now + self.longest
