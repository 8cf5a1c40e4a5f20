"""The webhook endpoint in this process: which answer each request gets, and at what cost."""

import asyncio
import json
import threading
from collections.abc import MutableMapping, Sequence
from typing import Any

import pytest
import structlog
from sqlalchemy import select

from gateway.crypto.keyring import Keyring
from gateway.intake import normalize
from gateway.intake.body import BodyReader, TooMuch, TooSlow
from gateway.intake.connection_cache import ConnectionCache
from gateway.intake.group_commit import DeliveryWriter
from gateway.intake.refusal_log import RefusalLog
from gateway.intake.webhook import WebhookEndpoint
from gateway.metrics import REGISTRY
from gateway.store import refusals
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.database import Database
from gateway.store.tables import deliveries
from testing.github import push_payload
from testing.records import A, B, C
from tests.intake.local import KEYRING, Answer, answered, asked, connect, opened, scope

URL = "https://github.example/acme/digits.git"


def refused(status: int, reason: str) -> float:
    """Return how many requests were refused for this reason."""
    labels = {"status": str(status), "reason": reason}
    return REGISTRY.get_sample_value("pushgate_refused_total", labels) or 0.0


def kept(database: Database) -> int:
    """Return how many deliveries were recorded."""
    with database.reading() as conn:
        return len(conn.execute(select(deliveries.c.id)).all())


UNSIGNED = {"x-hub-signature-256": "sha256=" + "0" * 64}


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"method": "GET"}, 405, "method not allowed"),
        ({"method": "PUT"}, 405, "method not allowed"),
        ({"path_params": {"connection": "c2"}}, 404, "no such connection"),
        ({"headers": {"content-encoding": "gzip"}}, 415, "unsupported content encoding"),
        ({"headers": {"content-length": "10001"}}, 413, "body too large"),
        ({"headers": UNSIGNED}, 401, "not verified"),
    ],
)
def test_what_is_refused_is_counted_by_its_reason_and_not_kept(
    database: Database, changes: dict[str, Any], status: int, reason: str
) -> None:
    """The answer has the status that the provider will show."""
    connect(database)
    before = refused(status, reason)
    with structlog.testing.capture_logs():
        answer = asked(database, scope(b"{}", **changes))
    assert (answer.status, answer.body["error"]) == (status, reason)
    assert refused(status, reason) == before + 1
    assert kept(database) == 0
    assert (b"allow" in answer.headers) == (status == 405)
    with database.reading() as conn:
        recorded = refusals.page(conn, connection=None, before=None, limit=9)
    if status == 405:
        assert recorded == []
        return
    [refusal] = recorded
    assert (refusal.status, refusal.cause, refusal.reason) == (status, reason, answer.body["detail"])
    assert (refusal.client, refusal.event, refusal.count) == ("192.0.2.1", "star", 1)
    # The text in the URL is stored only if it can be an id.
    assert refusal.connection == (None if status == 404 else "c1")


@pytest.mark.parametrize(
    ("body", "headers", "status", "error"),
    [
        (b"{}", {}, 202, None),
        (b"{", {}, 400, "unreadable body"),
        (b"{}", {"content-type": "text/plain"}, 415, "unreadable body"),
        (b"{}", {"x-github-event": "push"}, 202, None),
        (b"{}", {"x-github-event": "ping"}, 200, None),
    ],
)
def test_what_is_kept_has_an_id_in_the_answer(
    database: Database, body: bytes, headers: dict[str, str], status: int, error: str | None
) -> None:
    """Next to the error, if the delivery could not be read."""
    connect(database)
    answer = asked(database, scope(body, headers=headers), body)
    assert (answer.status, answer.body.get("error")) == (status, error)
    assert ("detail" in answer.body) == (error is not None)
    with database.reading() as conn:
        assert conn.execute(select(deliveries.c.id)).scalar_one() == answer.body["delivery"]


def test_an_unsigned_ping_leaves_nothing(database: Database) -> None:
    """The sender is not proven, but the test button of Bitbucket Data Center gets its answer."""
    connect(database, provider="bitbucket-server")
    answer = asked(database, scope(b"{}", headers={"x-event-key": "diagnostics:ping"}))
    assert (answer.status, answer.body) == (
        200,
        {"delivery": None, "verdict": "ignored", "reason": "ping"},
    )
    assert kept(database) == 0


