"""Notifications from what happens to what arrives: changes only, in batches, once."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from starlette.responses import PlainTextResponse

from gateway.crypto.keyring import Keyring
from gateway.errors import BrokerUnavailable
from gateway.messages.execution_status import ReportedState
from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.provider_apis.standard_webhook import new_secret
from gateway.store import identities, notification_channels, notification_states, runs, unexecuted
from gateway.store.database import Database
from gateway.store.identities import Identity
from gateway.store.notification_channels import Address, Channel
from gateway.store.notification_tables import notification_channels as channel_rows
from gateway.store.notification_tables import notifications as notification_rows
from gateway.store.notify import Subscription
from gateway.store.tables import connections as connection_rows
from gateway.store.tables import identities as identity_rows
from gateway.store.tables import reconciliations
from gateway.worker.notification_observer import NotificationObserver
from gateway.worker.notification_sender import NotificationSender
from testing import records
from testing.certificate import make_certificate
from testing.provider_apis.fake import serving
from testing.receivers import FakeReceiver, FakeSlack, FakeTeams, too_fast
from testing.records import NOW, A, B, C
from tests.store.requests import plan, push
from tests.store.test_runs import report

KEYRING = Keyring("k" * 32)
EVERYTHING: Any = ["run-failed", "run-recovered", "webhook-silent", "remote-refuses", "dead-letters"]
BASE = "https://pushgate.example"


@dataclass
class People:
    """A gateway with a connection, its observer, and what was told."""

    database: Database
    letters: int | None = 0

    async def count(self) -> int:
        """Return the number of dead letters."""
        if self.letters is None:
            raise BrokerUnavailable("the broker is down")
        return self.letters

    def observe(self) -> list[str]:
        """Observe as a process that has just started; return the titles of what is new."""
        observer = NotificationObserver(
            database=self.database, count_dead_letters=self.count, dead_queue="dead", base_url=BASE
        )
        with self.database.writing() as conn:
            before = conn.execute(notification_rows.select()).all()
        asyncio.run(observer.observe())
        with self.database.writing() as conn:
            after = conn.execute(notification_rows.select().order_by(notification_rows.c.seq)).all()
        return [row.body["title"] for row in after[len(before) :]]

    def add(self, kind: Any = "slack", *, url: str = "http://127.0.0.1:1/x", **changes: Any) -> Address:
        """Add a channel for everything."""
        values: dict[str, Any] = {
            "name": kind,
            "settings": {"host": "h"},
            "happenings": EVERYTHING,
            **changes,
        }
        channel = Channel(id=values["name"], kind=kind, created_at=NOW, updated_at=NOW, **values)
        address = Address(url=url, secret=new_secret() if kind == "webhook" else "")
        with self.database.writing() as conn:
            notification_channels.add(conn, KEYRING, channel, address)
        return address

    def push(self, before: str, after: str, *, delivery: str) -> str:
        """Push, and plan a request; return its id."""
        request = records.request(f"{delivery}-train", delivery=delivery, trigger="train")
        plan(self.database, push(self.database, delivery, before, after), request)
        return request.id

    def report(self, execution: str, state: ReportedState, sequence: int = 1, **more: Any) -> None:
        """Report what a runner says."""
        with self.database.writing() as conn:
            runs.record(conn, [report(execution, state, sequence, **more)], now=NOW)

    def reason(self, reason: str | None) -> None:
        """Let the last reconciliation of the connection have failed, or not."""
        with self.database.writing() as conn:
            conn.execute(update(reconciliations).values(reason=reason, tried_at=NOW))

    def sender(self) -> NotificationSender:
        """Return a sender."""
        return NotificationSender(
            database=self.database,
            keyring=KEYRING,
            wakeups=Subscription(),
            apis=ProviderApis(connector=CheckedAddresses(allow_loopback=True)),
        )

    def send(self) -> None:
        """Send all that waits, as if half a minute had passed."""
        past = datetime.now(UTC) - timedelta(seconds=1)
        waits = channel_rows.c.due_at.is_not(None)
        with self.database.writing() as conn:
            conn.execute(update(channel_rows).where(waits).values(due_at=past))

        async def send() -> None:
            sender = self.sender()
            while await sender.send_next():
                pass

        asyncio.run(send())

    def channel(self, name: str) -> Channel:
        """Return a channel."""
        with self.database.reading() as conn:
            return notification_channels.get(conn, name)


@pytest.fixture
def people(database: Database) -> People:
    """Return a gateway with a connection that has been read."""
    records.connection(database)
    people = People(database)
    people.reason(None)
    return people


@pytest.fixture
def slack(people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlack]:
    """Serve Slack, and add a channel there, of which nothing is to be told yet."""
    monkeypatch.setenv("SSL_CERT_FILE", str(make_certificate(tmp_path).authority))
    fake = FakeSlack()
    with serving(fake):
        people.add(url=fake.webhook)
        assert people.observe() == []
        yield fake


def test_only_changes_of_a_trigger_on_a_branch_are_told(people: People) -> None:
    """Also after a restart: each observation here is that of a new process."""
    people.add()
    before = people.push(A, B, delivery="d1")
    people.report(before, "failed", summary="before anybody wanted to know")
    assert people.observe() == []
    first = people.push(B, C, delivery="d2")
    people.report(first, "running")
    assert people.observe() == []
    people.report(first, "failed", 2, summary="loss is nan")
    assert people.observe() == ["train failed on main of acme/digits"]
    assert people.observe() == []
    second = people.push(C, A, delivery="d3")
    people.report(second, "rejected")
    assert people.observe() == []
    # A success of an earlier push shows nothing about this one.
    third = people.push(A, B, delivery="d4")
    people.report(third, "cancelled")
    assert people.observe() == []
    fourth = people.push(B, C, delivery="d5")
    people.report(fourth, "succeeded")
    assert people.observe() == ["train succeeds again on main of acme/digits"]
    people.report(people.push(C, B, delivery="d6"), "succeeded")
    assert people.observe() == []


def test_a_late_success_of_an_earlier_push_ends_no_failure(people: People) -> None:
    """Nor does it begin one."""
    people.add()
    people.observe()
    early, late = people.push(A, B, delivery="d1"), people.push(B, C, delivery="d2")
    people.report(late, "failed")
    assert people.observe() == ["train failed on main of acme/digits"]
    people.report(early, "succeeded")
    assert people.observe() == []


def test_a_push_that_could_not_be_planned_has_failed(people: People) -> None:
    """It recovers with the first success of any trigger on the branch."""
    people.add()
    people.observe()
    number = push(people.database, "d1", A, B)
    with people.database.writing() as conn:
        unexecuted.add_unplanned(
            conn, number, state="failed", reason="valohai.yaml has no steps", verdicts=(), planned=()
        )
    assert people.observe() == ["The push could not be fetched or executed on main of acme/digits"]
    people.report(people.push(B, C, delivery="d2"), "succeeded")
    assert people.observe() == ["train succeeds again on main of acme/digits"]


def test_conditions_of_connections_are_told_when_they_begin_and_end(people: People) -> None:
    """What was the case before anybody wanted to know is not; a deleted connection ends without a word."""
    people.reason("the remote cannot be fetched: access was denied (git: fatal: …)")
    people.add()
    assert people.observe() == []
    people.reason(None)
    assert people.observe() == ["Pushgate can read acme/digits again"]
    people.reason("the remote cannot be fetched: access was denied (git: fatal: …)")
    assert people.observe() == ["Pushgate cannot read acme/digits"]
    assert people.observe() == []
    # A push that reconciliation has found, and whose webhook never arrived.
    push(people.database, "d1", A, B)
    with people.database.writing() as conn:
        conn.execute(update(reconciliations).values(recovered="d1"))
    assert people.observe() == ["No webhooks arrive from acme/digits"]
    with people.database.writing() as conn:
        conn.execute(update(connection_rows).values(deleted_at=NOW))
    assert people.observe() == []


def test_an_identity_that_is_refused_is_told_for_its_connections(people: People) -> None:
    """The provider refuses the token at its check, although the last fetch succeeded."""
    people.add()
    people.observe()
    bot: Any = {"id": "i1", "name": "bot", "provider": "github", "kind": "token", "user": None}
    bot |= {"settings": {}, "api_url": None, "expires_at": None, "created_at": NOW, "updated_at": NOW}
    with people.database.writing() as conn:
        identities.add(conn, KEYRING, Identity(**bot), "token")
        conn.execute(update(connection_rows).values(identity="i1"))
        conn.execute(update(identity_rows).values(reason="the token is revoked"))
    assert people.observe() == ["Pushgate cannot read acme/digits"]


def test_dead_letters_are_told_when_there_are_some_and_when_they_double(people: People) -> None:
    """Not each one, and nothing while the broker is down."""
    people.add()
    told = []
    for letters in (0, 1, 1, None, 2, 3, 4, 1, 0, 1):
        people.letters = letters
        told.append(people.observe())
    assert [titles[0][:14] if titles else "" for titles in told] == [
        "",
        "1 dead letter ",
        "",
        "",
        "2 dead letters",
        "",
        "4 dead letters",
        "",
        "",
        "1 dead letter ",
    ]


def test_a_channel_gets_what_it_wants(people: People) -> None:
    """By what happens, and by the names of connections and projects."""
    people.add(name="failures", happenings=["run-failed"])
    people.add(name="ours", connections=["acme/*"], projects=["digits"])
    people.add(name="theirs", connections=["other/*"])
    people.add(name="no digits", projects=["!digits"])
    people.observe()
    first = people.push(A, B, delivery="d1")
    people.report(first, "failed")
    people.letters = 1
    assert len(people.observe()) == 5
    people.report(people.push(B, C, delivery="d2"), "succeeded")
    people.observe()
    with people.database.reading() as conn:
        rows = conn.execute(notification_rows.select()).all()
    told: dict[str, list[str]] = {}
    for row in rows:
        told.setdefault(row.channel, []).append(row.body["happening"])
    assert told == {
        "failures": ["run-failed"],
        "ours": ["run-failed", "dead-letters", "run-recovered"],
        "theirs": ["dead-letters"],
        "no digits": ["dead-letters"],
    }


def test_without_channels_nothing_is_kept(people: People) -> None:
    """Who adds one later hears only of later changes."""
    people.add()
    people.observe()
    people.report(people.push(A, B, delivery="d1"), "failed")
    assert people.observe() != []
    with people.database.writing() as conn:
        notification_channels.remove(conn, "slack")
    people.observe()
    with people.database.reading() as conn:
        assert notification_states.cursor(conn) is None
        assert notification_states.all_states(conn) == {}


def test_what_waits_arrives_in_one_message(people: People, slack: FakeSlack) -> None:
    """With links to the pages. The other kinds of channels get the same."""
    teams, receiver = FakeTeams(), FakeReceiver()
    with serving(teams), serving(receiver):
        people.add("teams", url=teams.webhook)
        receiver.secret = people.add("webhook", url=receiver.webhook).secret
        people.report(people.push(A, B, delivery="d1"), "failed", summary="loss is nan")
        people.letters = 2
        people.observe()
        people.send()
        people.send()
    [message] = slack.messages
    assert f"<{BASE}/deliveries/d1|train failed on main of acme/digits>" in message["text"]
    assert "Commit bbbbbbbbbbbb: loss is nan" in message["text"]
    assert "2 dead letters" in message["text"]
    assert len(teams.cards) == 1
    [received] = receiver.received.values()
    [first, second] = received["data"]["notifications"]
    assert (first["happening"], first["connection"]["name"], first["commit"]) == (
        "run-failed",
        "acme/digits",
        B,
    )
    assert (second["happening"], second["count"]) == ("dead-letters", 2)
    for name in ("slack", "teams", "webhook"):
        assert people.channel(name).sent_at is not None


def test_an_outage_delays_a_message_and_a_refusal_ends_it(people: People, slack: FakeSlack) -> None:
    """Slack's limit is obeyed. A channel that was archived shows why, and the next message is tried again."""
    people.report(people.push(A, B, delivery="d1"), "failed")
    people.observe()
    slack.instead.extend([PlainTextResponse("rollup_error", 500), too_fast(600)])
    people.send()
    assert people.channel("slack").problem == "127.0.0.1 answered 500; try again later"
    people.send()
    assert "they go on in 600 s" in (people.channel("slack").problem or "")
    with people.database.reading() as conn:
        due_at = conn.execute(channel_rows.select()).one().due_at
    assert due_at - datetime.now(UTC) > timedelta(seconds=590)
    slack.is_archived = True
    people.send()
    assert people.channel("slack").problem == "127.0.0.1 answered 410 (channel_is_archived)"
    slack.is_archived = False
    people.report(people.push(B, C, delivery="d2"), "succeeded")
    people.observe()
    people.send()
    [message] = slack.messages
    assert "succeeds again" in message["text"]
    assert people.channel("slack").problem is None
    assert [one.status for one in slack.requests] == [500, 429, 410, 200]
