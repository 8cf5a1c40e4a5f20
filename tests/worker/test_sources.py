"""Sources: repositories are connected by rules, and deliveries reach the right connection."""

import asyncio

import pytest
from sqlalchemy import select

from gateway.store import connections, source_repositories
from gateway.store.database import Database
from gateway.store.source_repositories import Seen
from gateway.store.tables import ref_updates
from testing.records import NOW, A, B, C, connection
from tests.worker.acme import (
    SOURCE,
    Acme,
    add,
    delivered,
    found,
    found_id,
    list_one,
    repository,
    run,
    set_rules,
)


@pytest.fixture
def database(sourced: Database) -> Database:
    """Return a database with a source of the organisation acme."""
    return sourced


def test_a_new_repository_is_connected_and_no_push_is_lost(database: Database) -> None:
    """The pushes before the decision wait for it, in order; later ones go straight to the connection."""

    async def work(acme: Acme) -> None:
        first = await acme.push(1, "acme/ML-Digits", None, A)
        assert (first.status, first.body["verdict"]) == (202, "ignored")
        assert (
            first.body["reason"] == "waiting until the rules of the source have decided about acme/ML-Digits"
        )
        await acme.push(1, "acme/ML-Digits", A, B)
        await acme.decide()
        [made] = found(database).values()
        assert (made.name, made.project, made.source) == ("acme/ml-digits", "team-ML-Digits", SOURCE)
        assert (made.repository_id, made.url) == ("1", "https://github.example/acme/ML-Digits.git")
        assert [trigger["name"] for trigger in made.triggers] == ["t"]
        third = await acme.push(1, "acme/ML-Digits", B, C)
        assert third.body["verdict"] == "accepted"
        arrived = delivered(database, made.id)
        assert [one.updates[0].update.after for one in arrived] == [A, B, C]
        assert [one.verdict for one in arrived] == ["accepted"] * 3
        assert arrived[0].id == first.body["delivery"]
        assert delivered(database, SOURCE) == []

    run(database, work)


@pytest.mark.parametrize(
    ("name", "url", "reason"),
    [
        ("acme/web", None, "no rule matches web"),
        ("acme/ml-old", None, "no rule matches ml-old"),
        ("evil/ml-digits", None, "https://github.example/evil/ml-digits.git is not below"),
        ("acme/ml-x", "https://other.example/acme/ml-x.git", "is not below https://github.example/acme"),
        ("acme/ml-x", "file:///etc/ml-x", "url: it must be https://"),
    ],
)
def test_what_no_rule_matches_is_ignored_with_the_reason(
    database: Database, name: str, url: str | None, reason: str
) -> None:
    """Also the deliveries that have waited; the next one does not wait any more."""

    async def work(acme: Acme) -> None:
        fields = {"clone_url": url, "html_url": url, "ssh_url": url} if url else {}
        for before, after in ((None, A), (A, B)):
            await acme.push(1, name, before, after, **fields)
            await acme.decide()
        waited, later = delivered(database, SOURCE)
        assert reason in (waited.reason or "")
        assert (waited.verdict, later.reason) == ("ignored", waited.reason)
        assert found(database) == {}

    run(database, work)


def test_a_renamed_repository_stays_connected(database: Database) -> None:
    """The connection gets the new address and name; its history goes on."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        await acme.decide()
        [before] = found(database).values()
        renamed = await acme.push(1, "acme/ml-b", A, B)
        assert renamed.body["verdict"] == "accepted"
        await acme.decide()
        [after] = found(database).values()
        assert (after.id, after.name) == (before.id, "acme/ml-b")
        assert (after.url, after.project) == ("https://github.example/acme/ml-b.git", "team-ml-b")
        assert repository(database, 1).full_name == "acme/ml-b"
        # Another repository takes the name that became free.
        await acme.push(2, "acme/ml-a", None, C)
        await acme.decide()
        assert {one.repository_id for one in found(database).values()} == {"1", "2"}

    run(database, work)


def test_a_rename_is_followed_before_the_next_push(database: Database) -> None:
    """By the event that reports it."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        await acme.decide()
        moved = {"id": 1, "full_name": "acme/ml-b", "clone_url": "https://github.example/acme/ml-b.git"}
        payload = {"action": "renamed", "changes": {"repository": {"name": {"from": "ml-a"}}}}
        answer = await acme.send("repository", {**payload, "repository": moved})
        assert answer.body["reason"] == (
            "the repository was renamed to acme/ml-b: the source updates the connection"
        )
        await acme.decide()
        assert set(found(database)) == {"acme/ml-b"}

    run(database, work)


def test_a_transferred_repository_keeps_its_connection(database: Database) -> None:
    """Its new owner is a source too; the rules of that one count from then on."""
    add(database, "c2", "labs")

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        await acme.decide()
        [before] = found(database).values()
        list_one(database, "c2", 1, "labs/ml-a")
        await acme.push(1, "labs/ml-a", A, B, to="c2")
        await acme.decide()
        [after] = found(database).values()
        assert (after.id, after.source, after.name) == (before.id, "c2", "labs/ml-a")
        assert [one.updates[0].update.after for one in delivered(database, after.id)] == [A, B]
        assert repository(database, 1).state == "gone"

    run(database, work)