def test_a_signature_that_is_sent_twice_is_none(database: Database) -> None:
    """Even if both are right: repeated headers arrive as a list."""
    connect(database)
    given = scope(b"{}")
    given["headers"] += [one for one in given["headers"] if one[0] == b"x-hub-signature-256"]
    with structlog.testing.capture_logs():
        assert asked(database, given).status == 401


@pytest.mark.parametrize(
    ("client", "shown"), [(("198.51.100.1", 1), "198.51.100.1"), (None, "of the sender")], ids=["one", "none"]
)
def test_a_refused_network_is_reported_with_the_address(
    database: Database, client: tuple[str, int] | None, shown: str
) -> None:
    """In the answer and in the log, with the delivery id that the provider shows."""
    connect(database, networks=("192.0.2.0/24",))
    before = refused(401, "network")
    with structlog.testing.capture_logs() as lines:
        answer = asked(database, scope(b"{}", client=client, headers={"x-github-delivery": "d" * 101}))
    expected = f"the address {shown} is not in this connection's networks"
    assert (answer.status, answer.body["detail"]) == (401, expected)
    assert refused(401, "network") == before + 1
    [line] = lines
    assert (line["client"], line["claimed_delivery"]) == (client[0] if client else None, "d" * 100)


class FullReader(BodyReader):
    """A reader that refuses every body."""

    def __init__(self, error: Exception) -> None:
        """Set the error to raise."""
        super().__init__(limit=0)
        self._error = error

    async def read(self, *_: Any) -> bytes:
        """Raise the error."""
        raise self._error


@pytest.mark.parametrize(("error", "reason"), [(TooSlow("late"), "slow"), (TooMuch("full"), "overload")])
def test_a_body_that_cannot_be_taken_may_come_again(
    database: Database, error: Exception, reason: str
) -> None:
    """It is 503, never 429 or 500, on which Azure DevOps drops events for good; no error is logged."""
    connect(database)

    async def ask() -> Answer:
        async with opened(database) as endpoint:
            endpoint._bodies = FullReader(error)  # noqa: SLF001 - to wait for 30 seconds would be too long
            return await answered(endpoint, scope(b"{}"), b"{}")

    before = refused(503, reason)
    with structlog.testing.capture_logs() as lines:
        answer = asyncio.run(ask())
    assert (answer.status, answer.body["detail"], lines) == (503, str(error), [])
    assert (answer.headers[b"retry-after"], answer.headers[b"connection"]) == (b"5", b"close")
    assert refused(503, reason) == before + 1


def test_who_goes_away_gets_no_answer(database: Database) -> None:
    """Nor does it count as a failure of ours."""
    connect(database)
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def ask() -> None:
        async with opened(database) as endpoint:
            await endpoint(scope(b"{}"), receive, send)

    with structlog.testing.capture_logs() as lines:
        asyncio.run(ask())
    assert (sent, lines) == ([], [])


def test_a_store_that_cannot_write_or_be_read_is_a_reason_to_try_again(database: Database) -> None:
    """It is reported as that, and not as a failure of the endpoint."""
    connect(database)

    async def ask(store: Database) -> Answer:
        endpoint = WebhookEndpoint(
            ConnectionCache(store, KEYRING),
            DeliveryWriter(database, notify=lambda: None),
            RefusalLog(database),
            body_limit=10_000,
            on_failure=failed.append,
        )
        return await answered(endpoint, scope(b"{}"), b"{}")

    failed: list[str] = []
    before = refused(503, "store")
    answer = asyncio.run(ask(database))
    assert (answer.status, answer.body["detail"]) == (
        503,
        "the delivery cannot be stored now: the writer of deliveries is not running",
    )
    with structlog.testing.capture_logs():
        answer = asyncio.run(ask(Database("postgresql://nobody@127.0.0.1:9/nothing")))
    assert answer.status == 503
    assert answer.body["detail"].startswith("the connection cannot be looked up now: ")
    assert refused(503, "store") == before + 2
    assert failed == [scope(b"{}")["path_params"]["connection"]] * 2


def test_a_secret_that_another_key_has_sealed_is_logged(database: Database) -> None:
    """The provider may retry once the key is repaired."""
    connect(database)
    before = refused(503, "secret key")
    with structlog.testing.capture_logs() as lines:
        answer = asked(database, scope(b"{}"), keyring=Keyring("x" * 32))
    assert answer.status == 503
    assert refused(503, "secret key") == before + 1
    assert [(line["event"], line["connection"]) for line in lines] == [("a connection cannot be used", "c1")]


