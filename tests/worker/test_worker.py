"""The worker on a real store, with stages of the tests."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy
from structlog.testing import capture_logs

from gateway.errors import (
    FetchError,
    Gone,
    ObjectUnusable,
    RemoteRefuses,
    RemoteSilent,
    RemoteUnavailable,
)
from gateway.metrics import SETTLED
from gateway.store import accept, connections, deliveries, events, work_queue
from gateway.store.claims import Claims, SilentHosts
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.events import StoredEvent
from gateway.store.notify import Notifier
from gateway.store.tables import leases, ref_updates
from gateway.store.work_queue import PendingUpdate, Settlement
from gateway.worker.announcer import Announcer
from gateway.worker.worker import Stages, Worker
from testing.records import arrival, connection, move
from testing.service import wait_for
from tests.store.claiming import next_one
from tests.worker.stages import CLAIMS, Scripted, pushed, states, worked


class SlowRemote:
    """Stages whose fetch reports its progress, and ends once the delivery shows it."""

    def __init__(self, database: Database) -> None:
        """Read from this store."""
        self._database = database
        self.seen = ""

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Wait until the delivery shows the progress."""
        assert connection.id == updates[0].connection
        while not self.seen.startswith("fetching: "):
            progress("receiving objects 3 %, 1.00 MiB")
            progress("receiving objects 45 %, 12.00 MiB")
            await asyncio.sleep(0.02)
            found = await self._database.read(_newest)
            self.seen = found.updates[0].reason or ""
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Run nothing."""
        return Settlement(update=update, state="planned", reason=f"fetched for {connection.name}")


def _newest(conn: Any) -> deliveries.RecordedDelivery:
    return deliveries.page(conn, connection=None, verdict=None, before=None, limit=1)[0]


def test_a_long_fetch_is_shown_on_the_delivery(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delivery shows percent and bytes; afterwards it shows how the update ended."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as conn:
        accept.record(conn, [arrival(move("a" * 40, "b" * 40), received_at=now)])

    def newest_reason() -> str | None:
        with database.reading() as conn:
            return _newest(conn).updates[0].reason

    def is_settled() -> bool:
        with database.reading() as conn:
            return _newest(conn).updates[0].state != "pending"

    monkeypatch.setattr("gateway.worker.worker._PROGRESS_SECONDS", 0.02)
    stages = SlowRemote(database)
    asyncio.run(worked(database, stages, is_settled))
    assert stages.seen == "fetching: receiving objects 45 %, 12.00 MiB"
    assert newest_reason() == "fetched for acme/digits"


class Refusing:
    """Stages that fail: the remote is down, or no longer has the commit."""

    def __init__(self, error: FetchError) -> None:
        """Fail so."""
        self._error = error

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Fail, unless it is the commit that is gone."""
        progress(f"{connection.id}: {len(updates)}")
        if not isinstance(self._error, Gone):
            raise self._error
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Fail."""
        assert connection.id == update.connection
        raise self._error


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Gone("the remote no longer has it"), "gone", "the remote no longer has it"),
        (RemoteUnavailable("no answer"), "failed", "given up after 3 days: no answer"),
    ],
)
def test_what_is_gone_or_given_up_is_reported(
    database: Database, error: FetchError, state: str, reason: str
) -> None:
    """The event has the reason that the delivery shows."""
    long_ago = datetime.now(UTC) - timedelta(days=4)
    connection(database, created_at=long_ago, updated_at=long_ago)
    with database.writing() as conn:
        accept.record(conn, [arrival(move("a" * 40, "b" * 40), received_at=long_ago)])

    def written() -> list[StoredEvent]:
        with database.reading() as conn:
            return events.pending(conn, limit=10, without=())

    async def scenario() -> None:
        notifier = Notifier()
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=Refusing(error),
            wakeups=notifier.subscribe(),
            notify=notifier.notify,
            announce=Announcer(names=("delivery.failed",)),
        )
        running = asyncio.create_task(worker.run())
        await asyncio.to_thread(wait_for, written, "an event is written")
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(scenario())
    [event] = written()
    body = json.loads(event.body)
    assert (event.name, body["state"], body["reason"]) == ("delivery.failed", state, reason)
    assert (body["commit"], body["before"], body["pushed_by"]) == ("b" * 40, "a" * 40, "ada")
    with database.reading() as conn:
        [update] = _newest(conn).updates
    assert (update.state, update.reason) == (state, reason)


class Overtaken:
    """Stages during whose first fetch the connection is changed or deleted."""

    def __init__(
        self, database: Database, change: Callable[[sqlalchemy.Connection, Connection], None]
    ) -> None:
        """Apply `change` to this store."""
        self._database = database
        self._change = change
        self.urls: list[str] = []

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Wait until the change is made."""
        assert updates
        progress("")
        self.urls.append(connection.url)
        if len(self.urls) == 1:
            await self._database.write(lambda conn: self._change(conn, connection))
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Run nothing; the reason names the connection."""
        return Settlement(update=update, state="planned", reason=f"for {connection.name}")


OURS, OTHER = "https://github.example/acme/digits.git", "https://github.example/acme/letters.git"


ANOTHER = "https://github.example/acme/apples.git"


@pytest.mark.parametrize(
    ("change", "ended", "urls"),
    [
        (lambda t, c: connections.change(t, replace(c, name="new")), "for new", [OURS]),
        (lambda t, c: connections.change(t, replace(c, url=OTHER)), "for acme/digits", [OURS, OTHER]),
        (lambda t, c: connections.change(t, replace(c, url=ANOTHER)), "for acme/digits", [OURS, ANOTHER]),
        (lambda t, c: connections.remove(t, c.id, now=c.created_at), "the connection was deleted", [OURS]),
    ],
    ids=["renamed", "moved", "moved elsewhere", "deleted"],
)
def test_what_is_changed_during_a_fetch_counts(
    database: Database,
    change: Callable[[sqlalchemy.Connection, Connection], None],
    ended: str,
    urls: list[str],
) -> None:
    """After a change or a deletion was confirmed, nothing is planned by the earlier state."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as conn:
        accept.record(conn, [arrival(move("a" * 40, "b" * 40), received_at=now)])

    def settled() -> str | None:
        with database.reading() as conn:
            [update] = _newest(conn).updates
        return update.reason if update.state != "pending" else None

    stages = Overtaken(database, change)
    asyncio.run(worked(database, stages, settled))
    assert (settled(), stages.urls) == (ended, urls)


