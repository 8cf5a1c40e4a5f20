"""A cache of connections and sources, so that the webhook endpoint rarely reads them from the store."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

import sqlalchemy
import structlog

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound
from gateway.intake.lookup_cache import MAX_CACHED, LookupCache
from gateway.store import connections, source_repositories
from gateway.store.connections import Connection, Secret
from gateway.store.database import Database
from gateway.store.source_repositories import SourceRepository
from providers import PROVIDERS
from providers.clone_urls import is_about, repository_key
from providers.model import Provider, Repository
from providers.signatures import MIN_SECRET_BYTES, is_weak

log = structlog.get_logger()

_LOOKUP_TIMEOUT = 4.0

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedConnection:
    """A connection as the webhook endpoint needs it.

    `secrets` and `secret_ids` run in parallel, newest first. If `networks` is not empty, requests are
    accepted only from these networks. The deliveries to a source are those of its repositories' connections.
    """

    id: str
    provider_name: str
    provider: Provider
    auth: Mapping[str, str]
    secrets: tuple[bytes, ...]
    secret_ids: tuple[int, ...]
    repository_id: str | None
    repository_key: str
    networks: tuple[Network, ...]
    is_source: bool = False

    def is_about(self, repository: Repository) -> bool:
        """Return whether a payload's repository is this connection's.

        Compare the provider's id once a delivery has supplied it; until then the clone URL or the full name.
        A payload that names no repository matches. What the payload names is compared, never fetched.
        """
        if self.repository_id is not None and repository.id is not None:
            return self.repository_id == repository.id
        return self.is_at(repository)

    def is_at(self, repository: Repository) -> bool:
        """Return whether a payload's repository has this connection's address, regardless of its id."""
        return is_about(self.repository_key, repository)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a source's deliveries about one repository go: to its connection, if it has one.

    `known` is what the store has of the repository; None if the source never saw it.
    """

    known: SourceRepository | None
    connection: CachedConnection | None

    def names(self, repository: Repository) -> bool:
        """Return whether the repository is known at an address that a payload names, or by its full name."""
        if self.known is None:
            return False
        if not repository.urls:
            return is_about(repository_key(self.known.url), repository)
        # Usually the same text, and the keys cost as much as the rest of the routing.
        if self.known.url in repository.urls:
            return True
        return repository_key(self.known.url) in map(repository_key, repository.urls)


class ConnectionCache:
    """Connections and sources by id, and the connections of a source's repositories.

    They are as they were at most two seconds ago.
    """

    def __init__(
        self, database: Database, keyring: Keyring, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start empty."""
        self._database = database
        self._keyring = keyring
        self._connections = LookupCache(self._look_up, clock=clock)
        self._routes = LookupCache(self._look_up_route, clock=clock)
        self._warned: set[str] = set()

    async def find(self, connection_id: str, *, seconds: float = _LOOKUP_TIMEOUT) -> CachedConnection:
        """Return a connection or a source.

        Raises `NotFound`, or `StoreUnavailable` if the lookup takes longer than `seconds`.
        """
        return await self._connections.find(connection_id, seconds=seconds)

    async def route(self, source: CachedConnection, repository_id: str, *, seconds: float) -> Route:
        """Return where a source's deliveries about a repository go. Raises `StoreUnavailable`."""
        return await self._routes.find(f"{source.id}/{repository_id}", seconds=seconds)

    def forget(self, connection_id: str) -> None:
        """Drop a connection that has changed, so that the next request reads it again."""
        self._connections.forget(connection_id)

    def forget_route(self, source: CachedConnection, repository_id: str) -> None:
        """Drop a route that is about to change."""
        self._routes.forget(f"{source.id}/{repository_id}")

    async def _look_up(self, connection_id: str) -> CachedConnection:
        connection = await self._database.look_up(self._read, connection_id=connection_id)
        self._warn(connection)
        return connection

    async def _look_up_route(self, key: str) -> Route:
        source, _, repository = key.partition("/")
        return await self._database.look_up(_read_route, source=source, repository=repository)

    def _warn(self, connection: CachedConnection) -> None:
        """Log once per connection that its secret is weak: it dates from before weak secrets were refused."""
        if connection.id not in self._warned and any(map(is_weak, connection.secrets)):
            if len(self._warned) < MAX_CACHED:
                self._warned.add(connection.id)
            log.warning(
                "a webhook secret can be guessed: rotate it",
                connection=connection.id,
                reason=f"it has fewer than {MIN_SECRET_BYTES} bytes",
            )

    def _read(self, conn: sqlalchemy.Connection, connection_id: str) -> CachedConnection:
        connection = connections.receiver(conn, connection_id)
        return cached_connection(connection, connections.live_secrets(conn, self._keyring, connection_id))


def cached_connection(connection: Connection, live: Sequence[Secret] = ()) -> CachedConnection:
    """Return a connection as the endpoint needs it, with its live secrets."""
    return CachedConnection(
        id=connection.id,
        provider_name=connection.provider,
        provider=PROVIDERS[connection.provider],
        auth=connection.auth,
        secrets=tuple(secret.value for secret in live),
        secret_ids=tuple(secret.id for secret in live),
        repository_id=connection.repository_id,
        repository_key=repository_key(connection.url),
        networks=tuple(map(ip_network, connection.networks)),
        is_source=connection.kind == "source",
    )


def _read_route(conn: sqlalchemy.Connection, source: str, repository: str) -> Route:
    known = source_repositories.route(conn, source, repository)
    if known is None or known.connection is None:
        return Route(known=known, connection=None)
    try:
        return Route(known=known, connection=cached_connection(connections.get(conn, known.connection)))
    except NotFound:
        # It was deleted between the two statements.
        return Route(known=source_repositories.route(conn, source, repository), connection=None)
