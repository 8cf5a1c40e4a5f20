"""The webhooks that Pushgate has registered: what the last check found, and when the next is due.

A task is `register`, which creates or repairs the webhook, `check`, or `remove`. A connection has at most
one, and one process at a time works on it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy
from sqlalchemy import Text, case, cast, func, or_, select, update

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, SettingError
from gateway.store import connections, identities, redeliveries
from gateway.store.bulk_sql import among, upsert_rows
from gateway.store.connections import Connection
from gateway.store.due_tasks import DueTasks
from gateway.store.identities import Unsealed
from gateway.store.rows import from_row
from gateway.store.sources import Scope, former
from gateway.store.tables import sources, webhook_registrations

Task = Literal["register", "check", "remove"]

MAX_DUE_AHEAD = timedelta(days=1)
"""No check or lease is due later; a later time was set by a wrong clock."""

CHECKED_WITHIN = timedelta(days=1)
"""A webhook is checked several times a day; an older result says that no worker checks it."""

_TASKS = DueTasks(webhook_registrations, MAX_DUE_AHEAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What the last check found.

    `webhook` is the provider's id, `url` the webhook's URL; both are None if there is none of ours.
    `problem` is the result of the provider's last delivery, `reason` why the check failed. `registered_at` is
    when the webhook was last registered or repaired, `is_tested` whether that requested a test delivery.
    `advice` says what only a person can correct at the provider, as a sentence without a full stop.
    """

    webhook: str | None = None
    url: str | None = None
    differences: Sequence[str] = ()
    problem: str | None = None
    reason: str | None = None
    checked_at: datetime | None = None
    registered_at: datetime | None = None
    is_tested: bool | None = None
    advice: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A task that is due and was claimed until `due_at`, with what its API requests need.

    `scope` is that of a source. Without `identity`, `obstacle` is why the task cannot be carried out. A
    deleted connection has no secret. `replaces` has the ids of deleted sources, to which the webhook of a
    GitHub App may still be sent.
    """

    connection: Connection
    scope: Scope | Literal["repository"]
    task: Task
    due_at: datetime
    attempts: int
    known: Registration
    identity: Unsealed | None = None
    secret: str = field(default="", repr=False)
    obstacle: str | None = None
    replaces: Sequence[str] = ()

    @property
    def is_of_app(self) -> bool:
        """Whether the webhook is a GitHub App's own, which a source with an App has."""
        is_app = self.identity is not None and self.identity.identity.kind == "github-app"
        return is_app and self.connection.kind == "source"


def request(conn: sqlalchemy.Connection, connection: str, task: Task, *, now: datetime) -> None:
    """Make a task due now, in place of the connection's next one."""
    upsert_rows(conn, webhook_registrations, ("connection",), [(connection, task, now, 0, [])])


def request_removal(conn: sqlalchemy.Connection, connection: str, *, now: datetime) -> None:
    """Make the removal of a webhook due now, if one may be registered."""
    mine = webhook_registrations.c.connection == connection
    removal = {"task": "remove", "due_at": now, "attempts": 0}
    conn.execute(update(webhook_registrations).where(mine).values(**removal))
    redeliveries.forget(conn, connection)


def is_due(conn: sqlalchemy.Connection, *, now: datetime) -> bool:
    """Return whether a task is due. It waits for no writer."""
    return _TASKS.is_due(conn, now=now)


def claim(conn: sqlalchemy.Connection, keyring: Keyring, *, now: datetime, until: datetime) -> Claimed | None:
    """Claim a due task; None if no task is due."""
    row = _TASKS.claim(conn, now=now, until=until)
    if row is None:
        return None
    connection = connections.get_any(conn, row.connection)
    scope = conn.execute(select(sources.c.scope).where(sources.c.connection == row.connection)).scalar()
    claimed = Claimed(
        connection=connection,
        scope=scope or "repository",
        task=row.task,
        due_at=until,
        attempts=row.attempts,
        known=from_row(Registration, row),
    )
    return _with_credentials(conn, keyring, claimed)


def _with_credentials(conn: sqlalchemy.Connection, keyring: Keyring, claimed: Claimed) -> Claimed:
    """Return the claimed task with its identity and secret, or with the reason why it has none."""
    connection = claimed.connection
    if connection.identity is None:
        return replace(claimed, obstacle="the connection has no identity: set one")
    try:
        identity = identities.unseal(conn, keyring, connection.identity)
        live = connections.live_secrets(conn, keyring, connection.id)
    except (NotFound, SettingError) as error:
        return replace(claimed, obstacle=str(error))
    secret = live[0].value.decode() if live else ""
    claimed = replace(claimed, identity=identity, secret=secret)
    if claimed.is_of_app:
        return replace(claimed, replaces=former(conn, connection.provider))
    return claimed


def record(
    conn: sqlalchemy.Connection, claimed: Claimed, found: Registration, *, next_at: datetime, attempts: int
) -> None:
    """Store the outcome of a task. At `next_at`, a check is due, or after failures the task again."""
    mine = webhook_registrations.c.connection == claimed.connection.id
    outcome = {**asdict(found), "differences": list(found.differences)}
    conn.execute(update(webhook_registrations).where(mine).values(**outcome))
    task = claimed.task if attempts else "check"
    _end(conn, claimed, due_at=next_at, task=task, attempts=attempts)


def give_back(conn: sqlalchemy.Connection, claimed: Claimed, *, now: datetime) -> None:
    """Make a claimed task due again, for the next process, unless it has ended."""
    _end(conn, claimed, due_at=now)


def forget(conn: sqlalchemy.Connection, claimed: Claimed) -> None:
    """End the tasks of a connection, unless another was requested meanwhile."""
    redeliveries.forget(conn, claimed.connection.id)
    _TASKS.forget(conn, claimed.connection.id, claimed_until=claimed.due_at)


def of(conn: sqlalchemy.Connection, connection_ids: Sequence[str]) -> dict[str, Registration]:
    """Return what the last check of each connection found, of those that were requested to register."""
    rows = conn.execute(
        select(webhook_registrations).where(among(conn, webhook_registrations.c.connection, connection_ids))
    )
    return {row.connection: from_row(Registration, row) for row in rows}


WEBHOOK_STATES = ("ok", "differs", "failing", "unknown")
"""The results of checks, for metrics."""


def count_states(conn: sqlalchemy.Connection, *, now: datetime) -> dict[str, int]:
    """Return how many webhooks have each result of their last check.

    A webhook is `failing` if it could not be checked, or if the provider's last request to it failed, and
    `unknown` if it was not checked for a day.
    """
    table = webhook_registrations
    is_stale = or_(table.c.checked_at.is_(None), table.c.checked_at < now - CHECKED_WITHIN)
    state = case(
        (table.c.reason.is_not(None), "failing"),
        (is_stale, "unknown"),
        (cast(table.c.differences, Text) != "[]", "differs"),
        (table.c.problem.is_not(None), "failing"),
        else_="ok",
    )
    query = select(state, func.count()).where(table.c.task != "remove").group_by(state)
    counted = {row[0]: row[1] for row in conn.execute(query)}
    return {name: counted.get(name, 0) for name in WEBHOOK_STATES}


def _end(conn: sqlalchemy.Connection, claimed: Claimed, **values: object) -> None:
    _TASKS.end(conn, claimed.connection.id, claimed_until=claimed.due_at, **values)