def test_changed_rules_decide_again(database: Database) -> None:
    """A repository that matches now is connected; one that no longer does stays until somebody deletes it."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/web", None, A)
        await acme.push(2, "acme/ml-a", None, A)
        await acme.decide()
        assert set(found(database)) == {"acme/ml-a"}
        set_rules(database, [{"match": ["web"], "project": "p"}])
        await acme.decide()
        assert set(found(database)) == {"acme/ml-a", "acme/web"}
        left = repository(database, 2)
        assert (left.state, left.reason) == ("connected", "no rule matches ml-a")
        set_rules(database, [{"project": "q", "follows": ["main"]}])
        await acme.decide()
        assert {(one.project, tuple(one.follows)) for one in found(database).values()} == {("q", ("main",))}

    run(database, work)


def test_a_deleted_connection_is_not_made_again(database: Database) -> None:
    """Not by a delivery, a rename or changed rules, but on request."""

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        await acme.decide()
        with database.writing() as conn:
            connections.remove(conn, found_id(database, "acme/ml-a"), now=NOW)
        set_rules(database, [{}])
        await acme.decide()
        answer = await acme.push(1, "acme/ml-b", A, B)
        await acme.decide()
        assert found(database) == {}
        assert answer.body["reason"] == "its connection was deleted"
        with database.writing() as conn:
            source_repositories.request(conn, SOURCE, "1", now=NOW)
        await acme.decide()
        assert [one.repository_id for one in found(database).values()] == ["1"]

    run(database, work)


def test_a_connection_that_was_there_before_is_adopted(database: Database) -> None:
    """It keeps its settings, and gets the source's deliveries."""

    async def work(acme: Acme) -> None:
        own = {"id": "own", "url": "https://github.example/acme/ml-a.git", "name": "mine"}
        kept = connection(database, own.pop("id"), project="team-ml-a", yaml_path="ml/valohai.yaml", **own)
        await acme.push(1, "acme/ml-a", None, A)
        await acme.decide()
        [adopted] = found(database).values()
        assert (adopted.id, adopted.name, adopted.yaml_path) == (kept.id, "mine", "ml/valohai.yaml")
        assert (adopted.source, adopted.repository_id) == (SOURCE, "1")
        assert len(delivered(database, kept.id)) == 1
        assert repository(database, 1).is_adopted

    run(database, work)


def test_another_projects_connection_is_left_alone(database: Database) -> None:
    """The rule's project gets a connection of its own."""

    async def work(acme: Acme) -> None:
        connection(database, "own", url="https://github.example/acme/ml-a.git", project="other", name="mine")
        await acme.push(1, "acme/ml-a", None, A)
        await acme.decide()
        assert {one.project: one.source for one in found(database).values()} == {
            "other": None,
            "team-ml-a": SOURCE,
        }

    run(database, work)


def test_five_hundred_repositories_of_one_source(database: Database) -> None:
    """Each push arrives at its own connection, the first as well as the second."""
    numbers = range(1, 501)

    async def push_to_all(acme: Acme, before: str | None, after: str) -> set[str]:
        """Push to some at a time, so that no push waits for too long on a busy machine."""
        verdicts = set()
        for start in range(0, len(numbers), 25):
            some = numbers[start : start + 25]
            pushes = (acme.push(number, f"acme/ml-{number}", before, after) for number in some)
            verdicts |= {answer.body["verdict"] for answer in await asyncio.gather(*pushes)}
        return verdicts

    async def work(acme: Acme) -> None:
        assert await push_to_all(acme, None, A) == {"ignored"}
        await acme.decide()
        assert await push_to_all(acme, A, B) == {"accepted"}

    run(database, work)
    made = found(database)
    assert {one.repository_id for one in made.values()} == set(map(str, numbers))
    assert {one.name for one in made.values()} == {f"acme/ml-{number}" for number in numbers}
    with database.reading() as conn:
        moves = conn.execute(select(ref_updates.c.connection, ref_updates.c.after)).all()
    assert {tuple(move) for move in moves} == {(one.id, after) for one in made.values() for after in (A, B)}


def test_a_repository_that_is_seen_while_it_is_decided_stays_due(database: Database) -> None:
    """What a worker has decided meanwhile is not the last word."""
    with database.writing() as conn:
        seen = Seen(
            source=SOURCE, repository="1", full_name="acme/web", url="https://x.example", default_branch=None
        )
        source_repositories.see(conn, [seen], now=NOW)
        claimed = source_repositories.claim(conn, now=NOW, until=NOW.replace(hour=10))
        assert claimed is not None
        source_repositories.see(conn, [seen], now=NOW)
        source_repositories.ignore(conn, claimed, reason="no rule matches web")
        assert source_repositories.DECISIONS.is_due(conn, now=NOW)
