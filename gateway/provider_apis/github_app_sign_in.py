"""Signs in as a GitHub App: by its private key, and as its installations by their tokens of one hour.

A token is for one repository and has only the permissions that its use needs.
https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.crypto.json_web_token import signed
from gateway.fetch.credentials import Login
from gateway.provider_apis import github, github_app
from gateway.provider_apis.apis import ProviderApis
from gateway.provider_apis.budget import WriteLimit
from gateway.provider_apis.github_app import App, Installation, InstallationToken
from gateway.provider_apis.operation import ApiRefused, Operation, T
from gateway.provider_apis.sign_in import AccessToken, Purpose, Use, api_url, utc_now
from gateway.provider_apis.webhooks import Scope
from gateway.store.identities import Identity, Unsealed
from providers.clone_urls import server_url

# GitHub refuses a time in its future, and an end that is more than ten minutes away.
_BACKDATED = timedelta(minutes=1)
_LIFETIME = timedelta(minutes=9)
_GIT_USER = "x-access-token"
_NO_APP = "Integration not found"
_PERMISSIONS: Mapping[tuple[Purpose, Scope], Mapping[str, str]] = {
    ("fetch", "repository"): {"contents": "read", "metadata": "read"},
    ("webhooks", "repository"): {"repository_hooks": "write", "metadata": "read"},
    ("fetch", "owner"): {"metadata": "read"},
    ("statuses", "repository"): {"checks": "write", "metadata": "read"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AppIdentity:
    """A GitHub App itself, not one of its installations."""

    unsealed: Unsealed
    clock: Callable[[], datetime] = utc_now
    requests_per_hour: int = github.REQUESTS_PER_HOUR
    write_limits: Sequence[WriteLimit] = github.WRITE_LIMITS

    @property
    def name(self) -> str:
        """Return the name that errors show."""
        return self.unsealed.identity.name

    async def headers(self, *, renew: bool) -> Mapping[str, str]:  # noqa: ARG002 - each request has another
        """Return the headers of a request."""
        app_id = self.unsealed.identity.settings["app_id"]
        token = json_web_token(app_id, self.unsealed.secret, now=self.clock())
        return {**github.HEADERS, **github.authorization(token)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NoIdentity:
    """Nobody, for the operation that needs no identity."""

    name: str = "Pushgate"
    requests_per_hour: int = github.REQUESTS_PER_HOUR
    write_limits: Sequence[WriteLimit] = github.WRITE_LIMITS

    async def headers(self, *, renew: bool) -> Mapping[str, str]:  # noqa: ARG002 - there is no credential
        """Return the headers of a request."""
        return github.HEADERS


@dataclass(frozen=True, slots=True, kw_only=True)
class GitHubApps:
    """The kind `github-app`: tokens of the App's installations."""

    apis: ProviderApis
    clock: Callable[[], datetime] = utc_now
    _installations: dict[Hashable, int] = field(default_factory=dict)

    def scope(self, use: Use) -> Hashable:
        """Return what a token is good for: one repository or owner, and one purpose."""
        return server_url(use.place.url), github_app.path_of(use.place), use.purpose

    async def obtain(self, unsealed: Unsealed, use: Use) -> AccessToken:
        """Obtain a token. Raise `ApiUnavailable` if a retry may succeed, `ApiRefused` if it cannot."""
        try:
            made = await self._obtain(unsealed, use)
        except ApiRefused as error:
            raise explained(error, unsealed.identity, now=self.clock()) from None
        return AccessToken(value=made.token, expires_at=made.expires_at)

    async def _obtain(self, unsealed: Unsealed, use: Use) -> InstallationToken:
        identity, app = unsealed.identity, AppIdentity(unsealed=unsealed, clock=self.clock)
        permissions = _PERMISSIONS[use.purpose, use.place.scope]
        path = github_app.path_of(use.place)
        owner, _, name = path.partition("/")
        repository = name if use.place.scope == "repository" else None

        async def run(operation: Operation[T]) -> T:
            return await self.apis.run(operation, base_url=api_url(identity, use.place), identity=app)

        async def obtain(installation: int) -> InstallationToken:
            return await run(
                github_app.access_token(installation, permissions=permissions, repository=repository)
            )

        # An App has one installation at an owner.
        key = (identity.id, identity.updated_at, owner.lower())
        known = self._installations.get(key)
        if known is not None:
            # After a refusal, the installation is another, or lacks something: see below.
            with suppress(ApiRefused):
                return await obtain(known)
        found = await run(github_app.installation(use.place))
        if found is None:
            raise _not_installed(await run(github_app.app()), path)
        try:
            made = await obtain(found.id)
        except ApiRefused as error:
            raise _refused(error, found, permissions, path) from None
        self._installations[key] = found.id
        return made

    def authorization(self, token: str) -> Mapping[str, str]:
        """Return the headers of an API request with a token."""
        return {**github.HEADERS, **github.authorization(token)}

    def git_credentials(self, token: str) -> Login:
        """Return what git sends for a token."""
        return Login(user=_GIT_USER, password=token)


