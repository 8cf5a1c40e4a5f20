"""The outbox of verdicts: what makes one due, what is claimed, and what the sender records."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from gateway.crypto.keyring import Keyring
from gateway.messages.execution_status import ExecutionStatus
from gateway.store import (
    accept,
    commit_statuses,
    executions,
    identities,
    reruns,
    retention,
    runs,
    status_tasks,
    status_webhooks,
    work_queue,
)
from gateway.store.commit_statuses import FETCH_CONTEXT, Expected
from gateway.store.database import Database
from gateway.store.identities import Identity
from gateway.store.ids import delivery_id
from gateway.store.run_tables import commit_statuses as table
from gateway.store.status_tasks import Claimed, Except, SentStatus
from gateway.store.status_webhooks import StatusReceiver
from gateway.store.tables import connections
from gateway.store.work_queue import Settlement
from providers.clone_urls import host_of
from testing import records
from testing.records import NOW, A, B, C, move
from tests.store.work import claim as claim_work
from tests.store.work import pending, settle

KEYRING = Keyring("k" * 32)
LATER = NOW + timedelta(minutes=1)
ORIGIN = "f" * 40
CONTEXT = "pushgate/train@main"
SENT = f"pending{status_tasks.SEPARATOR}r1"


def connected(database: Database) -> None:
    """Store a connection with an identity, and its lease."""
    bot: dict[str, Any] = {"id": "i1", "name": "bot", "provider": "github", "kind": "token", "user": None}
    bot |= {"settings": {}, "api_url": None, "expires_at": None, "created_at": NOW, "updated_at": NOW}
    records.connection(database, identity="i1")
    with database.writing() as conn:
        identities.add(conn, KEYRING, Identity(**bot), "canary-7a")


def settled(database: Database, before: str, after: str, *requests: str, **verdict: Any) -> str:
    """Push a commit and settle it with these requests or with another verdict; return the delivery."""
    with database.writing() as conn:
        accept.record(conn, [records.arrival(move(before, after), id=delivery_id(NOW))])
    claim_work(database, "w1")
    moved = pending(database)[-1]
    common: dict[str, Any] = {"commit": after, "ref": moved.ref, "delivery": moved.delivery}
    made = [records.request(name, delivery=moved.delivery, is_latest_only=True) for name in requests]
    statuses = [Expected(**common, context=CONTEXT, request=name) for name in requests]
    if verdict:
        statuses.append(Expected(**{**common, "context": CONTEXT, **verdict}))
    end = Settlement(
        update=moved,
        state="failed" if verdict else "planned",
        reason="why",
        requests=tuple(made),
        statuses=tuple(statuses),
    )
    settle(database, end)
    return moved.delivery


def claim(database: Database, now: datetime = LATER, **but: Any) -> Claimed | None:
    """Claim a verdict as the sender does."""
    with database.writing() as conn:
        until = now + timedelta(minutes=2)
        found = status_tasks.claim(conn, KEYRING, but=Except(**but), now=now, until=until)
    with database.reading() as conn:
        # Whatever is not claimed is not due either; what is claimed is not due any more.
        assert found is not None or not status_tasks.is_due(conn, but=Except(**but), now=now)
    return found


def claimed(database: Database, now: datetime = LATER) -> Claimed:
    """Claim the one that is due."""
    found = claim(database, now)
    assert found is not None
    return found


def sent(database: Database, one: Claimed, what: str = SENT, **memory: Any) -> None:
    """Record that the provider has a verdict."""
    with database.writing() as conn:
        status_tasks.record_sent(conn, one, what, memory, now=LATER)


def report(database: Database, execution: str, state: Any, sequence: int = 1) -> None:
    """Record what a runner reports."""
    with database.writing() as conn:
        runs.record(conn, [ExecutionStatus(id=execution, state=state, at=NOW, sequence=sequence)], now=LATER)


def shown(database: Database, delivery: str) -> list[SentStatus]:
    """Return what the provider has of a delivery's verdicts."""
    with database.reading() as conn:
        return status_tasks.of_deliveries(conn, [delivery]).get(delivery, [])


