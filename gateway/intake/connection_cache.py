"""A cache of connections, so that the webhook endpoint rarely reads them from the store."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network

import sqlalchemy
import structlog

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, StoreUnavailable
from gateway.store import connections
from gateway.store.database import Database
from providers import PROVIDERS
from providers.clone_urls import is_about, repository_key
from providers.model import Provider, Repository
from providers.signatures import MIN_SECRET_BYTES, is_weak

log = structlog.get_logger()

# How long other processes may use a connection as it was before a change in this process.
_CACHE_TTL = 2.0
_MAX_CACHED = 50_000
_LOOKUP_TIMEOUT = 4.0

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedConnection:
    """A connection as the webhook endpoint needs it.

    `secrets` and `secret_ids` run in parallel, newest first. If `networks` is not empty, requests are
    accepted only from these networks.
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


class ConnectionCache:
    """Connections by id, as they were at most two seconds ago."""

    def __init__(
        self, database: Database, keyring: Keyring, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start empty."""
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._cached: dict[str, tuple[float, CachedConnection]] = {}
        # All requests for a connection share one lookup: dozens wait whenever a busy connection expires.
        self._lookups: dict[str, asyncio.Task[CachedConnection]] = {}
        self._warned: set[str] = set()

    async def find(self, connection_id: str, *, seconds: float = _LOOKUP_TIMEOUT) -> CachedConnection:
        """Return a connection.

        Raises `NotFound`, or `StoreUnavailable` if the lookup takes longer than `seconds`.
        """
        entry = self._cached.get(connection_id)
        if entry is not None and self._clock() - entry[0] < _CACHE_TTL:
            return entry[1]
        lookup = self._lookups.get(connection_id)
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(connection_id))
            self._lookups[connection_id] = lookup
            lookup.add_done_callback(partial(self._end_lookup, connection_id))
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(lookup)
        except TimeoutError:
            raise StoreUnavailable("the database does not answer in time") from None

    async def _look_up(self, connection_id: str) -> CachedConnection:
        """Read a connection into the cache, unless it has changed meanwhile."""
        started = self._clock()
        try:
            connection = await self._database.look_up(self._read, connection_id=connection_id)
        except NotFound:
            self._cached.pop(connection_id, None)
            raise
        if self._lookups.get(connection_id) is asyncio.current_task():
            if len(self._cached) >= _MAX_CACHED:
                self._cached.clear()
            self._cached[connection_id] = (started, connection)
        self._warn(connection)
        return connection

    def _end_lookup(self, connection_id: str, lookup: asyncio.Task[CachedConnection]) -> None:
        if self._lookups.get(connection_id) is lookup:
            del self._lookups[connection_id]
        if not lookup.cancelled():
            # Every request may have given up: the error then concerns nobody.
            lookup.exception()

    def forget(self, connection_id: str) -> None:
        """Drop a connection that has changed, so that the next request reads it again."""
        self._cached.pop(connection_id, None)
        self._lookups.pop(connection_id, None)

    def _warn(self, connection: CachedConnection) -> None:
        """Log once per connection that its secret is weak: it dates from before weak secrets were refused."""
        if connection.id not in self._warned and any(map(is_weak, connection.secrets)):
            if len(self._warned) < _MAX_CACHED:
                self._warned.add(connection.id)
            log.warning(
                "a webhook secret can be guessed: rotate it",
                connection=connection.id,
                reason=f"it has fewer than {MIN_SECRET_BYTES} bytes",
            )

    def _read(self, conn: sqlalchemy.Connection, connection_id: str) -> CachedConnection:
        connection = connections.get(conn, connection_id)
        live = connections.live_secrets(conn, self._keyring, connection_id)
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
        )