def json_web_token(app_id: str, private_key: str, *, now: datetime) -> str:
    """Return the token with which an App signs in. It is valid for nine minutes."""
    # The key was validated when it was stored; to do so again would take a tenth of a second.
    key = load_pem_private_key(private_key.encode(), None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(key, RSAPrivateKey):
        raise TypeError("the key of an App is an RSA key")
    claims = {
        "iat": int((now - _BACKDATED).timestamp()),
        "exp": int((now + _LIFETIME).timestamp()),
        "iss": app_id,
    }
    header = {"alg": "RS256", "typ": "JWT"}
    return signed(header, claims, lambda content: key.sign(content, PKCS1v15(), SHA256()))


def _not_installed(app: App, path: str) -> ApiRefused:
    return ApiRefused(
        f"the GitHub App {app.slug} is not installed on {path}: install it, or add the repository to the"
        f" installation, at {app.html_url}/installations/new",
        status=HTTPStatus.NOT_FOUND,
    )


def _refused(error: ApiRefused, found: Installation, permissions: Mapping[str, str], path: str) -> ApiRefused:
    """Return why an installation has no token for a use."""
    if "suspended" in error.said:
        return ApiRefused(
            f"the installation of the GitHub App {found.app_slug} on {path} is suspended: unsuspend it at"
            f" {found.html_url}",
            status=error.status,
        )
    missing = github_app.lacking(permissions, found.permissions)
    if not missing:
        return error
    text = (
        f"the GitHub App {found.app_slug} lacks the permission {' and '.join(missing)} on {path}: add it in"
        f" the settings of the App, then accept it at {found.html_url}"
    )
    if "repository_hooks" in permissions:
        text += f"; or connect {path.partition('/')[0]} as a source, which uses the App's own webhook"
    return ApiRefused(text, status=error.status)


def explained(error: ApiRefused, identity: Identity, *, now: datetime) -> ApiRefused:
    """Return a refusal of an App's own requests in words that name the key, the clock or the App."""
    app = f"the GitHub App {identity.settings['app_id']} of the identity {identity.name}"
    if error.status == HTTPStatus.UNAUTHORIZED and "claim" in error.said:
        text = (
            f"GitHub refuses the time in the sign-in of {app}: set this machine's clock, which shows"
            f" {now:%Y-%m-%d %H:%M:%S} UTC ({error.said})"
        )
    elif error.status == HTTPStatus.UNAUTHORIZED:
        text = (
            f"GitHub refuses the private key of {app}: it is another App's, or was deleted; generate one in"
            f" the settings of the App, and store it with `pushgate identity renew {identity.name}`"
            f" ({error.said})"
        )
    elif error.said == _NO_APP:
        text = f"GitHub knows no App with the ID of {app}; check the App ID, and the API URL of the server"
    else:
        return error
    return ApiRefused(text, status=error.status, said=error.said)