def test_a_verdict_is_due_once_and_remembers_what_was_sent(database: Database) -> None:
    """Until its execution changes."""
    connected(database)
    delivery = settled(database, ORIGIN, A, "r1")
    first = claimed(database)
    assert (first.verdict.context, first.verdict.commit, first.verdict.delivery) == (CONTEXT, A, delivery)
    assert first.verdict.execution is not None
    assert first.verdict.execution.shown_state == "pending"
    assert first.identity is not None
    assert first.identity.secret == "canary-7a"
    sent(database, first, pipeline_id=7)
    assert claim(database) is None
    (status,) = shown(database, delivery)
    assert (status.shown, status.is_due, status.problem, status.tried_at) == ("pending", False, None, LATER)
    report(database, "r1", "running")
    again = claimed(database)
    assert (again.sent, again.memory) == (SENT, {"pipeline_id": 7})
    assert again.verdict.execution is not None
    assert again.verdict.execution.shown_state == "running"


def test_a_change_while_a_verdict_is_sent_makes_it_due_again(database: Database) -> None:
    """What was sent is recorded all the same."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    first = claimed(database)
    report(database, "r1", "failed")
    sent(database, first)
    second = claimed(database)
    assert second.sent == SENT
    assert second.verdict.execution is not None
    assert second.verdict.execution.shown_state == "failed"


def test_a_later_commit_supersedes_the_verdict_of_the_earlier(database: Database) -> None:
    """Each commit has its own row, and both are due."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    sent(database, claimed(database))
    settled(database, A, B, "r2")
    due = [claimed(database), claimed(database)]
    found = {one.verdict.commit: one.verdict.execution for one in due}
    assert {commit: one.shown_state for commit, one in found.items() if one is not None} == {
        A: "superseded",
        B: "pending",
    }
    assert claim(database) is None


@pytest.mark.parametrize("end", ["dropped", "undeliverable"])
def test_an_execution_that_is_never_published_ends_its_verdict(database: Database, end: str) -> None:
    """Dropped by an operator, or refused by the broker for good."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    sent(database, claimed(database))
    with database.writing() as conn:
        if end == "dropped":
            executions.drop(conn, "r1")
        else:
            executions.record(conn, published=[], refused={}, undeliverable={"r1": "large"}, now=NOW)
    verdict = claimed(database).verdict
    assert verdict.execution is not None
    assert verdict.execution.shown_state == end


def test_the_newest_execution_of_a_context_counts(database: Database) -> None:
    """Another push of the same commit, such as of a tag, leads to another execution."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    sent(database, claimed(database), SENT, id=1)
    second = settled(database, A, B, "r2")
    third = settled(database, B, A, "r3")
    with database.reading() as conn:
        rows = conn.execute(select(table.c.commit, table.c.delivery).order_by(table.c.commit)).all()
    assert [tuple(row) for row in rows] == [(A, third), (B, second)]
    of_a = next(one for one in (claimed(database), claimed(database)) if one.verdict.commit == A)
    assert of_a.verdict.execution is not None
    assert (of_a.verdict.execution.id, of_a.sent, of_a.memory) == ("r3", SENT, {"id": 1})
    report(database, "r1", "failed")
    assert claim(database) is None


def test_a_verdict_without_an_execution_has_its_reason_and_place(database: Database) -> None:
    """The commit could not be planned; a replay that can replaces it."""
    connected(database)
    settled(database, ORIGIN, A, outcome="error", reason="valohai.yaml, line 3", file="valohai.yaml", line=3)
    verdict = claimed(database).verdict
    assert (verdict.execution, verdict.outcome, verdict.file, verdict.line) == (
        None,
        "error",
        "valohai.yaml",
        3,
    )
    settled(database, A, C, "r2")


def test_a_fetch_that_succeeds_later_ends_the_verdict_of_its_failure(database: Database) -> None:
    """Its context has nothing else that would replace it."""
    connected(database)
    settled(database, ORIGIN, A, context=FETCH_CONTEXT, outcome="error", reason="too large")
    sent(database, claimed(database), f"error{status_tasks.SEPARATOR}too large")
    settled(database, A, B, "r1")
    settled(database, B, A, "r2")
    due = [claimed(database) for _ in range(3)]
    ended = next(one for one in due if one.verdict.context == FETCH_CONTEXT)
    assert (ended.verdict.commit, ended.verdict.outcome) == (A, "succeeded")


