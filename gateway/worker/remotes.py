"""The remotes of connections, with their credentials."""

from dataclasses import dataclass

from gateway.crypto.keyring import Keyring
from gateway.errors import RemoteUnavailable, SettingError
from gateway.fetch.credentials import Remote, from_json
from gateway.fetch.mirror import Mirrors
from gateway.fetch.reasons import local_failures
from gateway.store import connections
from gateway.store.connections import Connection
from gateway.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Remotes:
    """Builds the remotes of connections with the stored credentials."""

    mirrors: Mirrors
    database: Database
    keyring: Keyring

    async def of(self, connection: Connection) -> Remote:
        """Return a connection's remote with its credentials. Raises `RemoteUnavailable`."""
        try:
            stored = await self.database.read(
                connections.credentials, keyring=self.keyring, connection_id=connection.id
            )
        except SettingError as error:
            raise RemoteUnavailable(f"the remote cannot be fetched: {error}") from error
        credentials, host_keys = from_json(stored)
        return Remote(url=connection.url, credentials=credentials, host_keys=host_keys)

    async def refs(self, connection: Connection) -> dict[str, str]:
        """Return the remote's branches and tags with their ids. Raises `FetchError`."""
        with local_failures():
            return await self.mirrors.remote_refs(await self.of(connection))

    async def default_branch(self, connection: Connection) -> str | None:
        """Return the short name of the remote's default branch, if it has one. Raises `FetchError`."""
        with local_failures():
            return await self.mirrors.default_branch(await self.of(connection))
