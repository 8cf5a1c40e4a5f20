"""What the door knows of connections: read from the store once, and looked up without it from then on."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

# How long another process may go on with what it knew before a change was made in this one.
_CACHE_TTL = 2.0
_MAX_KNOWN = 50_000
_LOOKUP_TIMEOUT = 4.0

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedConnection:
    """A connection as the door needs it. `secrets` and `secret_ids` belong together, the newest first.

    Requests come from `networks` and nowhere else, where there are any.
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
        """Say whether a payload's repository is this connection's.

        By the provider's own id once a delivery has taught it; before that by clone URL or full name, and by
        neither where the payload names none. The payload's claim is only compared, never followed.
        """
        if self.repository_id is not None and repository.id is not None:
            return self.repository_id == repository.id
        return self.is_at(repository)

    def is_at(self, repository: Repository) -> bool:
        """Return whether a payload's repository has this connection's address, whatever its id."""
        return is_about(self.repository_key, repository)


class ConnectionCache:
    """Connections by id, as they were at most two seconds ago."""

    def __init__(
        self, database: Database, keyring: Keyring, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin empty."""
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._known: dict[str, tuple[float, CachedConnection]] = {}
        self._warned: set[str] = set()

    async def find(self, connection_id: str, *, seconds: float = _LOOKUP_TIMEOUT) -> CachedConnection:
        """Return a connection.

        Raises `NotFound`, or `StoreUnavailable` where it can't be looked up within so many seconds.
        """
        entry = self._known.get(connection_id)
        if entry is not None and self._clock() - entry[0] < _CACHE_TTL:
            return entry[1]
        started = self._clock()
        try:
            async with asyncio.timeout(seconds):
                known = await self._database.look_up(self._read, connection_id=connection_id)
        except NotFound:
            self.forget(connection_id)
            raise
        except TimeoutError:
            raise StoreUnavailable("the database does not answer in time") from None
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[connection_id] = (started, known)
        self._warn(known)
        return known

    def forget(self, connection_id: str) -> None:
        """Look the connection up again next time: it has changed."""
        self._known.pop(connection_id, None)

    def _warn(self, known: CachedConnection) -> None:
        """Log once of a connection that its secret was made before weak ones were refused."""
        if known.id not in self._warned and any(map(is_weak, known.secrets)):
            if len(self._warned) < _MAX_KNOWN:
                self._warned.add(known.id)
            log.warning(
                "a webhook secret can be guessed: rotate it",
                connection=known.id,
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
