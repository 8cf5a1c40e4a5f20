"""The remotes of connections, with their credentials."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace

import sqlalchemy

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, RemoteRefuses, RemoteUnavailable, SettingError
from gateway.fetch.credentials import Remote, from_json
from gateway.fetch.mirror import Mirrors
from gateway.fetch.reasons import local_failures
from gateway.fetch.urls import is_ssh, target
from gateway.packages.submodules import submodule_remote
from gateway.provider_apis.operation import ApiError, ApiRefused
from gateway.provider_apis.sign_in import SignedIn, SignIn, Use
from gateway.provider_apis.webhooks import Place
from gateway.store import connections, identities
from gateway.store.connections import Connection
from gateway.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Remotes:
    """Builds the remotes of connections with the stored credentials."""

    mirrors: Mirrors
    database: Database
    keyring: Keyring
    sign_in: SignIn

    async def of(self, connection: Connection) -> Remote:
        """Return a connection's remote with its credentials. Raises `RemoteUnavailable`."""
        remote, _ = await self._open(connection)
        return remote

    async def of_submodule(self, connection: Connection, url: str) -> Remote:
        """Return the remote of a submodule, with the credentials that it may have.

        A token may be for one repository. Then a submodule has its own, or none, because it may be public.
        Raises `RemoteUnavailable`.
        """
        with _failures():
            remote, identity = await self.database.read(self._access, connection=connection)
            if identity is not None and target(url) == target(connection.url):
                signed_in = self.sign_in.identity(identity, Use(Place(url), "fetch"))
                with suppress(ApiRefused):
                    remote = replace(remote, credentials=await signed_in.git_credentials())
        return submodule_remote(remote, url)

    @asynccontextmanager
    async def opened(self, connection: Connection) -> AsyncIterator[Remote]:
        """Return a connection's remote for the block. If it refuses a short-lived token, the next is another.

        Raises `RemoteUnavailable`.
        """
        remote, signed_in = await self._open(connection)
        try:
            yield remote
        except RemoteRefuses:
            if signed_in is not None:
                signed_in.forget_token()
            raise

    async def _open(self, connection: Connection) -> tuple[Remote, SignedIn | None]:
        with _failures():
            remote, identity = await self.database.read(self._access, connection=connection)
            if identity is None:
                return remote, None
            signed_in = self.sign_in.identity(identity, Use(Place(connection.url), "fetch"))
            return replace(remote, credentials=await signed_in.git_credentials()), signed_in

    def _access(
        self, conn: sqlalchemy.Connection, connection: Connection
    ) -> tuple[Remote, identities.Unsealed | None]:
        """Return the remote with the connection's own credentials, or else with its identity."""
        credentials, host_keys = from_json(connections.credentials(conn, self.keyring, connection.id))
        remote = Remote(url=connection.url, credentials=credentials, host_keys=host_keys)
        if credentials is not None or connection.identity is None or is_ssh(connection.url):
            return remote, None
        return remote, identities.unseal(conn, self.keyring, connection.identity)

    async def refs(self, connection: Connection) -> dict[str, str]:
        """Return the remote's branches and tags with their ids. Raises `FetchError`."""
        with local_failures():
            async with self.opened(connection) as remote:
                return await self.mirrors.remote_refs(remote)

    async def default_branch(self, connection: Connection) -> str | None:
        """Return the short name of the remote's default branch, if it has one. Raises `FetchError`."""
        with local_failures():
            return await self.mirrors.default_branch(await self.of(connection))


@contextmanager
def _failures() -> Iterator[None]:
    """Turn the failures to obtain credentials into `RemoteUnavailable`."""
    try:
        yield
    except (SettingError, NotFound, ApiError) as error:
        raise RemoteUnavailable(f"the remote cannot be fetched: {error}") from error
