"""Verdicts on commits: the provider ends with the newest, by as few writes as that needs."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, format_span_id
from sqlalchemy import select, update
from starlette.responses import Response

from gateway.crypto.keyring import Keyring
from gateway.messages.execution_status import ExecutionStatus
from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.provider_apis.sign_in import SignIn
from gateway.store import accept, commit_statuses, executions, identities, runs, status_tasks, work_queue
from gateway.store.commit_statuses import Expected, context_of
from gateway.store.database import Database
from gateway.store.identities import Identity
from gateway.store.notify import Notifier
from gateway.store.run_tables import commit_statuses as status_rows
from gateway.store.status_tasks import SentStatus
from gateway.tracing.ids import span_of_message
from gateway.worker.status_sender import StatusSender
from testing import records
from testing.postgres import Postgres
from testing.provider_apis.fake import refusal, serving
from testing.provider_apis.gitea import FakeGitea
from testing.records import NOW, A, arrival, move
from testing.service import WAIT_SECONDS
from testing.tracing import recording

KEYRING = Keyring("k" * 32)
REPOSITORY, TOKEN = "acme/digits", "canary-19c4"
TRAIN, TEST = context_of("train"), context_of("test")
COMMIT = "1f" * 20


@pytest.fixture
def gitea() -> Iterator[FakeGitea]:
    """Serve a repository."""
    fake = FakeGitea(tokens={TOKEN: {REPOSITORY}})
    with serving(fake):
        yield fake


def connected(database: Database, gitea: FakeGitea) -> Database:
    """Store a connection to the repository, as an identity."""
    bot: dict[str, Any] = {"id": "i1", "name": "bot", "provider": "gitea", "kind": "token", "user": None}
    bot |= {"settings": {}, "api_url": f"{gitea.url}/api/v1", "expires_at": None}
    url = f"{gitea.url}/{REPOSITORY}.git"
    records.connection(database, provider="gitea", url=url, identity="i1")
    with database.writing() as conn:
        identities.add(conn, KEYRING, Identity(**bot, created_at=NOW, updated_at=NOW), TOKEN)
    return database


def planned(database: Database, *triggers: str, commit: str = COMMIT, before: str = A) -> None:
    """Plan a request of each trigger for a push of a commit."""
    with database.writing() as conn:
        sent = arrival(move(before, commit))
        accept.record(conn, [sent])
        pushed = work_queue.pending(conn, "c1", limit=99)[-1]
        ids = {trigger: f"{trigger}-{commit[:4]}" for trigger in triggers}
        requests = [records.request(name, delivery=sent.id, trigger=trigger) for trigger, name in ids.items()]
        executions.add(conn, requests, ref_update=pushed.seq, now=NOW)
        statuses = [
            Expected(
                commit=commit,
                context=context_of(trigger),
                ref=pushed.ref,
                delivery=sent.id,
                request=name,
            )
            for trigger, name in ids.items()
        ]
        commit_statuses.expect(conn, "c1", statuses, now=NOW)


def report(database: Database, *reports: tuple[str, Any]) -> None:
    """Record what runners report, in order."""
    read = [
        ExecutionStatus(id=name, state=state, at=NOW, sequence=number, summary="accuracy 0.98")
        for number, (name, state) in enumerate(reports)
    ]
    with database.writing() as conn:
        runs.record(conn, read, now=NOW)


def sender(database: Database) -> StatusSender:
    """Return the sender of a process."""
    return StatusSender(
        database=database,
        keyring=KEYRING,
        subscribe=Notifier().subscribe,
        apis=ProviderApis(connector=CheckedAddresses(allow_loopback=True)),
        sign_in=SignIn({}),
        base_url="https://gate.example",
    )


def until(done: Callable[[], bool], *senders: StatusSender) -> None:
    """Run senders at the same time until something is done."""

    async def run() -> None:
        running = [asyncio.create_task(one.run()) for one in senders]
        async with asyncio.timeout(WAIT_SECONDS):
            while not await asyncio.to_thread(done):  # noqa: ASYNC110 - in the database
                await asyncio.sleep(0.01)
        for one in running:
            one.cancel()
        await asyncio.wait(running)

    asyncio.run(run())


def all_sent(database: Database) -> None:
    """Send what is due."""

    def done() -> bool:
        with database.reading() as conn:
            due = conn.execute(select(status_rows.c.due_at)).scalars()
            return all(moment is None for moment in due)

    until(done, sender(database))


def rows(database: Database) -> list[SentStatus]:
    """Return what is recorded of all verdicts, by context."""
    with database.reading() as conn:
        deliveries = list(conn.execute(select(status_rows.c.delivery).distinct()).scalars())
        found = status_tasks.of_deliveries(conn, deliveries)
    return sorted((one for some in found.values() for one in some), key=lambda one: one.context)


def writes(gitea: FakeGitea) -> list[tuple[str, str, str]]:
    """Return context, state and description of each request."""
    bodies = [json.loads(request.body) for request in gitea.requests]
    return [(body["context"], body["state"], body["description"]) for body in bodies]


def test_a_status_is_in_the_trace_of_its_delivery(database: Database, gitea: FakeGitea) -> None:
    """Below the message of its execution, without the token."""
    planned(connected(database, gitea), "train")
    with recording() as recorded:
        all_sent(database)
    [span] = recorded.named("set commit status")
    [shown] = rows(database)
    assert span.kind is SpanKind.CLIENT
    assert span.parent is not None
    assert format_span_id(span.parent.span_id) == span_of_message(f"train-{COMMIT[:4]}")
    assert span.attributes is not None
    assert span.attributes["vcs.ref.head.revision"] == shown.commit == COMMIT
    assert span.attributes["server.address"] == "127.0.0.1"
    assert TOKEN not in span.to_json()


def test_the_provider_shows_each_state_that_it_has_a_word_for(database: Database, gitea: FakeGitea) -> None:
    """Each once, with the page of the delivery; running looks like waiting there."""
    connected(database, gitea)
    planned(database, "train", "test")
    all_sent(database)
    assert gitea.statuses == {(COMMIT, TRAIN): "pending", (COMMIT, TEST): "pending"}
    report(database, ("train-1f1f", "running"), ("test-1f1f", "failed"))
    all_sent(database)
    report(database, ("train-1f1f", "succeeded"))
    all_sent(database)
    assert gitea.statuses == {(COMMIT, TRAIN): "success", (COMMIT, TEST): "failure"}
    assert sorted(writes(gitea)) == [
        (TEST, "failure", "failed: accuracy 0.98"),
        (TEST, "pending", "waiting for the message broker"),
        (TRAIN, "pending", "waiting for the message broker"),
        (TRAIN, "success", "succeeded: accuracy 0.98"),
    ]
    page = json.loads(gitea.requests[0].body)["target_url"]
    (delivery,) = deliveries(database)
    assert page == f"https://gate.example/deliveries/{delivery}"


def deliveries(database: Database) -> set[str]:
    """Return the deliveries that have verdicts."""
    with database.reading() as conn:
        return set(conn.execute(select(status_rows.c.delivery)).scalars())


def test_a_state_that_was_overtaken_is_never_sent(database: Database, gitea: FakeGitea) -> None:
    """Only the newest of each context."""
    connected(database, gitea)
    planned(database, "train")
    report(database, ("train-1f1f", "accepted"), ("train-1f1f", "running"), ("train-1f1f", "succeeded"))
    all_sent(database)
    assert writes(gitea) == [(TRAIN, "success", "succeeded: accuracy 0.98")]


def test_a_refusal_is_told_once_and_not_retried(database: Database, gitea: FakeGitea) -> None:
    """The explanation has its sentence, and the next state is tried again."""
    gitea.unscoped.add(TOKEN)
    connected(database, gitea)
    planned(database, "train")
    all_sent(database)
    all_sent(database)
    (row,) = rows(database)
    assert row.problem is not None
    assert "write:repository" in row.problem
    assert len(gitea.requests) == 1
    gitea.unscoped.clear()
    report(database, ("train-1f1f", "running"), ("train-1f1f", "failed"))
    all_sent(database)
    assert gitea.statuses == {(COMMIT, TRAIN): "failure"}
    assert rows(database)[0].problem is None


@pytest.mark.parametrize(
    "answer",
    [
        refusal(429, "slow down", Retry_After="120"),
        refusal(403, "rate limit", Retry_After="120"),
        refusal(502, "bad gateway"),
    ],
)
def test_what_may_pass_is_sent_later(database: Database, gitea: FakeGitea, answer: Response) -> None:
    """With the state that is the newest then; all other verdicts of the identity wait as well."""
    connected(database, gitea)
    planned(database, "train", "test")
    gitea.instead.append(answer)
    until(lambda: any(row.problem for row in rows(database)), sender(database))
    assert len(gitea.requests) in {1, 2}
    report(database, ("train-1f1f", "running"), ("train-1f1f", "succeeded"))
    with database.writing() as conn:
        conn.execute(update(status_rows).values(due_at=datetime.now(UTC)))
    all_sent(database)
    assert gitea.statuses == {(COMMIT, TRAIN): "success", (COMMIT, TEST): "pending"}


def test_a_limit_is_obeyed_without_a_request(database: Database, gitea: FakeGitea) -> None:
    """Until it ends, the rows say when the requests go on."""
    connected(database, gitea)
    planned(database, "train")
    gitea.instead.append(refusal(429, "slow down", Retry_After="120"))
    one = sender(database)
    until(lambda: rows(database)[0].problem is not None, one)
    planned(database, "test", commit="2e" * 20, before=COMMIT)
    report(database, ("train-1f1f", "succeeded"))
    other_server(database, gitea)
    until(lambda: any(row.shown == "error" for row in rows(database)), one)
    assert gitea.statuses == {("3d" * 20, TRAIN): "error"}
    assert len(gitea.requests) == 2
    shown = {row.commit: (row.shown, row.is_due) for row in rows(database)}
    assert shown == {COMMIT: (None, True), "2e" * 20: (None, True), "3d" * 20: ("error", False)}


def other_server(database: Database, gitea: FakeGitea) -> None:
    """Plan a request of a connection that has another identity."""
    bot: dict[str, Any] = {"id": "i2", "name": "other", "provider": "gitea", "kind": "token", "user": None}
    bot |= {"settings": {}, "api_url": f"{gitea.url}/api/v1", "expires_at": None}
    url = f"{gitea.url}/{REPOSITORY}.git"
    records.connection(database, "c2", provider="gitea", url=url, identity="i2")
    with database.writing() as conn:
        identities.add(conn, KEYRING, Identity(**bot, created_at=NOW, updated_at=NOW), TOKEN)
        sent = arrival(move(A, "3d" * 20), connection="c2")
        accept.record(conn, [sent])
        one = Expected(
            commit="3d" * 20, context=TRAIN, ref="refs/heads/main", delivery=sent.id, outcome="error"
        )
        commit_statuses.expect(conn, "c2", [one], now=NOW)


def test_one_of_several_processes_sends(postgres: Postgres, gitea: FakeGitea) -> None:
    """Each verdict once, whichever process leads."""
    url = postgres.database()
    with closing(Database(url)) as first, closing(Database(url)) as second:
        first.migrate()
        connected(first, gitea)
        commits = [f"{number:02x}" * 20 for number in range(1, 9)]
        for before, commit in pairwise([A, *commits]):
            planned(first, "train", commit=commit, before=before)
        until(lambda: all(row.shown for row in rows(first)), sender(first), sender(second))
        assert gitea.statuses == {(commit, TRAIN): "pending" for commit in commits}
        assert len(gitea.requests) == len(commits)