def test_a_refusal_is_the_end_of_its_own_push_only(database: Database) -> None:
    """Whether the fetch or the planning fails; the other updates continue at once."""
    refused = ObjectUnusable("git refuses it")
    stages = Scripted(bad=[refused])
    pushed(database, "bad", "main")
    asyncio.run(worked(database, stages, lambda: states(database)["main"][0] == "planned"))
    assert states(database) == {"bad": ("failed", "git refuses it"), "main": ("planned", "nothing runs")}
    assert stages.planned == ["main"]


def test_an_outage_that_is_one_pushs_own_puts_off_no_other(database: Database) -> None:
    """Such as a submodule's host. The ref keeps its order; other refs continue, and so do later ones."""
    away = RemoteUnavailable("submodule lib: no answer")
    stages = Scripted(topic=[away] * 1000)
    pushed(database, "topic", "topic", "main")
    asyncio.run(worked(database, stages, lambda: states(database)["main"][0] == "planned"))
    with database.reading() as conn:
        waiting = work_queue.pending(conn, "c1", limit=10)
        ready = work_queue.pending(conn, "c1", limit=10, now=datetime.now(UTC))
    assert next_one(database, CLAIMS, datetime.now(UTC)) is None
    assert next_one(database, CLAIMS, datetime.now(UTC) + timedelta(minutes=15)) == "c1"
    # A clock that once ran ahead has delayed it beyond the longest pause.
    assert next_one(database, CLAIMS, datetime.now(UTC) - timedelta(minutes=20)) == "c1"
    assert [(one.name, one.tries) for one in waiting] == [("topic", 1), ("topic", 0)]
    assert ready == []
    reason = "submodule lib: no answer"
    assert states(database)["topic"] == ("pending", f"waiting for the previous push: {reason}")
    # A push that arrives during the delay finds the connection free.
    with database.writing() as conn:
        later = move("a" * 40, "b" * 40, ref="refs/heads/later")
        accept.record(conn, [arrival(later, received_at=datetime.now(UTC))])
    asyncio.run(worked(database, stages, lambda: states(database)["later"][0] == "planned"))
    with database.writing() as conn:
        work_queue.make_due(conn, "c1", now=datetime.now(UTC))
        assert len(work_queue.pending(conn, "c1", limit=10, now=datetime.now(UTC))) == 2


