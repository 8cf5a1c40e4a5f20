"""Access tokens of Microsoft Entra for Azure DevOps Services: of an application, or of a managed identity.

https://learn.microsoft.com/en-us/azure/devops/integrate/get-started/authentication/service-principal-managed-identity
https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-client-creds-grant-flow
"""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Literal
from urllib.parse import quote

from pydantic import BaseModel

from gateway.provider_apis.client_certificate import ClientCertificate
from gateway.provider_apis.operation import ApiError, ApiRefused, ApiRequest, ApiUnavailable, Operation

Credential = Literal["client-secret", "certificate", "workload-identity", "managed-identity"]
"""How an identity proves who it is."""

AUTHORITY = "https://login.microsoftonline.com"
METADATA_SERVICE = "http://169.254.169.254"
METADATA_HEADERS: Mapping[str, str] = {"Metadata": "true"}

# The application that Azure DevOps is in Entra.
_AZURE_DEVOPS = "499b84ac-1321-427f-aa17-267ca6975798"
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_RIGHT = "to sign in at Azure DevOps"
_CODE = re.compile(r"AADSTS\d+")
_TRACE = re.compile(r"\s*(Trace ID|Correlation ID|Timestamp): .*")

_REASONS = {
    "AADSTS7000215": "the client secret of the application {client} is wrong: enter its value, not its id",
    "AADSTS7000222": "the client secret of the application {client} has expired: create another",
    "AADSTS700016": "the tenant {tenant} has no application with the client id {client}",
    "AADSTS90002": "Microsoft Entra has no tenant {tenant}",
    "AADSTS900023": "Microsoft Entra has no tenant {tenant}",
    "AADSTS700024": "the worker's clock is wrong, or its token has expired: check the time of its machine",
    "AADSTS700027": "the application {client} does not have this certificate, or it has expired: upload it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """An application in Entra, by the ids of its tenant and itself."""

    tenant: str
    client_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claims:
    """Whom the token of another issuer names."""

    issuer: str
    subject: str


class IssuedToken(BaseModel):
    """A token, which is valid for some seconds. The metadata service quotes the number."""

    access_token: str
    expires_in: int

    @property
    def lifetime(self) -> timedelta:
        """Return for how long it is valid."""
        return timedelta(seconds=self.expires_in)


def by_secret(application: Application, secret: str) -> Operation[IssuedToken]:
    """Obtain a token with a client secret."""
    return _obtain(application, {"client_secret": secret})


def by_certificate(
    application: Application, certificate: ClientCertificate, *, authority: str, now: datetime
) -> Operation[IssuedToken]:
    """Obtain a token with a certificate. `authority` is the URL of the token server."""
    audience = f"{authority}{_path(application)}"
    assertion = certificate.assertion(client_id=application.client_id, audience=audience, now=now)
    return by_assertion(application, assertion)


def by_assertion(application: Application, assertion: str) -> Operation[IssuedToken]:
    """Obtain a token with the token of another issuer, such as that of a service account of Kubernetes.

    https://learn.microsoft.com/en-us/entra/workload-id/workload-identity-federation
    """
    return _obtain(application, {"client_assertion_type": _ASSERTION_TYPE, "client_assertion": assertion})


def by_managed_identity(client_id: str | None) -> Operation[IssuedToken]:
    """Obtain a token of the machine's own identity, or of another that is assigned to it.

    https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
    """
    query = {"api-version": "2018-02-01", "resource": _AZURE_DEVOPS}
    answer = yield ApiRequest(
        method="GET",
        path="/metadata/identity/oauth2/token",
        query=query | ({"client_id": client_id} if client_id else {}),
        right=_RIGHT,
    )
    return answer.read(IssuedToken)


def explained(error: ApiRefused, application: Application, assertion: str = "") -> ApiRefused:
    """Return a refusal in words that say what to do. `assertion` is the token of another issuer, if any.

    https://learn.microsoft.com/en-us/entra/identity-platform/reference-error-codes
    """
    said = _TRACE.sub("", error.said)
    found = _CODE.match(said)
    reason = _reason(found[0], application, assertion) if found else None
    if found and reason:
        text = f"{reason} ({found[0]})"
    else:
        text = f"Microsoft Entra issues no token: {said or error}"
    return ApiRefused(text, status=error.status, said=error.said)


def managed_identity_failed(error: ApiError, client_id: str | None) -> ApiError:
    """Return the failure of a request to the metadata service, in words that say what to do."""
    if not isinstance(error, ApiRefused):
        return ApiUnavailable(f"{error}; only machines in Azure have a managed identity")
    if error.status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        return ApiUnavailable("the metadata service of the worker's machine is being updated")
    which = f"the managed identity {client_id}" if client_id else "exactly one managed identity"
    return ApiRefused(
        f"the machine of the worker does not have {which}: assign it in Azure ({error.said})",
        status=error.status,
        said=error.said,
    )


def _obtain(application: Application, proof: Mapping[str, str]) -> Operation[IssuedToken]:
    answer = yield ApiRequest(
        method="POST",
        path=_path(application),
        form={
            "grant_type": "client_credentials",
            "client_id": application.client_id,
            "scope": f"{_AZURE_DEVOPS}/.default",
            **proof,
        },
        right=_RIGHT,
    )
    return answer.read(IssuedToken)


def _path(application: Application) -> str:
    return f"/{quote(application.tenant, safe='')}/oauth2/v2.0/token"


def _reason(code: str, application: Application, assertion: str) -> str | None:
    # 70021, 700211, 700212 and 700213, by what does not match.
    if assertion and code.startswith("AADSTS70021"):
        claims = _claims(assertion)
        return (
            f"the application {application.client_id} has no federated credential for this worker: add one"
            f" with the issuer {claims.issuer}, the subject {claims.subject} and the audience"
            " api://AzureADTokenExchange"
        )
    reason = _REASONS.get(code)
    return reason and reason.format(client=application.client_id, tenant=application.tenant)


def _claims(assertion: str) -> _Claims:
    """Return what a token claims; Entra has verified it."""
    try:
        payload = assertion.split(".")[1]
        claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return _Claims(issuer=claims["iss"], subject=claims["sub"])
    except (IndexError, KeyError, TypeError, ValueError):
        return _Claims(issuer="(unreadable)", subject="(unreadable)")
