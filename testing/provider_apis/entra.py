"""A fake of Microsoft Entra's token server, and of the metadata service of a machine in Azure.

https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-client-creds-grant-flow
https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
"""

import json
import re
import time
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from testing.provider_apis.fake import FakeApi

AZURE_DEVOPS = "499b84ac-1321-427f-aa17-267ca6975798"
AUDIENCE = "api://AzureADTokenExchange"

_TOKEN = re.compile(r"/(?P<tenant>[^/]+)/oauth2/v2\.0/token")
_METADATA = "/metadata/identity/oauth2/token"
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_PSS = PSS(mgf=MGF1(SHA256()), salt_length=PSS.DIGEST_LENGTH)


@dataclass(slots=True)
class Application:
    """An application of a tenant. `secrets` has when each secret ends, `federated` issuers with subjects."""

    secrets: dict[str, datetime] = field(default_factory=dict)
    certificates: list[x509.Certificate] = field(default_factory=list)
    federated: set[tuple[str, str]] = field(default_factory=set)


@dataclass(slots=True)
class FakeEntra(FakeApi):
    """Entra with the applications of tenants, by both ids, and a machine with managed identities.

    `issuers` has the keys of issuers of federated tokens. A managed identity is a client id, or None for the
    machine's own. `issued` has when each token ends; it is valid for `lifetime`.
    """

    applications: dict[tuple[str, str], Application] = field(default_factory=dict)
    issuers: dict[str, RSAPublicKey] = field(default_factory=dict)
    managed: set[str | None] = field(default_factory=set)
    issued: dict[str, datetime] = field(default_factory=dict)
    lifetime: timedelta = timedelta(minutes=60)

    async def handle(self, request: Request) -> Response:
        """Answer as Entra or the metadata service does."""
        if request.method == "GET" and request.url.path == _METADATA:
            return self._managed(request)
        found = _TOKEN.fullmatch(request.url.path)
        is_form = request.headers.get("content-type") == "application/x-www-form-urlencoded"
        if request.method != "POST" or found is None or not is_form:
            return Response(status_code=404)
        form = dict(parse_qsl((await request.body()).decode()))
        tenant = found["tenant"]
        if tenant not in {known for known, _ in self.applications}:
            return _error(400, 90002, f"Tenant '{tenant}' not found.", "invalid_request")
        application = self.applications.get((tenant, form.get("client_id", "")))
        if application is None:
            said = f"Application with identifier '{form.get('client_id')}' was not found in the directory."
            return _error(400, 700016, said, "unauthorized_client")
        if form.get("grant_type") != "client_credentials" or form.get("scope") != f"{AZURE_DEVOPS}/.default":
            return _error(400, 70011, "The provided value for scope is not valid.", "invalid_scope")
        audience = f"{self.url}{request.url.path}"
        return self._refusal(form, application, audience) or self._token(quoted=False)

    def _refusal(self, form: Mapping[str, str], application: Application, audience: str) -> Response | None:
        if "client_secret" in form:
            return _secret_refusal(application.secrets.get(form["client_secret"]))
        if form.get("client_assertion_type") != _ASSERTION_TYPE:
            return _error(401, 7000218, "The request body must contain client_assertion or client_secret.")
        try:
            token = _Jwt.read(form["client_assertion"])
        except (KeyError, ValueError):
            return _error(401, 50027, "JWT token is invalid or malformed.")
        if not token.claims.get("nbf", 0) <= time.time() < token.claims["exp"]:
            return _error(401, 700024, "Client assertion is not within its valid time range.")
        if token.claims["iss"] == form["client_id"]:
            return _certificate_refusal(token, application, form["client_id"], audience)
        return self._federation_refusal(token, application)

    def _federation_refusal(self, token: "_Jwt", application: Application) -> Response | None:
        issuer, subject = token.claims["iss"], token.claims["sub"]
        key = self.issuers.get(issuer)
        if key is None or not token.is_signed_by(key, PKCS1v15()):
            return _error(401, 700273, "The token's issuer or its signature cannot be verified.")
        if (issuer, subject) not in application.federated or token.claims["aud"] != AUDIENCE:
            said = f"No matching federated identity record found for presented assertion subject '{subject}'."
            return _error(401, 700213, said)
        return None

    def _managed(self, request: Request) -> Response:
        if request.headers.get("metadata") != "true" or "x-forwarded-for" in request.headers:
            said = "Required metadata header not specified"
            return JSONResponse({"error": "invalid_request", "error_description": said}, 400)
        query = request.query_params
        if query.get("api-version") != "2018-02-01" or query.get("resource") != AZURE_DEVOPS:
            return JSONResponse({"error": "invalid_resource", "error_description": "AADSTS500011"}, 400)
        if query.get("client_id") not in self.managed:
            said = "Identity not found"
            return JSONResponse({"error": "invalid_request", "error_description": said}, 400)
        return self._token(quoted=True)

    def _token(self, *, quoted: bool) -> Response:
        token = f"eyJ0eXAi.{uuid.uuid4()}"
        self.issued[token] = datetime.now(UTC) + self.lifetime
        seconds = int(self.lifetime.total_seconds())
        lives = str(seconds) if quoted else seconds
        return JSONResponse({"token_type": "Bearer", "expires_in": lives, "access_token": token})


