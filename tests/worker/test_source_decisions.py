"""What happens while the rules decide: nothing waits for ever, and no decision is older than its basis."""

from datetime import UTC, datetime, timedelta

from gateway.store import connections, source_repositories, sources
from gateway.store.database import Database
from gateway.store.source_repositories import Claimed
from testing.records import A, B, C
from tests.worker.acme import (
    SOURCE,
    Acme,
    add,
    delivered,
    found,
    found_id,
    repository,
    run,
    set_rules,
)


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def claimed(database: Database) -> Claimed:
    """Return a repository that a slow worker has claimed."""
    with database.writing() as conn:
        mine = source_repositories.claim(conn, now=now(), until=now() + timedelta(minutes=5))
    assert mine is not None
    return mine


def list_none(database: Database) -> None:
    """Record a listing without any repository, which began after all deliveries."""
    with database.writing() as conn:
        known = source_repositories.listed(conn, SOURCE)
        since = now() + timedelta(seconds=1)
        source_repositories.mark_gone(conn, SOURCE, list(known), since=since, reason="gone")


def test_a_repository_that_no_listing_has_is_decided_if_deliveries_wait(sourced: Database) -> None:
    """The list of a provider may be behind, and the identity may not see everything."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        list_none(sourced)
        await acme.decide()
        [made] = found(sourced).values()
        assert [one.verdict for one in delivered(sourced, made.id)] == ["accepted"]

    run(sourced, work)


def test_rules_decide_nothing_about_what_is_gone(sourced: Database) -> None:
    """Until the repository is seen again."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/web", None, A)
        await acme.decide()
        list_none(sourced)
        set_rules(sourced, [{}])
        await acme.decide()
        assert (found(sourced), repository(sourced, 1).state) == ({}, "gone")
        await acme.push(1, "acme/web", A, B)
        await acme.decide()
        assert set(found(sourced)) == {"acme/web"}

    run(sourced, work)


def test_deliveries_wait_for_changed_rules(sourced: Database) -> None:
    """The new rules may connect what the old ones ignored."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/web", None, A)
        await acme.decide()
        set_rules(sourced, [{}])
        await acme.push(1, "acme/web", A, B)
        await acme.decide()
        [made] = found(sourced).values()
        assert [one.updates[0].update.after for one in delivered(sourced, made.id)] == [B]

    run(sourced, work)


def test_a_slow_decision_by_old_rules_does_not_count(sourced: Database) -> None:
    """Neither one that ignores a repository, nor one that connects it."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/web", None, A)
        slow = claimed(sourced)
        set_rules(sourced, [{}])
        with sourced.writing() as conn:
            source_repositories.ignore(conn, slow, reason="no rule matches web")
        assert [one.is_waiting for one in delivered(sourced, SOURCE)] == [True]
        set_rules(sourced, [{"project": "late"}])
        slow = claimed(sourced)
        set_rules(sourced, [{"match": ["ml-*"]}])
        await acme.connector._decide(slow)  # noqa: SLF001
        await acme.decide()
        assert (found(sourced), repository(sourced, 1).state) == ({}, "ignored")

    run(sourced, work)


def test_a_slow_decision_ignores_nothing_that_another_worker_has_connected(sourced: Database) -> None:
    """The lease of a decision ends when its repository is seen again."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        slow = claimed(sourced)
        await acme.push(1, "acme/ml-a", A, B)
        await acme.decide()
        await acme.push(1, "acme/ml-a", B, C)
        with sourced.writing() as conn:
            source_repositories.ignore(conn, slow, reason="it is connected already")
        await acme.connector._decide(slow)  # noqa: SLF001
        assert repository(sourced, 1).state == "connected"
        [made] = found(sourced).values()
        assert [one.verdict for one in delivered(sourced, made.id)] == ["accepted"] * 3

    run(sourced, work)


def test_a_slow_decision_for_a_deleted_source_connects_nothing(sourced: Database) -> None:
    """And its deliveries say that it was deleted."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        slow = claimed(sourced)
        with sourced.writing() as conn:
            sources.remove(conn, SOURCE, now=now())
        await acme.connector._decide(slow)  # noqa: SLF001
        assert found(sourced) == {}
        [kept] = delivered(sourced, SOURCE)
        assert (kept.is_waiting, (kept.reason or "")[:22]) == (False, "the source was deleted")

    run(sourced, work)


def test_no_delivery_waits_for_a_deleted_connection(sourced: Database) -> None:
    """A web process that had not noticed lets it wait, but no rule creates another connection."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        await acme.decide()
        with sourced.writing() as conn:
            connections.remove(conn, found_id(sourced, "acme/ml-a"), now=now())
            known = source_repositories.route(conn, SOURCE, "1")
            assert known is not None
        with sourced.writing() as conn:
            again = source_repositories.Seen(
                source=SOURCE, repository="1", full_name="acme/ml-a", url=known.url, default_branch=None
            )
            source_repositories.see(conn, [again], now=now())
        await acme.decide()
        assert (found(sourced), repository(sourced, 1).state) == ({}, "removed")

    run(sourced, work)


def test_an_outage_of_one_provider_delays_no_other_source(sourced: Database) -> None:
    """Its repositories wait together, not one after the other until its API does not answer."""
    add(sourced, "c2", "labs")

    async def work(acme: Acme) -> None:
        for number in (1, 2, 3):
            await acme.push(number, f"acme/ml-{number}", None, A)
        await acme.push(4, "labs/ml-4", None, A, to="c2")
        with sourced.writing() as conn:
            mine = source_repositories.claim(conn, now=now(), until=now() + timedelta(minutes=5))
            assert mine is not None
            later = now() + timedelta(minutes=1)
            source_repositories.postpone(conn, mine, reason="x", next_at=later, others_at=later)
        await acme.decide()
        assert set(found(sourced)) == {"labs/ml-4"}
        await acme.push(2, "acme/ml-2", A, B)
        await acme.decide()
        assert set(found(sourced)) == {"labs/ml-4", "acme/ml-2"}

    run(sourced, work)
