"""The header Idempotency-Key, on SQLite and on PostgreSQL with two processes."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from gateway.api.problems import PAGE
from gateway.crypto.keyring import Keyring
from gateway.errors import KeyInUse
from gateway.store import idempotency
from gateway.store.database import Database
from gateway.store.idempotency_tables import idempotency_keys as keys
from gateway.worker.retention import Retention
from testing.in_process import Answer, InProcess

API = "/api/v1"
NEW = {"provider": "github", "url": "https://github.com/acme/digits.git", "project": "digits", "force": True}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def gateways(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[InProcess, InProcess]]:
    """Start a gateway on SQLite, or two on one PostgreSQL."""
    folder = tmp_path_factory.mktemp("keys")
    with ExitStack() as stack:
        if request.param == "sqlite":
            one = stack.enter_context(InProcess(folder / "data"))
            yield one, one
            return
        url = request.getfixturevalue("postgres").database()
        names = ("one", "two")
        first, second = (stack.enter_context(InProcess(folder / name, database_url=url)) for name in names)
        yield first, second


def connect(gateway: InProcess, key: str, body: Any = NEW, query: str = "wait=0") -> Answer:
    """Connect a repository, with a key."""
    return gateway.send("POST", f"{API}/connections?{query}", body, idempotency_key=key)


def test_a_repetition_gets_the_first_answer(gateways: tuple[InProcess, InProcess]) -> None:
    """With the secret that no other answer has, in each process, and in one quoting or the other."""
    first, second = gateways
    made = connect(first, "first")
    again = [connect(second, "first"), connect(first, '"first"')]
    assert made.status == 201, made.json
    for answer in again:
        assert (answer.status, answer.body) == (201, made.body)
        assert answer.headers == {**made.headers, "idempotency-replayed": "true"}
    assert connect(first, "second").json["id"] != made.json["id"]
    stored = first.database
    with stored.reading() as conn:
        sealed = conn.execute(select(keys.c.sealed).where(keys.c.sealed.is_not(None))).scalars().all()
    assert all(made.json["secret"].encode() not in one for one in sealed)


def test_a_key_is_for_one_request(gateways: tuple[InProcess, InProcess]) -> None:
    """Another body, query or path with it is refused; a request that failed frees its key."""
    first, second = gateways
    assert connect(first, "reused").status == 201
    for answer in (
        connect(second, "reused", {**NEW, "project": "other"}),
        connect(second, "reused", query="wait=0.1"),
        second.send("POST", f"{API}/sources", NEW, idempotency_key="reused"),
    ):
        assert (answer.status, answer.json["type"]) == (422, f"{PAGE}#key-reused")
    assert connect(first, "failed", {**NEW, "provider": "svn"}).status == 422
    assert connect(second, "failed").status == 201
    for wrong in ("", "ä", "two words", "x" * 256):
        [fault] = connect(first, wrong).json["errors"]
        assert fault["parameter"] == "Idempotency-Key"


def test_of_requests_at_the_same_time_one_is_carried_out(gateways: tuple[InProcess, InProcess]) -> None:
    """The others get 409, or the answer if they come later."""
    answers: list[Answer] = []
    start = threading.Barrier(6)

    def send(gateway: InProcess) -> None:
        start.wait()
        answers.append(connect(gateway, "at-once", {**NEW, "project": "once"}))

    threads = [threading.Thread(target=send, args=(gateways[number % 2],)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status for answer in answers} <= {201, 409}
    for refused in (answer for answer in answers if answer.status == 409):
        assert (refused.json["type"], refused.headers["retry-after"]) == (f"{PAGE}#key-in-use", "1")
    made = {answer.json["id"] for answer in answers if answer.status == 201}
    found = gateways[0].send("GET", f"{API}/connections?limit=200").json["items"]
    assert {one["id"] for one in found if one["project"] == "once"} == made
    assert len(made) == 1


def test_a_key_outlives_its_process_only_for_a_minute(gateways: tuple[InProcess, InProcess]) -> None:
    """After a crash amid a request, the key is in use for a minute; then the request is carried out."""
    first, second = gateways
    database = first.database
    keyring = Keyring("k" * 64)
    now = datetime.now(UTC)
    for late, expected in ((timedelta(seconds=59), "in use"), (timedelta(seconds=61), "free")):
        with database.writing() as conn:
            idempotency.claim(conn, keyring, f"killed {expected}", "print", now=now)
        with database.writing() as conn:
            in_use = pytest.raises(KeyInUse) if expected == "in use" else nullcontext()
            with in_use:
                idempotency.claim(conn, keyring, f"killed {expected}", "print", now=now + late)
    # What the killed process may still write does not count.
    with database.writing() as conn:
        idempotency.finish(conn, keyring, "killed free", b"late", held_until=now + timedelta(seconds=60))
        idempotency.release(conn, "killed free", held_until=now + timedelta(seconds=60))
        row = conn.execute(select(keys).where(keys.c.id == "killed free")).one()
    assert (row.sealed, row.held_until) == (None, now + timedelta(seconds=121))
    assert connect(second, "after").status == 201


async def clean(database: Database) -> None:
    """Run the retention."""
    await Retention(database=database, keep=timedelta(days=30)).run(datetime.now(UTC))


def test_answers_are_kept_for_a_day(gateways: tuple[InProcess, InProcess]) -> None:
    """Then the key is new, and retention deletes what nobody has repeated."""
    first, second = gateways
    made = connect(first, "old", {**NEW, "project": "old"})
    old = datetime.now(UTC) - timedelta(hours=24)
    with first.database.writing() as conn:
        conn.execute(update(keys).values(begun_at=old))
    again = connect(second, "old", {**NEW, "project": "old"})
    assert (again.status, again.json["id"] != made.json["id"]) == (201, True)
    first.run(clean(first.database))
    with first.database.reading() as conn:
        assert conn.execute(select(func.count()).select_from(keys)).scalar() == 1


def test_a_new_secret_key_opens_kept_answers(gateways: tuple[InProcess, InProcess]) -> None:
    """Rotation seals their data keys again."""
    database = gateways[0].database
    before, after = Keyring("b" * 64), Keyring("a" * 64, "b" * 64)
    now = datetime.now(UTC)
    with database.writing() as conn:
        conn.execute(keys.delete())
        held = idempotency.claim(conn, before, "sealed", "print", now=now)
        assert isinstance(held, datetime)
        idempotency.finish(conn, before, "sealed", json.dumps([200, {}, ""]).encode(), held_until=held)
        assert idempotency.rewrap(conn, after) == 1
        found = idempotency.claim(conn, Keyring("a" * 64), "sealed", "print", now=now)
    assert found == b'[200, {}, ""]'
