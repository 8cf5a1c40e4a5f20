"""Failed deliveries are found in the providers' logs, and requested again within limits."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from gateway.crypto.keyring import Keyring
from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.provider_apis.github_app_sign_in import GitHubApps
from gateway.provider_apis.sign_in import SignIn
from gateway.store import accept, identities, redeliveries, sources
from gateway.store.database import Database
from gateway.store.identities import Identity
from gateway.store.notify import Notifier
from gateway.store.redeliveries import Summary
from gateway.store.redelivery_tables import redelivery_checks
from gateway.store.sources import Source
from gateway.store.tables import webhook_registrations
from gateway.worker.redelivery import Redelivery
from testing import records
from testing.certificate import make_certificate
from testing.provider_apis.fake import FakeApi, refusal, serving
from testing.provider_apis.github import FakeGitHub
from testing.provider_apis.github_app import FakeGitHubWithApp, make_key
from testing.provider_apis.gitlab import FakeGitLab
from testing.records import NOW

KEYRING = Keyring("k" * 32)
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
TOKEN, PROJECT = "canary-3f5a", "acme/digits"


@dataclass(slots=True)
class Endpoint(FakeApi):
    """Answers deliveries with `status`, and stores those that it accepts."""

    status: int = 200
    database: Database | None = None
    guids: list[str] = field(default_factory=list)

    async def handle(self, request: Request) -> Response:
        """Receive a delivery."""
        headers = request.headers
        guid = headers.get("x-github-delivery") or headers["idempotency-key"]
        self.guids.append(guid)
        if self.status == 200 and self.database is not None:
            new = records.arrival(provider_delivery_id=guid, verdict="ignored", received_at=datetime.now(UTC))
            await self.database.write(accept.record, [new])
        return Response(status_code=self.status)


def identity(provider: str, api_url: str, **changes: Any) -> Identity:
    """Return what the worker is at a provider."""
    values: dict[str, Any] = {
        "id": "i1",
        "name": "bot",
        "provider": provider,
        "kind": "token",
        "user": None,
        "settings": {},
        "api_url": api_url,
        "expires_at": None,
        "created_at": NOW,
        "updated_at": NOW,
        **changes,
    }
    return Identity(**values)


@dataclass(slots=True)
class Gateway:
    """A worker with one connection, whose webhook is registered, and its clock."""

    database: Database
    endpoint: Endpoint
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    worker: Redelivery = field(init=False)

    def __post_init__(self) -> None:
        """Start the worker."""
        apis = ProviderApis(connector=CheckedAddresses(allow_loopback=True))
        self.worker = Redelivery(
            database=self.database,
            keyring=KEYRING,
            wakeups=Notifier().subscribe(),
            apis=apis,
            sign_in=SignIn({"github-app": GitHubApps(apis=apis)}),
            clock=lambda: self.now,
        )

    def connect(self, provider: str, api_url: str, host: str, hook: dict[str, Any]) -> None:
        """Store the connection, its identity and its webhook."""
        records.connection(self.database, provider=provider, url=f"{host}/{PROJECT}.git", identity="i1")
        self.register(identity(provider, api_url), TOKEN, str(hook["id"]))

    def register(self, bot: Identity, secret: str, webhook: str) -> None:
        """Store the identity of a connection or source, and its webhook."""
        registered = {"connection": "c1", "task": "check", "due_at": NOW, "attempts": 0, "differences": []}
        with self.database.writing() as conn:
            identities.add(conn, KEYRING, bot, secret)
            conn.execute(insert(webhook_registrations).values(**registered, webhook=webhook))
            redeliveries.watch(conn, "c1", may_lack=False, now=self.now - 120 * MINUTE)

    def check(self, *, later: timedelta = timedelta()) -> None:
        """Make a check due, so much later, and do what is due then."""
        self.now += later
        with self.database.writing() as conn:
            redeliveries.make_all_due(conn, at=self.now)
        self.work()

    def work(self, *, later: timedelta = timedelta()) -> bool:
        """Do what is due, so much later; return whether anything was."""
        self.now += later
        is_due = False
        while asyncio.run(self.worker.check_next()):
            is_due = True
        return is_due

    def seconds(self) -> float:
        """Return the time in seconds."""
        return self.now.timestamp()

    @property
    def summary(self) -> Summary:
        """What is shown of the connection."""
        with self.database.reading() as conn:
            found = redeliveries.summary(conn, "c1")
        assert found is not None
        return found

    @property
    def due_in(self) -> timedelta:
        """In how long the next check is due."""
        with self.database.reading() as conn:
            due_at: datetime = conn.execute(redelivery_checks.select()).one().due_at
        return due_at - self.now


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the certificate of an authority: to read the system's takes most of the time."""
    return make_certificate(tmp_path_factory.mktemp("authority")).authority