def test_what_was_put_off_is_tried_again(database: Database) -> None:
    """Then it ends, and later pushes to its ref follow in order."""
    stages = Scripted(topic=[RemoteUnavailable("no answer")])
    pushed(database, "topic", "topic")
    asyncio.run(worked(database, stages, lambda: len(stages.planned) == 3))
    assert stages.planned == ["topic", "topic", "topic"]
    asyncio.run(worked(database, stages, lambda: states(database)["topic"][0] == "planned"))


def test_a_commit_that_is_not_yet_there_is_looked_for_again(database: Database) -> None:
    """A webhook can be faster than the provider's replication: only a commit that stays missing is gone."""
    stages = Scripted(late=[Gone("no such commit")], never=[Gone("it is gone")] * 1000)
    pushed(database, "late", "never")
    done = lambda: states(database)["late"][0] == "planned"  # noqa: E731
    asyncio.run(worked(database, stages, done, patience=timedelta(minutes=10)))
    assert states(database)["never"] == ("pending", "it is gone")
    assert stages.planned.count("late") == 2
    with database.writing() as conn:
        work_queue.make_due(conn, "c1", now=datetime.now(UTC))
    ended = lambda: states(database)["never"] == ("gone", "it is gone")  # noqa: E731
    asyncio.run(worked(database, stages, ended, patience=timedelta(0)))


class Failing(Scripted):
    """Stages whose remote is down for a while."""

    def __init__(self, *errors: Exception) -> None:
        """Fail so often."""
        super().__init__()
        self._errors = list(errors)

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Fail while there are errors left."""
        if self._errors:
            raise self._errors.pop(0)
        return await super().fetch(connection, updates, progress)


def test_after_a_success_failures_are_counted_from_the_start(database: Database) -> None:
    """An outage of last week does not make the next one's first pause long."""
    stages = Failing(RemoteUnavailable("no answer"))

    def attempts() -> int:
        with database.reading() as conn:
            return work_queue.attempts(conn, "c1")

    pushed(database, "main")
    asyncio.run(worked(database, stages, attempts))
    asyncio.run(
        worked(database, stages, lambda: states(database)["main"][0] == "planned" and attempts() == 0)
    )


