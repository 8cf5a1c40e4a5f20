"""Certificates with which Pushgate signs in at Microsoft Entra: it signs an assertion with their key.

https://learn.microsoft.com/en-us/entra/identity-platform/certificate-credentials
"""

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import Certificate, load_pem_x509_certificates

from gateway.crypto.json_web_token import base64url, signed
from gateway.errors import Invalid
from gateway.fetch.credentials import mend_private_key

_LIFETIME = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """A certificate with its private key."""

    certificate: Certificate
    key: RSAPrivateKey = field(repr=False)

    @property
    def expires_at(self) -> datetime:
        """Return when the certificate expires."""
        return self.certificate.not_valid_after_utc

    def as_pem(self) -> str:
        """Return the certificate and its key in one PEM file."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return (key + self.certificate.public_bytes(Encoding.PEM)).decode()

    def assertion(self, *, client_id: str, audience: str, now: datetime) -> str:
        """Return a signed assertion of an application, for one token server."""
        header = {
            "alg": "PS256",
            "typ": "JWT",
            "x5t#S256": base64url(self.certificate.fingerprint(SHA256())),
        }
        issued = int(now.timestamp())
        claims = {
            "aud": audience,
            "iss": client_id,
            "sub": client_id,
            "jti": str(uuid.uuid4()),
            "iat": issued,
            "nbf": issued,
            "exp": issued + int(_LIFETIME.total_seconds()),
        }
        pss = PSS(mgf=MGF1(SHA256()), salt_length=PSS.DIGEST_LENGTH)
        return signed(header, claims, lambda content: self.key.sign(content, pss, SHA256()))


def read_certificate(pasted: str) -> ClientCertificate:
    """Return a pasted certificate with its private key. Raise `Invalid` with one sentence."""
    text = pasted.replace("\\n", "\n")
    try:
        key = load_pem_private_key(mend_private_key(text).encode(), password=None)
        certificates = load_pem_x509_certificates(text.encode())
    except TypeError:
        raise Invalid("certificate: its key has a passphrase, which nobody could enter here") from None
    except (Invalid, ValueError, UnsupportedAlgorithm):
        raise Invalid("certificate: paste the PEM file that has the certificate and its key") from None
    if not isinstance(key, RSAPrivateKey):
        raise Invalid("certificate: Microsoft Entra accepts only certificates with an RSA key")
    own = next((found for found in certificates if found.public_key() == key.public_key()), None)
    if own is None:
        raise Invalid("certificate: the key in the file belongs to another certificate")
    return ClientCertificate(certificate=own, key=key)
