"""Processes that register the same webhook, or die meanwhile, leave one webhook, and each foreign one."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import update
from starlette.requests import Request
from starlette.responses import Response

from gateway.crypto.keyring import Keyring
from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.provider_apis.sign_in import SignIn
from gateway.store import identities, registrations
from gateway.store.database import Database
from gateway.store.identities import Identity
from gateway.store.notify import Notifier
from gateway.store.tables import webhook_registrations
from gateway.worker.registrar import Registrar
from testing import records
from testing.postgres import Postgres
from testing.provider_apis.fake import serving
from testing.provider_apis.github import FakeGitHub
from testing.records import NOW
from testing.service import WAIT_SECONDS

KEYRING = Keyring("k" * 32)
REPOSITORY, TOKEN = "acme/digits", "canary-6b2e"
FOREIGN = {"id": 7, "active": False, "events": ["push"], "config": {"url": "https://other.example/hooks/c1"}}


@dataclass(slots=True)
class SilentGitHub(FakeGitHub):
    """GitHub, which never answers the first request that creates a webhook, although it has done so."""

    is_silent: bool = False

    async def handle(self, request: Request) -> Response:
        """Answer, or wait until the client has gone."""
        answer = await FakeGitHub.handle(self, request)
        if self.is_silent and request.method == "POST":
            self.is_silent = False
            while not await request.is_disconnected():  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)
        return answer


@pytest.fixture
def github() -> Iterator[SilentGitHub]:
    """Serve a repository with a foreign webhook."""
    fake = SilentGitHub(tokens={TOKEN: {REPOSITORY}}, hooks={REPOSITORY: [{**FOREIGN}]})
    with serving(fake):
        yield fake


@pytest.fixture
def replicas(postgres: Postgres, github: SilentGitHub) -> Iterator[list[Registrar]]:
    """Return three processes' registrars of one database, in which a registration is due."""
    url = postgres.database()
    with ExitStack() as stack:
        databases = [stack.enter_context(closing(Database(url))) for _ in range(3)]
        databases[0].migrate()
        bot: dict[str, Any] = {"id": "i1", "name": "bot", "provider": "github", "kind": "token"}
        bot |= {"user": None, "settings": {}, "api_url": f"{github.url}/api/v3", "expires_at": None}
        records.connection(databases[0], url=f"{github.url}/{REPOSITORY}.git", identity="i1")
        with databases[0].writing() as conn:
            identities.add(conn, KEYRING, Identity(**bot, created_at=NOW, updated_at=NOW), TOKEN)
        request(databases[0])
        yield [
            Registrar(
                database=database,
                keyring=KEYRING,
                wakeups=Notifier().subscribe(),
                apis=ProviderApis(connector=CheckedAddresses(allow_loopback=True)),
                sign_in=SignIn({}),
                base_url="http://127.0.0.1:9",
            )
            for database in databases
        ]


def request(database: Database) -> None:
    """Make the registration of the webhook due, whoever works on it."""
    with database.writing() as conn:
        registrations.request(conn, "c1", "register", now=datetime.now(UTC))


def recorded(database: Database) -> str | None:
    """Return the id of the webhook that is recorded."""
    with database.reading() as conn:
        return registrations.of(conn, ["c1"])["c1"].webhook


async def until_recorded(registrars: list[Registrar], database: Database) -> None:
    """Run the registrars at the same time until one has recorded a webhook."""
    running = [asyncio.create_task(registrar.run()) for registrar in registrars]
    async with asyncio.timeout(WAIT_SECONDS):
        while await asyncio.to_thread(recorded, database) is None:  # noqa: ASYNC110 - in the database
            await asyncio.sleep(0.01)
    for one in running:
        one.cancel()
    await asyncio.wait(running)


def test_replicas_that_register_at_once_leave_one_webhook(
    replicas: list[Registrar], github: SilentGitHub
) -> None:
    """One process claims the task; the others leave it alone."""
    asyncio.run(until_recorded(replicas, replicas[0].database))
    [foreign, ours] = github.hooks[REPOSITORY]
    assert (foreign, recorded(replicas[0].database)) == (FOREIGN, str(ours["id"]))
    assert [one.path for one in github.requests if one.method == "POST"].count(
        f"/api/v3/repos/{REPOSITORY}/hooks"
    ) == 1


def test_a_process_that_dies_before_it_records_the_webhook_leaves_no_second_one(
    replicas: list[Registrar], github: SilentGitHub
) -> None:
    """The next process finds what the provider has, by its URL."""
    dying, *others = replicas

    async def scenario() -> None:
        github.is_silent = True
        dead = asyncio.create_task(dying.run())
        async with asyncio.timeout(WAIT_SECONDS):
            while len(github.hooks[REPOSITORY]) < 2:  # noqa: ASYNC110 - the fake runs in another thread
                await asyncio.sleep(0.01)
        dead.cancel()
        await asyncio.wait({dead})

    asyncio.run(scenario())
    assert recorded(dying.database) is None
    # A process that dies gives nothing back: its lease expires.
    with dying.database.writing() as conn:
        conn.execute(update(webhook_registrations).values(due_at=datetime.now(UTC)))
    asyncio.run(until_recorded(others, others[0].database))
    [foreign, ours] = github.hooks[REPOSITORY]
    assert (foreign, recorded(dying.database)) == (FOREIGN, str(ours["id"]))