def test_a_limit_delays_all_verdicts_of_the_identity(database: Database) -> None:
    """Each keeps its place and its number of attempts: what has changed comes before first verdicts."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    # The execution of the earlier commit is superseded: its verdict has changed.
    settled(database, A, B, "r2")
    excepted: list[dict[str, Any]] = [
        {"connections": ["c1"]},
        {"identities": ["i1"]},
        {"hosts": [host_of(records.made().url)]},
    ]
    assert [claim(database, **one) for one in excepted] == [None, None, None]
    for _ in range(3):
        first = claimed(database)
        assert (first.verdict.commit, first.attempts) == (A, 0)
        with database.writing() as conn:
            status_tasks.hold(conn, first, "the limit is reached", now=LATER)
    (status,) = shown(database, first.verdict.delivery)
    assert (status.problem, status.is_due) == ("the limit is reached", True)


def test_a_failure_delays_one_verdict(database: Database) -> None:
    """It counts, until the next change."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    with database.writing() as conn:
        soon = LATER + timedelta(minutes=1)
        status_tasks.postpone(conn, claimed_in(conn), "bad gateway", next_at=soon, now=LATER)
    assert claim(database) is None
    assert claimed(database, soon).attempts == 1


def test_receivers_are_excepted_by_their_origin(database: Database) -> None:
    """A provider's host is another matter, and so is a host whose name begins alike."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    with database.writing() as conn:
        receiver = StatusReceiver(url="https://ci.example/a_b", secret="s")
        status_webhooks.name(conn, KEYRING, "c1", receiver)
    assert claim(database, receivers=["https://ci.example"]) is None
    found = claim(database, receivers=["https://ci"], hosts=[host_of(records.made().url)], identities=["i1"])
    assert found is not None
    assert found.receiver is not None


@pytest.mark.parametrize("is_first", [True, False])
def test_a_verdict_that_two_processes_have_sent_is_sent_once_more(database: Database, is_first: bool) -> None:
    """The earlier leader's request may have reached the provider after that of its successor."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    old = claimed(database)
    report(database, "r1", "succeeded")
    new = claimed(database, LATER + timedelta(seconds=3))
    for one, what in ((old, "pending|r1"), (new, "success|r1"))[:: 1 if is_first else -1]:
        sent(database, one, what)
    assert claimed(database).sent is None
    assert claim(database) is None


def test_a_refusal_is_final_and_the_newest_problem_is_that_of_the_connection(database: Database) -> None:
    """Only another verdict is tried again, and a success ends the problem."""
    connected(database)
    delivery = settled(database, ORIGIN, A, "r1")
    with database.writing() as conn:
        status_tasks.record_refused(conn, claimed_in(conn), SENT, "bot needs the right", now=LATER)
    assert claim(database) is None
    (status,) = shown(database, delivery)
    assert (status.shown, status.problem, status.is_due) == (None, "bot needs the right", False)
    with database.reading() as conn:
        assert status_tasks.problems(conn, ["c1"]) == {"c1": "bot needs the right"}
    report(database, "r1", "succeeded")
    sent(database, claimed(database), f"success{status_tasks.SEPARATOR}r1")
    with database.reading() as conn:
        assert status_tasks.problems(conn, ["c1"]) == {}


def claimed_in(conn: Any) -> Claimed:
    """Claim within a transaction."""
    found = status_tasks.claim(conn, KEYRING, now=LATER, until=LATER + timedelta(minutes=2))
    assert found is not None
    return found


def test_without_an_identity_nothing_can_be_sent(database: Database) -> None:
    """The row says why."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    with database.writing() as conn:
        conn.execute(update(connections).values(identity=None))
    found = claimed(database)
    assert found.identity is None
    assert found.obstacle is not None


def test_what_is_claimed_is_due_again_when_it_is_given_back(database: Database) -> None:
    """As by a process that ends; one that died leaves it until its lease ends."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    first = claimed(database)
    assert claim(database) is None
    with database.writing() as conn:
        status_tasks.give_back(conn, first, now=LATER)
    claimed(database)
    assert claim(database, LATER + timedelta(minutes=3)) is not None


def test_a_settlement_may_repeat_what_is_shown(database: Database) -> None:
    """A replay that leads to the same execution leaves what was sent and remembered."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    first = claimed(database)
    sent(database, first, SENT, id=3)
    with database.writing() as conn:
        verdict = Expected(
            commit=A, context=CONTEXT, ref="refs/heads/main", delivery=first.verdict.delivery, request="r1"
        )
        commit_statuses.expect(conn, "c1", [replace(verdict)], now=LATER)
    again = claimed(database)
    assert (again.sent, again.memory) == (SENT, {"id": 3})


def test_a_skipped_trigger_leaves_the_verdict_of_an_execution(database: Database) -> None:
    """Another ref with the same commit has led to it; a commit without one is skipped."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    settled(database, A, B, outcome="skipped", reason="no path matches")
    settled(database, B, A, outcome="skipped", reason="no path matches")
    found = {one.verdict.commit: one.verdict for one in (claimed(database), claimed(database))}
    assert found[A].execution is not None
    assert found[B].outcome == "skipped"
    assert claim(database) is None


