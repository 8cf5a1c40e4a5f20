"""The servers of the webhook benchmark: `python -m bench.servers bare|webhook|source|unstored PORT [URL]`."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import sqlalchemy
import uvicorn
from sqlalchemy import insert
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.api.http_meter import HttpMeter
from gateway.crypto.keyring import Keyring
from gateway.intake.connection_cache import ConnectionCache
from gateway.intake.group_commit import DeliveryWriter
from gateway.intake.refusal_log import RefusalLog
from gateway.intake.webhook import WebhookEndpoint, WebhooksFirst
from gateway.server.http_limits import ClientLimits, limited
from gateway.server.server import prepare_interpreter
from gateway.store import connections, sources
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.measures import measure
from gateway.store.sources import Source
from gateway.store.tables import source_repositories
from testing.github import REPOSITORY_ID

CONNECTION = "c" * 24
_OF_SOURCE = "d" * 24
KEY = "k" * 32
SECRET = b"the bench's secret"
URL = "https://github.example/acme/digits.git"


async def _bare(request: Request) -> Response:
    """Read the body and answer: the cost of any Starlette route."""
    await request.body()
    return JSONResponse({"status": "accepted"}, 202)


def bare() -> Starlette:
    """Return the yardstick."""
    return Starlette(routes=[Route("/hooks/{connection}", _bare, methods=["POST"])])


def prepare(database: Database, keyring: Keyring, *, by_source: bool = False) -> None:
    """Create the tables, and the connection to which all requests belong.

    With `by_source`, they are requests to its source.
    """
    database.migrate()
    now = datetime.now(UTC)
    connection = Connection(
        id=_OF_SOURCE if by_source else CONNECTION,
        name="bench",
        provider="github",
        url=URL,
        project="bench",
        auth={},
        triggers=[],
        yaml_path="valohai.yaml",
        # As set by the first delivery.
        repository_id=str(REPOSITORY_ID),
        created_at=now,
        updated_at=now,
        source=CONNECTION if by_source else None,
    )
    with database.writing() as conn:
        connections.add(conn, connection)
        if by_source:
            _add_source(conn, connection, now)
        connections.add_secret(conn, keyring, CONNECTION, SECRET, now=now)


def _add_source(conn: sqlalchemy.Connection, connection: Connection, now: datetime) -> None:
    source = Source(
        id=CONNECTION,
        name="acme",
        provider="github",
        url="https://github.example/acme",
        scope="owner",
        rules=[{}],
        auth={},
        networks=(),
        identity=None,
        created_at=now,
        updated_at=now,
    )
    sources.add(conn, source)
    repository = {
        "source": CONNECTION,
        "repository": connection.repository_id,
        "full_name": "acme/digits",
        "url": URL,
        "state": "connected",
        "connection": connection.id,
        "seen_at": now,
    }
    conn.execute(insert(source_repositories).values(**repository))


class _Unstored(DeliveryWriter):
    """Accept deliveries and store none: the cost of the endpoint without the store."""

    async def accept(self, delivery: NewDelivery, *, seconds: float = 0.0) -> Receipt:  # noqa: ARG002
        return Receipt(
            delivery=delivery.id, verdict=delivery.verdict, reason=delivery.reason, outcome="waiting"
        )


def webhook(url: str, *, accepts: type[DeliveryWriter] = DeliveryWriter, by_source: bool = False) -> ASGIApp:
    """Return the webhook endpoint as `gateway.app` composes it, with one connection and no worker."""
    database, keyring = Database(url), Keyring(KEY)
    prepare(database, keyring, by_source=by_source)
    writer = accepts(database, notify=lambda: None)
    refusals = RefusalLog(database)

    @asynccontextmanager
    async def lifespan(_application: Starlette) -> AsyncIterator[None]:
        writer.start()
        yield
        await writer.stop()
        await refusals.stop()
        await database.aclose()

    endpoint = WebhookEndpoint(
        ConnectionCache(database, keyring), writer, refusals, body_limit=25 * 1024 * 1024
    )
    measure(database)
    return HttpMeter(WebhooksFirst(endpoint, Starlette(lifespan=lifespan)))


if __name__ == "__main__":
    kind, port = sys.argv[1], int(sys.argv[2])
    application: ASGIApp
    if kind == "bare":
        application = bare()
    else:
        accepts = _Unstored if kind == "unstored" else DeliveryWriter
        application = webhook(sys.argv[3], accepts=accepts, by_source=kind == "source")
    prepare_interpreter()
    uvicorn.run(
        application,
        port=port,
        loop="uvloop",
        http="httptools" if kind == "bare" else limited(ClientLimits(connections=1000)),
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
