"""Whoever knows the secret of a source reaches its own repositories, and harms nobody else's deliveries."""

import pytest

from gateway.store.database import Database
from testing.records import A
from tests.worker.acme import SOURCE, Acme, delivered, found, run


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
