"""The source of an organisation, which pushes to its repositories while a worker decides about them."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gateway.intake.webhook import WebhookEndpoint
from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.provider_apis.sign_in import SignIn
from gateway.store import connections, deliveries, source_repositories, sources
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.deliveries import RecordedDelivery
from gateway.store.notify import Notifier
from gateway.store.source_repositories import Seen, SourceRepository
from gateway.store.sources import Source
from gateway.worker.source_connector import SourceConnector
from testing.github import push_payload
from testing.records import NOW
from tests.intake.local import KEYRING, SECRET, Answer, answered, opened, scope

SOURCE = "c1"
RULES = [
    {
        "match": ["ml-*", "!ml-old"],
        "project": "team-{name}",
        "triggers": [{"name": "t", "run": {"step": "s"}}],
    }
]


def add(database: Database, id_: str = SOURCE, owner: str = "acme", **changes: Any) -> None:
    """Store the source of an organisation."""
    source = Source(
        id=id_,
        name=owner,
        provider="github",
        url=f"https://github.example/{owner}",
        scope="owner",
        rules=RULES,
        auth={},
        networks=(),
        identity=None,
        created_at=NOW,
        updated_at=NOW,
    )
    with database.writing() as conn:
        sources.add(conn, replace(source, **changes))
        connections.add_secret(conn, KEYRING, id_, SECRET, now=NOW)


def set_rules(database: Database, rules: Sequence[Mapping[str, Any]]) -> None:
    """Change the rules of the source."""
    with database.writing() as conn:
        sources.change(conn, replace(sources.get(conn, SOURCE), rules=rules))


class Acme:
    """The organisation: it pushes to its repositories, and the worker decides in between."""

    def __init__(self, database: Database, endpoint: WebhookEndpoint) -> None:
        self.database, self.endpoint = database, endpoint
        self.connector = SourceConnector(
            database=database,
            keyring=KEYRING,
            wakeups=Notifier().subscribe(),
            notify=lambda: None,
            apis=ProviderApis(connector=CheckedAddresses(allow_loopback=True)),
            sign_in=SignIn({}),
            allow_http=False,
            hosts=(),
        )

    async def push(
        self, number: int, name: str, before: str | None, after: str, to: str = SOURCE, **fields: Any
    ) -> Answer:
        """Push to the main branch of a repository, by its id and its name at present."""
        body = push_payload(
            url=f"https://github.example/{name}.git",
            full_name=name,
            ref="refs/heads/main",
            before=before,
            after=after,
        )
        payload = json.loads(body)
        payload["repository"] |= {"id": number, **fields}
        payload["repository"]["ssh_url"] = f"git@github.example:{name}.git"
        return await self.send("push", payload, to)

    async def send(self, event: str, payload: Any, to: str = SOURCE) -> Answer:
        """Send an event to a source."""
        body = json.dumps(payload).encode()
        given = scope(body, {"x-github-event": event}, path_params={"connection": to})
        return await answered(self.endpoint, given, body)

    async def decide(self) -> None:
        """Let the worker decide about all repositories that are due."""
        while await self.connector.decide_next():
            pass


def run(database: Database, work: Any) -> Any:
    """Run a test's coroutine with an endpoint on the database."""

    async def running() -> Any:
        async with opened(database) as endpoint:
            return await work(Acme(database, endpoint))

    return asyncio.run(running())


def found(database: Database) -> dict[str, Connection]:
    """Return the connections by name."""
    with database.reading() as conn:
        return {one.name: one for one in connections.page(conn, after=None, limit=1000)}


def repository(database: Database, number: int) -> SourceRepository:
    """Return what the source has of a repository."""
    with database.reading() as conn:
        known = source_repositories.route(conn, SOURCE, str(number))
    assert known is not None
    return known


def delivered(database: Database, connection_id: str) -> list[RecordedDelivery]:
    """Return the deliveries of a connection or of the source, the oldest first."""
    with database.reading() as conn:
        page = deliveries.page(conn, connection=connection_id, verdict=None, before=None, limit=1000)
    return page[::-1]


def found_id(database: Database, name: str) -> str:
    """Return the id of a connection."""
    return found(database)[name].id


def list_one(database: Database, source: str, number: int, name: str) -> None:
    """Record that a source has listed a repository."""
    seen = Seen(
        source=source,
        repository=str(number),
        full_name=name,
        url=f"https://github.example/{name}.git",
        default_branch="main",
        is_listed=True,
    )
    with database.writing() as conn:
        source_repositories.see_listed(conn, [seen], now=datetime.now(UTC))
