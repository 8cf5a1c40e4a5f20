"""The credentials of remotes and of their submodules."""

import asyncio
from typing import Any, cast

from gateway.crypto.keyring import Keyring
from gateway.fetch.credentials import Login
from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.provider_apis.github_app_sign_in import GitHubApps
from gateway.provider_apis.sign_in import SignIn
from gateway.store import identities
from gateway.store.identities import Identity
from gateway.worker.remotes import Remotes
from testing import records
from testing.provider_apis.fake import serving
from testing.provider_apis.github_app import FakeGitHubWithApp, Installation, make_key
from testing.records import NOW
from tests.worker.stages import FaultyDatabase


def test_a_submodule_has_a_token_of_its_own(database: FaultyDatabase) -> None:
    """Of the App, if it is installed there; otherwise it may be public. Other hosts get nothing."""
    key, pem = make_key()
    permissions = {"contents": "read", "metadata": "read"}
    installation = Installation(7, "acme", ["acme/digits", "acme/library"], permissions)
    fake = FakeGitHubWithApp(key=key, installations=[installation])
    apis = ProviderApis(connector=CheckedAddresses(allow_loopback=True))
    sign_in = SignIn({"github-app": GitHubApps(apis=apis)})
    keyring, mirrors = Keyring("k" * 32), cast("Any", None)
    remotes = Remotes(mirrors=mirrors, database=database, keyring=keyring, sign_in=sign_in)
    with serving(fake):
        app = Identity(
            id="i1",
            name="app",
            provider="github",
            kind="github-app",
            user=None,
            settings={"app_id": str(fake.app_id)},
            api_url=f"{fake.url}/api/v3",
            expires_at=None,
            created_at=NOW,
            updated_at=NOW,
        )
        with database.writing() as conn:
            identities.add(conn, keyring, app, pem)
        connection = records.connection(database, url=f"{fake.url}/acme/digits.git", identity="i1")

        def token_for(url: str) -> str | None:
            login = asyncio.run(remotes.of_submodule(connection, url)).credentials
            return login.password if isinstance(login, Login) else None

        assert token_for(f"{fake.url}/acme/library.git") == "ghs_token1"
        assert fake.issued[0].repositories == ["acme/library"]
        for url in (
            f"{fake.url}/acme/public.git",
            f"{fake.url}/acme",
            "https://other.example/acme/library.git",
        ):
            assert token_for(url) is None
        assert len(fake.issued) == 1