@dataclass(frozen=True, slots=True)
class _Jwt:
    """A signed token."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes

    @classmethod
    def read(cls, token: str) -> "_Jwt":
        """Return the parts of a token. Raise `ValueError` if it is none."""
        header, claims, signature = token.split(".")
        signed = f"{header}.{claims}".encode()
        return cls(json.loads(_decoded(header)), json.loads(_decoded(claims)), signed, _decoded(signature))

    def is_signed_by(self, key: Any, padding: PSS | PKCS1v15) -> bool:
        """Return whether a key has signed the token."""
        try:
            key.verify(self.signature, self.signed, padding, SHA256())
        except InvalidSignature:
            return False
        return True


def _secret_refusal(ends: datetime | None) -> Response | None:
    if ends is None:
        return _error(401, 7000215, "Invalid client secret provided.")
    if ends <= datetime.now(UTC):
        return _error(401, 7000222, "The provided client secret keys are expired.")
    return None


def _certificate_refusal(
    token: _Jwt, application: Application, client_id: str, audience: str
) -> Response | None:
    by_thumbprint = {_encoded(each.fingerprint(SHA256())): each for each in application.certificates}
    certificate = by_thumbprint.get(token.header.get("x5t#S256", ""))
    is_signed = certificate is not None and token.is_signed_by(certificate.public_key(), _PSS)
    is_right = (token.claims["aud"], token.claims["sub"]) == (audience, client_id)
    if token.header["alg"] == "PS256" and is_signed and is_right:
        return None
    return _error(
        401, 700027, "The certificate with identifier used to sign the client assertion is unknown."
    )


def federated_token(key: RSAPrivateKey, *, issuer: str, subject: str, audience: str = AUDIENCE) -> str:
    """Return a token as Kubernetes writes it into the file of a service account."""
    now = int(time.time())
    claims = {"iss": issuer, "sub": subject, "aud": audience, "exp": now + 3600, "nbf": now}
    signed = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "RS256"}, claims))
    return f"{signed}.{_encoded(key.sign(signed.encode(), PKCS1v15(), SHA256()))}"


def make_client_certificate() -> tuple[x509.Certificate, str]:
    """Return a certificate that has signed itself, and the PEM file with it and its key."""
    key = generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pushgate")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=90))
    certificate = builder.sign(key, SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate, (pem + certificate.public_bytes(Encoding.PEM)).decode()


def _error(status: int, code: int, said: str, error: str = "invalid_client") -> Response:
    trace = f" Trace ID: {uuid.uuid4()} Correlation ID: {uuid.uuid4()} Timestamp: 2026-11-30 12:00:00Z"
    return JSONResponse(
        {"error": error, "error_description": f"AADSTS{code}: {said}{trace}", "error_codes": [code]}, status
    )


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encoded(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()