def push(before: str, after: str, repository: int) -> bytes:
    """Return a push to a repository of this id."""
    body = push_payload(url=URL, full_name="acme/digits", ref="refs/heads/main", before=before, after=after)
    content = json.loads(body)
    return json.dumps({**content, "repository": {**content["repository"], "id": repository}}).encode()


def test_the_id_that_a_delivery_teaches_counts_at_once(database: Database) -> None:
    """Despite the two-second connection cache: the next delivery may be about another repository."""
    connect(database)

    async def ask() -> list[str]:
        async with opened(database) as endpoint:
            answers = [
                await answered(endpoint, scope(body, headers={"x-github-event": "push"}), body)
                for body in (push(A, B, 1), push(B, C, 2), push(B, C, 1))
            ]
        return [answer.body["verdict"] for answer in answers]

    assert asyncio.run(ask()) == ["accepted", "ignored", "accepted"]


class PatientWriter(DeliveryWriter):
    """A writer that records its time limits."""

    seconds = 0.0

    async def accept(self, delivery: NewDelivery, *, seconds: float = 0.0) -> Receipt:
        """Note the limit, and record the delivery."""
        self.seconds = seconds
        return await super().accept(delivery, seconds=seconds)


def test_what_the_look_up_took_is_not_left_for_writing(database: Database) -> None:
    """Providers give up after 10 seconds, whatever the delivery waited for."""
    connect(database)

    async def ask() -> float:
        writer = PatientWriter(database, notify=lambda: None)
        writer.start()
        cache, refusals = ConnectionCache(database, KEYRING), RefusalLog(database)
        endpoint = WebhookEndpoint(cache, writer, refusals, body_limit=10_000)
        answer = await answered(endpoint, scope(b"{}"), b"{}")
        await writer.stop()
        assert answer.status == 202
        return writer.seconds

    assert 0 < asyncio.run(ask()) < 4.5


@pytest.mark.parametrize(
    ("size", "large", "is_inline"), [(10, 10, True), (11, 10, False), (9000, None, True)]
)
def test_large_bodies_do_not_hold_up_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch, *, size: int, large: int | None, is_inline: bool
) -> None:
    """They are verified and parsed in a thread; for small bodies a thread would only cost time."""
    if large is not None:
        monkeypatch.setattr("gateway.intake.webhook._MAX_INLINE_BYTES", large)
    threads: list[threading.Thread] = []

    def noted(*given: Any) -> normalize.Received:
        threads.append(threading.current_thread())
        return normalize.read_request(*given)

    monkeypatch.setattr("gateway.intake.webhook.read_request", noted)
    connect(database)
    body = b"{}".ljust(size)
    assert asked(database, scope(body), body).status == 202
    assert [one is threading.main_thread() for one in threads] == [is_inline]


def test_only_so_many_requests_are_served_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more gets a 503, and each request that ends, however it ends, makes room for another."""
    monkeypatch.setattr("gateway.intake.webhook._MAX_IN_FLIGHT", 2)
    connect(database)

    async def statuses() -> Sequence[int]:
        found = []
        async with opened(database) as endpoint:

            async def waiting(may_end: asyncio.Event, begun: asyncio.Event) -> int:
                status = 0

                async def receive() -> MutableMapping[str, Any]:
                    begun.set()
                    await may_end.wait()
                    return {"type": "http.request", "body": b"{}", "more_body": False}

                async def send(message: MutableMapping[str, Any]) -> None:
                    nonlocal status
                    status = message.get("status", status)

                await endpoint(scope(b"{}"), receive, send)
                return status

            for _ in range(2):
                may_end, first, second = asyncio.Event(), asyncio.Event(), asyncio.Event()
                both = [asyncio.create_task(waiting(may_end, begun)) for begun in (first, second)]
                await asyncio.wait_for(asyncio.gather(first.wait(), second.wait()), 10)
                found.append((await answered(endpoint, scope(b"{}"), b"{}")).status)
                may_end.set()
                found += await asyncio.gather(*both)
        return found

    before = refused(503, "overload")
    assert asyncio.run(statuses()) == [503, 202, 202] * 2
    assert refused(503, "overload") == before + 2