@pytest.mark.parametrize(
    "stages",
    [Failing(*[RemoteUnavailable("no answer")] * 1000), Scripted(main=[RemoteUnavailable("no answer")])],
)
def test_pushes_that_are_given_up_are_counted_and_logged(database: Database, stages: Stages) -> None:
    """Like all other pushes that end."""
    counted = SETTLED.labels("failed")._value.get()  # noqa: SLF001 - there is no other way to read it
    pushed(database, "main", received_at=datetime.now(UTC) - timedelta(days=4))
    with capture_logs() as logs:
        asyncio.run(worked(database, stages, lambda: states(database)["main"][0] == "failed"))
    reason = "given up after 3 days: no answer"
    assert [(one["state"], one["reason"]) for one in logs if one["event"] == "push settled"] == [
        ("failed", reason)
    ]
    assert SETTLED.labels("failed")._value.get() == counted + 1  # noqa: SLF001 - the same


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (RemoteSilent("no answer in time"), [False, True]),
        (RemoteRefuses("no such repository"), [True, True]),
        (RemoteUnavailable("this may be anything"), [True]),
    ],
)
def test_it_is_recorded_whether_a_git_host_answers(
    database: Database, error: FetchError, answers: list[bool]
) -> None:
    """Hosts that hang get few places; a host that denies access counts as answering."""
    pushed(database, "main")
    observed: list[bool] = []

    class Observed(SilentHosts):
        def record(self, url: str, *, answers: bool, now: datetime) -> None:
            observed.append(answers)
            super().record(url, answers=answers, now=now)

    def done() -> bool:
        with database.writing() as conn:
            work_queue.make_due(conn, "c1", now=datetime.now(UTC))
        return states(database)["main"][0] == "planned"

    claims = Claims(process="p", silent=Observed())
    asyncio.run(worked(database, Failing(error), done, claims=claims))
    assert observed == answers


def test_a_bug_in_planning_is_the_end_of_its_own_push(database: Database) -> None:
    """The delivery shows the error's name; the log has the rest."""
    stages = Scripted(odd=[ValueError("secret")])
    pushed(database, "odd", "main")
    asyncio.run(worked(database, stages, lambda: states(database)["main"][0] == "planned"))
    assert states(database)["odd"] == ("failed", "internal error (ValueError): see the log")


@pytest.mark.parametrize("tries", [0, 3])
def test_a_remote_that_is_away_is_tried_again_after_twice_the_time(database: Database, tries: int) -> None:
    """A second at first; the log has the number of the try and how many pushes wait."""
    pushed(database, "main", "topic")
    with database.writing() as conn:
        conn.execute(leases.update().values(attempts=tries))
    stages = Failing(RemoteUnavailable("no answer"))
    reasons = lambda: {reason for _, reason in states(database).values()} == {"no answer"}  # noqa: E731
    with capture_logs() as logs:
        asyncio.run(worked(database, stages, reasons, poll_seconds=3600))
    [line] = [one for one in logs if one["event"] == "fetch postponed"]
    assert (line["waiting"], line["failed_tries"]) == (2, tries + 1)
    delay = 2**tries
    assert 0.75 * delay - 0.1 <= line["next_try_in_s"] <= delay
    with database.reading() as conn:
        lease = conn.execute(leases.select()).one()
    assert lease.attempts == tries + 1
    assert timedelta(0) < lease.due_at - datetime.now(UTC) <= timedelta(seconds=delay)


@pytest.mark.parametrize("whole", [True, False], ids=["repository", "submodule"])
def test_an_outage_of_less_than_three_days_is_no_end(database: Database, *, whole: bool) -> None:
    """Whether the repository is unavailable, or something that only one push needs."""
    error = RemoteUnavailable("no answer")
    stages = Failing(error) if whole else Scripted(main=[error])
    pushed(database, "main", received_at=datetime.now(UTC) - timedelta(days=3) + timedelta(hours=1))
    asyncio.run(worked(database, stages, lambda: states(database)["main"][1], poll_seconds=3600))
    assert states(database)["main"] == ("pending", "no answer")


def test_what_one_push_alone_needs_is_looked_for_after_twice_the_time(database: Database) -> None:
    """As with a repository."""
    pushed(database, "main")
    with database.writing() as conn:
        conn.execute(ref_updates.update().values(tries=4))
    stages = Scripted(main=[RemoteUnavailable("no answer")])
    with capture_logs() as logs:
        asyncio.run(worked(database, stages, lambda: states(database)["main"][1], poll_seconds=3600))
    [line] = [one for one in logs if one["event"] == "push postponed"]
    assert line["failed_tries"] == 5
    wait = datetime.fromisoformat(line["next_try_at"]) - datetime.now(UTC)
    assert 8 < wait.total_seconds() <= 16
