"""Whoever knows the secret of a source reaches its own repositories, and harms nobody else's deliveries."""

from dataclasses import replace

import pytest

from gateway.store import sources
from gateway.store.database import Database
from testing.records import A, B, C, connection
from tests.worker.acme import (
    SOURCE,
    Acme,
    add,
    delivered,
    found,
    list_one,
    repository,
    run,
)


@pytest.mark.parametrize(
    "url",
    [
        "https://[x/acme/ml-x.git",
        "https://github.example/acme/..",
        "https://github.example/acme/ml-x%2F..",
        "https://github.example/acme/ml-%00",
        "https://github.example/acme/ml-%1b[31m",
        "https://github.example/acme/ml-x\\..",
        "https://github.example:0/acme/ml-x.git",
        "ext::sh -c touch% /tmp/x",
    ],
)
def test_a_clone_url_that_programs_read_in_different_ways_is_ignored(sourced: Database, url: str) -> None:
    """The delivery has the reason, and the worker goes on with others."""
    fields = {"clone_url": url, "ssh_url": url, "full_name": None}

    async def work(acme: Acme) -> None:
        payload = {"ref": "refs/heads/main", "before": "0" * 40, "after": A}
        answer = await acme.send("push", {**payload, "repository": {"id": 1, **fields}})
        assert answer.status == 202
        await acme.decide()
        [kept] = delivered(sourced, SOURCE)
        assert (kept.is_waiting, kept.verdict) == (False, "ignored")
        assert found(sourced) == {}

    run(sourced, work)


def test_what_the_index_of_a_database_has_no_room_for_is_recorded(sourced: Database) -> None:
    """As a delivery that no connection can have."""
    url = f"https://github.example/acme/ml-{'x' * 3000}.git"

    async def work(acme: Acme) -> None:
        for number, fields in ((1, {"id": "1" * 300}), (2, {"clone_url": url, "html_url": url})):
            body = await acme.push(number, "acme/ml-x", None, A, **fields)
            assert (body.status, body.body["verdict"]) == (202, "ignored")
        await acme.decide()
        assert {one.is_waiting for one in delivered(sourced, SOURCE)} == {False}

    run(sourced, work)


def test_a_forged_id_moves_no_connection_of_others(sourced: Database) -> None:
    """Neither one of another source, nor one that a rule would name alike."""
    add(sourced, "c2", "evil")
    url = "https://github.example/mine/ml-b.git"
    connection(sourced, "own", url=url, name="mine/ml-b", project="team-ml-b", repository_id="2")

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        await acme.decide()
        before = found(sourced)
        for number, name in ((1, "evil/ml-a"), (2, "evil/ml-b"), (1, "acme/ml-a"), (2, "mine/ml-b")):
            await acme.push(number, name, None, C, to="c2")
            await acme.decide()
        after = found(sourced)
        assert {name: after[name] for name in before} == before
        assert {after[name].source for name in set(after) - set(before)} == {"c2"}
        assert [one.updates[0].update.after for one in delivered(sourced, before["acme/ml-a"].id)] == [A]
        assert delivered(sourced, "own") == []

    run(sourced, work)


def test_of_two_sources_with_one_repository_the_first_keeps_it(sourced: Database) -> None:
    """They do not take it from one another with each listing."""
    add(sourced, "c2", url="https://github.example", name="all", scope="server", rules=[{}])

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        await acme.decide()
        list_one(sourced, "c2", 1, "acme/ml-a")
        await acme.decide()
        [kept] = found(sourced).values()
        assert kept.source == SOURCE
        again = await acme.push(1, "acme/ml-a", A, B, to="c2")
        assert again.body["reason"] == "the source acme has connected it"

    run(sourced, work)


def test_an_identity_confirms_where_a_connection_moves(sourced: Database) -> None:
    """Its token is not sent, and nothing is fetched, where only a delivery says so."""
    with sourced.writing() as conn:
        sources.change(conn, replace(sources.get(conn, SOURCE), identity="i1"))

    async def work(acme: Acme) -> None:
        await acme.push(1, "acme/ml-a", None, A)
        await acme.decide()
        await acme.push(1, "acme/ml-forged", A, B)
        await acme.push(2, "acme/ml-b", None, A, clone_url="https://github.example:8443/acme/ml-b.git")
        await acme.decide()
        assert [one.url for one in found(sourced).values()] == ["https://github.example/acme/ml-a.git"]
        waits = "waiting until the source lists https://github.example"
        assert (repository(sourced, 1).reason or "").startswith(waits)
        for number, name in ((1, "acme/ml-c"), (2, "acme/ml-b")):
            list_one(sourced, SOURCE, number, name)
        await acme.decide()
        urls = {f"https://github.example/acme/{name}.git" for name in ("ml-c", "ml-b")}
        assert {one.url for one in found(sourced).values()} == urls

    run(sourced, work)