@pytest.fixture
def gateway(database: Database, authority: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """Return a worker, with the webhook's address."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    endpoint = Endpoint(database=database)
    with serving(endpoint):
        yield Gateway(database, endpoint)


@pytest.fixture
def github(gateway: Gateway) -> Iterator[FakeGitHub]:
    """Serve GitHub with the webhook of the connection."""
    hook = {"id": 7, "active": True, "events": ["push"], "config": {"url": gateway.endpoint.url}}
    fake = FakeGitHub(tokens={TOKEN: {PROJECT}}, hooks={PROJECT: [hook]})
    with serving(fake):
        gateway.connect("github", f"{fake.url}/api/v3", fake.url, hook)
        yield fake


@pytest.fixture
def gitlab(gateway: Gateway) -> Iterator[FakeGitLab]:
    """Serve GitLab with the webhook of the connection."""
    hook = {"id": 7, "url": gateway.endpoint.url, "token": "canary-77d1"}
    fake = FakeGitLab(tokens={TOKEN: {PROJECT}}, hooks={PROJECT: [hook]}, clock=gateway.seconds)
    with serving(fake):
        gateway.connect("gitlab", f"{fake.url}/api/v4", fake.url, hook)
        yield fake


def test_what_failed_is_requested_once_the_oldest_first(gateway: Gateway, github: FakeGitHub) -> None:
    """Neither what succeeded since, nor other events, nor what is older than the last search."""
    [hook] = github.hooks[PROJECT]
    github.log(hook, "push", b"{}", 503, at=gateway.now - DAY)
    wanted = [github.log(hook, event, b"{}", 503).guid for event in ("push", "pull_request")]
    repeated = github.log(hook, "push", b"{}", 503)
    github.log(hook, "push", b"{}", 200, guid=repeated.guid)
    github.log(hook, "issues", b"{}", 503)
    gateway.check()
    assert gateway.endpoint.guids == wanted
    assert [request.method for request in github.requests] == ["GET", "POST", "POST"]
    assert (gateway.summary.requested, gateway.summary.given_up, gateway.summary.reason) == (2, 0, None)
    assert gateway.due_in == 10 * MINUTE
    assert gateway.work(later=10 * MINUTE)
    assert gateway.endpoint.guids == wanted
    assert 0.9 * DAY < gateway.due_in < 1.1 * DAY


def test_what_fails_each_time_is_given_up(gateway: Gateway, github: FakeGitHub) -> None:
    """After three requests; a user may have it requested again."""
    [hook] = github.hooks[PROJECT]
    delivery = github.log(hook, "push", b"{}", 503)
    gateway.endpoint.status = 503
    gateway.check()
    gateway.check(later=MINUTE)
    assert gateway.endpoint.guids == [delivery.guid]
    with capture_logs() as logs:
        for _ in range(4):
            gateway.work(later=10 * MINUTE)
    assert gateway.endpoint.guids == [delivery.guid] * 3
    [given_up] = [entry for entry in logs if "given up" in entry["event"]]
    assert (given_up["provider_delivery_id"], given_up["requests"]) == (delivery.guid, 3)
    assert (gateway.summary.requested, gateway.summary.given_up) == (1, 1)
    assert gateway.due_in > 0.8 * DAY
    gateway.endpoint.status = 200
    with gateway.database.writing() as conn:
        assert redeliveries.request(conn, "c1", since=gateway.now - 2 * DAY, now=gateway.now)
    assert gateway.work()
    assert gateway.endpoint.guids == [delivery.guid] * 4
    assert (gateway.summary.requested, gateway.summary.given_up) == (1, 0)


def test_gitlab_is_requested_to_send_5_a_minute(gateway: Gateway, gitlab: FakeGitLab) -> None:
    """The rest is requested later; what has arrived is no longer requested, nor is an unknown event."""
    [hook] = gitlab.hooks[PROJECT]
    for number in range(22):
        headers = {"idempotency-key": f"key-{number}", "x-gitlab-event": "Merge Request Hook"}
        gitlab.add_to_log(hook, "Merge Request Hook", {}, 503, headers)
    headers = {"idempotency-key": "note", "x-gitlab-event": "Note Hook"}
    gitlab.add_to_log(hook, "Note Hook", {}, 503, headers)
    gateway.check()
    for requested in (5, 10, 15, 20, 22):
        assert len(gateway.endpoint.guids) == requested
        gateway.work(later=61 * SECOND)
    assert sorted(gateway.endpoint.guids) == sorted(f"key-{number}" for number in range(22))
    assert all(request.status < 400 for request in gitlab.requests)
    assert gateway.summary.requested == 22


def test_a_log_that_cannot_be_read_is_read_later(gateway: Gateway, github: FakeGitHub) -> None:
    """After a minute and more while it may pass, else after a day; the reason is shown."""
    github.instead.append(refusal(500, "oops"))
    gateway.check()
    assert gateway.summary.reason == "127.0.0.1 answered 500; try again later"
    assert MINUTE / 2 < gateway.due_in < 2 * MINUTE
    github.readers.add(TOKEN)
    gateway.check(later=2 * MINUTE)
    assert "bot needs the right “Webhooks: read and write”" in (gateway.summary.reason or "")
    assert gateway.due_in == DAY
    github.readers.clear()
    gateway.check()
    assert gateway.summary.reason is None
    with gateway.database.writing() as conn:
        conn.execute(update(webhook_registrations).values(webhook=None))
    gateway.check()
    assert gateway.summary.reason == "the webhook is not registered"


def test_a_limited_identity_is_left_alone(gateway: Gateway, github: FakeGitHub) -> None:
    """The search goes on where it has stopped, once the provider permits it."""
    [hook] = github.hooks[PROJECT]
    oldest = github.log(hook, "push", b"{}", 503)
    for _ in range(250):
        github.log(hook, "push", b"{}", 200)
    # The client obeys this by the machine's clock, the worker leaves the identity alone for a minute.
    github.instead.append(refusal(429, "slow down", Retry_After="0.001"))
    gateway.check()
    assert not gateway.work(later=59 * SECOND)
    assert gateway.work(later=SECOND)
    assert gateway.endpoint.guids == [oldest.guid]
    assert [request.method for request in github.requests] == ["GET", *["GET"] * 3, "POST"]


def test_the_log_of_an_app_is_searched_for_its_source(gateway: Gateway) -> None:
    """As the App itself, every 10 minutes, because it is the log of all its repositories."""
    key, pem = make_key()
    fake = FakeGitHubWithApp(key=key, hook_config={"url": gateway.endpoint.url})
    source = Source(
        id="c1",
        name="acme",
        provider="github",
        url="https://github.example/acme",
        scope="owner",
        rules=[],
        auth={},
        networks=[],
        identity="i1",
        created_at=NOW,
        updated_at=NOW,
    )
    with serving(fake):
        with gateway.database.writing() as conn:
            sources.add(conn, source)
        settings = {"app_id": str(fake.app_id)}
        app = identity("github", f"{fake.url}/api/v3", kind="github-app", settings=settings)
        gateway.register(app, pem, str(fake.app_id))
        missed = fake.log({"id": fake.app_id}, "pull_request", b"{}", 503)
        gateway.check()
        assert (gateway.endpoint.guids, gateway.summary.reason) == ([missed.guid], None)
        gateway.work(later=10 * MINUTE)
        assert 8 * MINUTE < gateway.due_in < 12 * MINUTE
        assert gateway.endpoint.guids == [missed.guid]
