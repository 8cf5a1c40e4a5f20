"""Signs in at Azure DevOps Services as an application or a managed identity of Microsoft Entra."""

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

from gateway.errors import Invalid
from gateway.fetch.credentials import Bearer
from gateway.fetch.urls import check_api_url
from gateway.provider_apis import azure_devops, entra
from gateway.provider_apis.apis import ProviderApis
from gateway.provider_apis.budget import Budget, WriteLimit
from gateway.provider_apis.client import ApiClient, http_client
from gateway.provider_apis.client_certificate import read_certificate
from gateway.provider_apis.entra import Application, IssuedToken
from gateway.provider_apis.operation import ApiError, ApiRefused
from gateway.provider_apis.sign_in import AccessToken, Use
from gateway.store.identities import Unsealed
from gateway.threads import FILES

# A token is valid for an hour; more requests are a fault.
_REQUESTS_PER_HOUR = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class _Requester:
    """Whoever requests a token: the proof is in the request, not in its headers."""

    name: str
    sends: Mapping[str, str]
    requests_per_hour: int = _REQUESTS_PER_HOUR
    write_limits: Sequence[WriteLimit] = ()

    async def headers(self, *, renew: bool) -> Mapping[str, str]:  # noqa: ARG002 - there is no credential
        """Return the headers of a request."""
        return self.sends


class _AnyAddress:
    """Connects to the metadata service of the machine, which no other client may."""

    async def checked_address(self, _scheme: str, _host: str, _port: int) -> str | None:
        """Leave the address as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntraIdentities:
    """The kind `entra`: tokens of applications and managed identities.

    The variables AZURE_AUTHORITY_HOST, AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE have
    the meaning that Azure's own programs give them.
    """

    apis: ProviderApis
    allow_http: bool
    metadata_service: str = entra.METADATA_SERVICE

    def scope(self, use: Use) -> Hashable:  # noqa: ARG002 - as of other kinds
        """Return what a token is good for: all that the identity may do."""
        return None

    async def obtain(self, unsealed: Unsealed, use: Use) -> AccessToken:  # noqa: ARG002 - as of other kinds
        """Obtain a token. Raise `ApiUnavailable` if a retry may succeed, `ApiRefused` if it cannot."""
        if unsealed.identity.settings["credential"] == "managed-identity":
            issued = await self._from_machine(unsealed)
        else:
            issued = await self._from_entra(unsealed)
        return AccessToken(value=issued.access_token, expires_at=datetime.now(UTC) + issued.lifetime)

    def authorization(self, token: str) -> Mapping[str, str]:
        """Return the headers of an API request with a token."""
        return {**azure_devops.HEADERS, "Authorization": f"Bearer {token}"}

    def git_credentials(self, token: str) -> Bearer:
        """Return what git sends for a token."""
        return Bearer(token=token)

    async def _from_entra(self, unsealed: Unsealed) -> IssuedToken:
        authority = self._authority()
        settings, assertion = unsealed.identity.settings, ""
        application = _application(settings)
        match settings["credential"]:
            case "certificate":
                certificate = read_certificate(unsealed.secret)
                now = datetime.now(UTC)
                operation = entra.by_certificate(application, certificate, authority=authority, now=now)
            case "workload-identity":
                assertion = await FILES.run(_federated_token)
                operation = entra.by_assertion(application, assertion)
            case _:
                operation = entra.by_secret(application, unsealed.secret)
        requester = _Requester(name=unsealed.identity.name, sends={})
        try:
            return await self.apis.run(operation, base_url=authority, identity=requester)
        except ApiRefused as error:
            raise entra.explained(error, application, assertion) from None

    async def _from_machine(self, unsealed: Unsealed) -> IssuedToken:
        """Obtain a token from the machine's metadata service, which no proxy may be between."""
        requester = _Requester(name=unsealed.identity.name, sends=entra.METADATA_HEADERS)
        client_id = unsealed.identity.settings.get("client_id")
        async with http_client(uses_proxies=False) as http:
            client = ApiClient(
                self.metadata_service,
                requester,
                http=http,
                connector=_AnyAddress(),
                budget=Budget(_REQUESTS_PER_HOUR),
            )
            try:
                return await client.run(entra.by_managed_identity(client_id))
            except ApiError as error:
                raise entra.managed_identity_failed(error, client_id) from None

    def _authority(self) -> str:
        """Return the URL of the token server; a sovereign cloud has another."""
        url = (os.environ.get("AZURE_AUTHORITY_HOST") or entra.AUTHORITY).rstrip("/")
        url = url if "://" in url else f"https://{url}"
        try:
            check_api_url(url, allow_http=self.allow_http, hosts=())
        except Invalid as error:
            text = str(error).replace("api_url", "AZURE_AUTHORITY_HOST")
            raise ApiRefused(text, status=HTTPStatus.OK) from None
        return url


def _application(settings: Mapping[str, str]) -> Application:
    """Return the application that an identity names; of a workload identity, that of the worker's pod."""
    return Application(
        tenant=settings.get("tenant") or _variable("AZURE_TENANT_ID"),
        client_id=settings.get("client_id") or _variable("AZURE_CLIENT_ID"),
    )


def _federated_token() -> str:
    """Return the token of the worker's service account. It is read each time, because it is replaced."""
    path = _variable("AZURE_FEDERATED_TOKEN_FILE")
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        raise ApiRefused(
            f"the worker cannot read {path}, which AZURE_FEDERATED_TOKEN_FILE names", status=HTTPStatus.OK
        ) from None


def _variable(name: str) -> str:
    found = os.environ.get(name)
    if not found:
        raise ApiRefused(
            f"the worker has no variable {name}: give its pod the label azure.workload.identity/use and a"
            " service account with a workload identity",
            status=HTTPStatus.OK,
        )
    return found
