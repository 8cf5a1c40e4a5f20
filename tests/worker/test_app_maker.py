"""The codes of new GitHub Apps are exchanged, or it is said why not."""

import asyncio
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.responses import Response

from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.store import connections, identities, registrations, source_apps, sources
from gateway.store.database import Database
from gateway.store.notify import Notifier
from gateway.store.source_apps import CODE_VALID
from gateway.store.sources import Source
from gateway.worker.app_maker import AppMaker
from testing.provider_apis.fake import serving
from testing.provider_apis.github_app import FakeGitHubWithApp
from tests.intake.local import KEYRING

DOCUMENT = {
    "id": 5,
    "slug": "octo",
    "name": "Octo",
    "html_url": "https://github.example/github-apps/octo",
    "client_id": "Iv1",
    "client_secret": "canary",
    "webhook_secret": "the secret of the webhook",
    "pem": "the key",
}


@pytest.fixture
def fake() -> Iterator[FakeGitHubWithApp]:
    """Serve GitHub, which has made an App."""
    fake = FakeGitHubWithApp(manifests={"c0de": DOCUMENT})
    with serving(fake):
        yield fake


class Gateway:
    """A source that has received a code, and the worker."""

    def __init__(self, database: Database, fake: FakeGitHubWithApp) -> None:
        """Add the source."""
        self.database, self.now = database, datetime.now(UTC)
        self.maker = AppMaker(
            database=database,
            keyring=KEYRING,
            wakeups=Notifier().subscribe(),
            notify=lambda: None,
            apis=ProviderApis(connector=CheckedAddresses(allow_loopback=True)),
        )
        self.source = Source(
            id="s1",
            name="acme",
            provider="github",
            url=f"{fake.url}/acme",
            scope="owner",
            rules=(),
            auth={},
            networks=(),
            identity=None,
            created_at=self.now,
            updated_at=self.now,
        )
        with database.writing() as conn:
            sources.add(conn, self.source)
            connections.add_secret(conn, KEYRING, "s1", b"the first secret", now=self.now)

    def receive(self, code: str = "c0de", age: timedelta = timedelta()) -> None:
        """Receive a code."""
        with self.database.writing() as conn:
            of_round = source_apps.current_round(conn, "s1")
            at = self.now - age
            source_apps.receive(conn, KEYRING, self.source, code, of_round=of_round, now=at)

    def work(self) -> bool:
        """Let the worker exchange what is due; return whether something was."""
        return asyncio.run(self.maker.exchange_next())

    def reason(self) -> str:
        """Return why the code was not exchanged."""
        with self.database.reading() as conn:
            return source_apps.of(conn, ["s1"])["s1"].reason or ""

    def is_pending(self) -> bool:
        """Return whether the code is to be exchanged."""
        with self.database.reading() as conn:
            return source_apps.of(conn, ["s1"])["s1"].is_pending


@pytest.fixture
def gateway(migrated: Path, tmp_path: Path, fake: FakeGitHubWithApp) -> Iterator[Gateway]:
    """Return a gateway with the source."""
    database = Database(f"sqlite:///{shutil.copy(migrated, tmp_path)}")
    yield Gateway(database, fake)
    database.close()


def test_an_app_is_stored_whole(gateway: Gateway) -> None:
    """Its key, its secret, and what is to be done with it."""
    gateway.receive()
    assert (gateway.work(), gateway.work()) == (True, False)
    assert (gateway.reason(), gateway.is_pending()) == ("", False)
    with gateway.database.reading() as conn:
        source = sources.get(conn, "s1")
        assert source.identity is not None
        kept = identities.unseal(conn, KEYRING, source.identity)
        live = [secret.value for secret in connections.live_secrets(conn, KEYRING, "s1")]
        assert sources.LISTINGS.is_due(conn, now=datetime.now(UTC))
        assert registrations.is_due(conn, now=datetime.now(UTC))
    assert (kept.secret, kept.identity.name, kept.identity.kind) == ("the key", "octo", "github-app")
    assert kept.identity.settings == {"app_id": "5", "client_id": "Iv1", "slug": "octo"}
    assert (kept.identity.api_url or "").endswith("/api/v3")
    assert live == [b"the secret of the webhook", b"the first secret"]


def test_a_code_that_github_does_not_accept_ends_with_what_to_do(gateway: Gateway) -> None:
    """The user begins again; the second App has the name of the first, which is taken."""
    gateway.receive("used")
    gateway.work()
    assert gateway.reason() == (
        "GitHub did not accept the code of the new App: it was used already, or is older than an hour; begin"
        " again on the page of the source's App; if GitHub lists the App already, delete it there first,"
        " because no other App can have its name"
    )
    assert (gateway.is_pending(), gateway.work()) == (False, False)
    gateway.receive()
    gateway.work()
    assert not gateway.reason()


def test_an_outage_is_waited_for_while_the_code_may_be_valid(
    gateway: Gateway, fake: FakeGitHubWithApp
) -> None:
    """For an hour."""
    fake.instead.extend([Response(status_code=502), Response(status_code=502)])
    gateway.receive()
    gateway.work()
    assert (gateway.is_pending(), "answered 502" in gateway.reason()) == (True, True)
    assert not gateway.work()
    with gateway.database.writing() as conn:
        sources.remove(conn, "s1", now=gateway.now)
        assert source_apps.of(conn, ["s1"]) == {}


def test_an_outage_of_an_hour_ends_it(gateway: Gateway, fake: FakeGitHubWithApp) -> None:
    """The code is of no use any more."""
    fake.instead.append(Response(status_code=502))
    gateway.receive(age=CODE_VALID)
    gateway.work()
    assert (gateway.is_pending(), "answered 502" in gateway.reason()) == (False, True)


def test_a_name_that_is_taken_gets_an_end(gateway: Gateway, fake: FakeGitHubWithApp) -> None:
    """No key is lost."""
    gateway.receive()
    gateway.work()
    with gateway.database.writing() as conn:
        sources.change(conn, gateway.source)
    fake.manifests["c0de"] = {**DOCUMENT, "webhook_secret": None}
    gateway.receive()
    gateway.work()
    with gateway.database.reading() as conn:
        found = [one.name for one in identities.page(conn, after=None, limit=10)]
    assert found[0] == "octo"
    assert found[1].startswith("octo-")