def replayed(database: Database, delivery: str, commit: str, *requests: str, **verdict: Any) -> None:
    """Replay a delivery, and settle it again."""
    with database.writing() as conn:
        work_queue.replay(conn, delivery, now=NOW)
    claim_work(database, "w1", NOW + timedelta(hours=1))
    (moved,) = pending(database)
    common: dict[str, Any] = {"commit": commit, "ref": moved.ref, "delivery": delivery}
    statuses = [Expected(**common, context=CONTEXT, request=name) for name in requests]
    if verdict:
        statuses.append(Expected(**{**common, "context": CONTEXT, **verdict}))
    made = tuple(records.request(name, delivery=delivery) for name in requests)
    settle(
        database,
        Settlement(update=moved, state="planned", reason="", requests=made, statuses=tuple(statuses)),
    )


def test_a_replay_leaves_the_verdict_of_a_rerun(database: Database) -> None:
    """It leads to the first execution again, which is older."""
    connected(database)
    delivery = settled(database, ORIGIN, A, "r1")
    report(database, "r1", "failed")
    with database.writing() as conn:
        rerun = reruns.rerun(conn, "r1", now=NOW)
    sent(database, claimed(database))
    replayed(database, delivery, A, "r1")
    report(database, rerun.id, "succeeded")
    verdict = claimed(database).verdict
    assert verdict.execution is not None
    assert verdict.execution.id == rerun.id


def test_a_failure_of_a_trigger_that_is_gone_ends(database: Database) -> None:
    """Whoever changes the triggers and replays the delivery sees no failure any more."""
    connected(database)
    delivery = settled(database, ORIGIN, A, outcome="error", reason="there is no step", line=3)
    sent(database, claimed(database), f"error{status_tasks.SEPARATOR}there is no step")
    replayed(database, delivery, A)
    verdict = claimed(database).verdict
    assert (verdict.outcome, verdict.line) == ("skipped", None)


def test_a_request_that_was_sent_while_it_was_dropped_waits_again(database: Database) -> None:
    """The broker confirms it although the provider shows that it was dropped."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    with database.writing() as conn:
        executions.drop(conn, "r1")
    sent(database, claimed(database))
    with database.writing() as conn:
        executions.record(conn, published=["r1"], refused={}, undeliverable={}, now=NOW)
    verdict = claimed(database).verdict
    assert verdict.execution is not None
    assert verdict.execution.shown_state == "published"


@pytest.mark.parametrize("change", [{"connection": "c1"}, {"identity": "i1"}])
def test_a_change_sends_again_what_was_refused(database: Database, change: dict[str, str]) -> None:
    """The execution may have ended, so that nothing else follows."""
    connected(database)
    settled(database, ORIGIN, A, "r1")
    with database.writing() as conn:
        status_tasks.record_refused(conn, claimed_in(conn), SENT, "bot needs the right", now=LATER)
        status_tasks.retry_refused(conn, connection="other", now=LATER)
    assert claim(database) is None
    with database.writing() as conn:
        status_tasks.retry_refused(conn, **change, now=LATER)
    assert claimed(database).sent is None


def test_a_delivery_is_deleted_after_its_verdicts_have_ended(database: Database) -> None:
    """No runner has ever reported: the commit would look unfinished for ever."""
    connected(database)
    delivery = settled(database, ORIGIN, A, "r1")
    with database.writing() as conn:
        executions.record(conn, published=["r1"], refused={}, undeliverable={}, now=NOW)
    sent(database, claimed(database))
    after = NOW + timedelta(days=90)

    def forgotten() -> int:
        with database.writing() as conn:
            step = retention.forget(conn, before=after, after="")
        assert step is not None
        return step.forgotten

    assert forgotten() == 0
    verdict = claimed(database)
    assert (verdict.verdict.execution, verdict.verdict.outcome) == (None, "error")
    assert forgotten() == 0
    sent(database, verdict, "error|r1")
    assert forgotten() == 1
    assert shown(database, delivery) == []
