"""Credentials of private repositories: deploy keys, user names with passwords or tokens, and bearer tokens.

Pure: nothing is written anywhere. The store encrypts the result of `as_json`; `gateway.fetch.access` passes
credentials to git.
"""

import json
import re
import textwrap
from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from gateway.errors import Invalid
from providers import PROVIDERS

_RSA_BITS = 4096
_SHORTEST_RSA = 2048
_BLOCK = re.compile(r"-----BEGIN (?P<kind>[A-Z0-9 ]+)-----(?P<body>.*?)-----END (?P=kind)-----", re.DOTALL)
_ENCRYPTED = re.compile(r"ENCRYPTED")
_BASE64_WIDTH = 64
_LOCKED = "private_key: it has a passphrase, which nobody could enter here; paste a key without one"
# Prefixes that identify a token in the place of a user name.
# https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/
# https://docs.gitlab.com/security/tokens/#token-prefixes
_TOKENS = re.compile(r"(gh[opsu]_|github_pat_|gl(pat|dt|cbt|rt|oas)-|ATBB|ATCTT|ATATT|BBDC-)\w")
# Tokens of Azure DevOps, Gitea and Gogs have no prefix; user names are not so long and with digits.
_TOKEN_LIKE = re.compile(r"(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{32,}")
# Placeholders for the password beside a token, for programs that insist on a password.
_NO_PASSWORD = frozenset({"", "x", "x-oauth-basic"})
_SHORTEST_SECRET = 4
# https://www.rfc-editor.org/rfc/rfc5656#section-10.1: the required curves; OpenSSH supports no others.
_SSH_CURVES = (SECP256R1, SECP384R1, SECP521R1)

PrivateKey = Ed25519PrivateKey | RSAPrivateKey | EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SshKey:
    """A private key without a passphrase, in OpenSSH's format, and its public key."""

    private: str
    public: str

    def __repr__(self) -> str:
        """Show nothing secret."""
        return f"SshKey(public={self.public!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A user name with its password or token, for https."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Show nothing secret."""
        return f"Login(user={self.user!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """A token that https sends as `Authorization: Bearer`. It is short-lived, and never stored."""

    token: str

    def __post_init__(self) -> None:
        """Raise `Invalid` for a token that is not one word, because git reads it from a line of a file."""
        if not re.fullmatch(r"[!-~]+", self.token):
            raise Invalid("the bearer token is not one word of ASCII characters")

    def __repr__(self) -> str:
        """Show nothing secret."""
        return "Bearer()"


Credentials = SshKey | Login


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A repository to fetch from. `host_keys` are known_hosts lines; if given, no others count."""

    url: str
    credentials: Credentials | Bearer | None = None
    host_keys: str | None = None


def make_deploy_key(provider: str, *, comment: str) -> SshKey:
    """Generate a deploy key: Ed25519, or RSA of 4,096 bits if the provider accepts nothing else."""
    if PROVIDERS[provider].RSA_KEYS_ONLY:
        return _key(generate_private_key(public_exponent=65537, key_size=_RSA_BITS), comment)
    return _key(Ed25519PrivateKey.generate(), comment)


def read_private_key(pasted: str, provider: str, *, comment: str) -> SshKey:
    """Return a pasted private key, repaired and validated. Raises `Invalid` with one sentence."""
    key = _load_private_key(mend_private_key(pasted))
    if not isinstance(key, PrivateKey):
        raise Invalid("private_key: it must be an Ed25519, ECDSA or RSA key")
    if isinstance(key, EllipticCurvePrivateKey) and not isinstance(key.curve, _SSH_CURVES):
        raise Invalid(
            f"private_key: ssh does not support ECDSA keys on the curve {key.curve.name}, only on NIST P-256,"
            " P-384 and P-521; use an Ed25519 key: ssh-keygen -t ed25519"
        )
    if isinstance(key, RSAPrivateKey) and key.key_size < _SHORTEST_RSA:
        raise Invalid(f"private_key: an RSA key of {key.key_size} bits is too weak; use {_RSA_BITS} bits")
    if PROVIDERS[provider].RSA_KEYS_ONLY and not isinstance(key, RSAPrivateKey):
        raise Invalid(f"private_key: {provider} accepts only RSA keys: ssh-keygen -t rsa -b 4096")
    return _key(key, comment)


def read_app_key(pasted: str) -> str:
    """Return the pasted RSA key of a GitHub App, repaired and validated. Raises `Invalid`."""
    if not isinstance(_load_private_key(mend_private_key(pasted)), RSAPrivateKey):
        raise Invalid("private_key: it must be the RSA key that GitHub generated for the App")
    return mend_private_key(pasted)


def mend_private_key(pasted: str) -> str:
    r"""Return a pasted key in its original form, before forms, JSON and indentation changed it.

    Repair a literal `\\n`, CRLF, quotes, indentation, lost line breaks and a missing last line break. Raises
    `Invalid` if the text has no private key.
    """
    text = pasted.replace("\\r", "").replace("\\n", "\n").replace("\r", "\n")
    blocks = list(_BLOCK.finditer(text))
    # openssl writes a curve's parameters before the key, and some files begin with a certificate.
    found = next((block for block in blocks if block["kind"].endswith("PRIVATE KEY")), None)
    if found is None and not blocks:
        problem = "it is a public key" if "ssh-" in text[:20] else "it is not a private key"
        raise Invalid(f"private_key: {problem}; a private key begins with -----BEGIN … PRIVATE KEY-----")
    if found is None:
        raise Invalid(f"private_key: it is a {blocks[0]['kind'].lower()}; paste the private key")
    kind = found["kind"]
    lines = [line.strip().strip("'\"\\").strip() for line in found["body"].strip().split("\n")]
    headers = [line for line in lines if ":" in line]
    body = "".join("".join(line.split()) for line in lines if ":" not in line)
    parts = [f"-----BEGIN {kind}-----"]
    if headers:
        parts += [*headers, ""]
    parts += [*textwrap.wrap(body, _BASE64_WIDTH), f"-----END {kind}-----", ""]
    return "\n".join(parts)


def take_login(url: str, provider: str) -> tuple[str, Login | None]:
    """Return an https URL without the credentials in it, and those credentials.

    A user name alone is not a credential, unless it is a token, which some providers accept in its place.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return url, None
    if parts.scheme not in {"https", "http"} or parts.username is None:
        return url, None
    bare = urlunsplit(parts._replace(netloc=f"[{host}]{port}" if ":" in host else host + port))
    user, password = unquote(parts.username), unquote(parts.password or "")
    if _is_token(user) and password in _NO_PASSWORD:
        return bare, make_login(None, user, provider)
    if not password:
        return bare, None
    return bare, make_login(user, password, provider)


def without_user(url: str) -> str:
    """Return an https URL without a bare user name, which Azure DevOps and Bitbucket put into it.

    Other URLs are unchanged. A token in the place of the user name is a credential: `check_url` refuses it.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    user = unquote(parts.username or "")
    if parts.scheme not in {"https", "http"} or not user or parts.password is not None or _is_token(user):
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def make_login(user: str | None, password: str, provider: str) -> Login:
    """Return a login. For a token without a user name, use the user name that the provider expects."""
    if not password or not f"{user or ''}{password}".isprintable():
        raise Invalid(
            "credentials: user and password must be one line each, and the password must not be empty"
        )
    return Login(user=user or _token_user(password, provider), password=password)


def token_login(user: str | None, token: str, provider: str) -> Login:
    """Return the login with the token of an identity, for https.

    `user` is the API's. Git has a user name of its own for tokens that the provider marks by a prefix.
    """
    has_prefix = any(prefix and token.startswith(prefix) for prefix in PROVIDERS[provider].TOKEN_USERS)
    return make_login(None if has_prefix else user, token, provider)


def _token_user(password: str, provider: str) -> str:
    users = PROVIDERS[provider].TOKEN_USERS
    return users[max((prefix for prefix in users if password.startswith(prefix)), key=len)]


def _is_token(user: str) -> bool:
    """Return whether a user name is in fact a token."""
    return bool(_TOKENS.match(user) or _TOKEN_LIKE.fullmatch(user))


def secrets_of(credentials: Credentials | Bearer | None) -> tuple[str, ...]:
    """Return the secret words, in every form in which git sends them, for redaction."""
    if isinstance(credentials, Bearer):
        return (credentials.token,)
    if not isinstance(credentials, Login) or len(credentials.password) < _SHORTEST_SECRET:
        return ()
    basic = b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
    return basic, credentials.password, quote(credentials.password, safe="")


def as_json(credentials: Credentials | None, host_keys: str | None) -> bytes:
    """Return everything that must be stored encrypted."""
    fields: dict[str, str | None] = {"host_keys": host_keys}
    if isinstance(credentials, SshKey):
        fields |= {"private": credentials.private, "public": credentials.public}
    elif isinstance(credentials, Login):
        fields |= {"user": credentials.user, "password": credentials.password}
    return json.dumps(fields).encode()


def from_json(stored: bytes | None) -> tuple[Credentials | None, str | None]:
    """Return the credentials and host keys that `as_json` serialized."""
    if stored is None:
        return None, None
    fields = json.loads(stored)
    if "private" in fields:
        return SshKey(private=fields["private"], public=fields["public"]), fields["host_keys"]
    if "password" in fields:
        return Login(user=fields["user"], password=fields["password"]), fields["host_keys"]
    return None, fields["host_keys"]


def _load_private_key(pem: str) -> object:
    """Return the key of a repaired text. Raises `Invalid`."""
    kind = pem.split("\n", 1)[0]
    try:
        load = load_ssh_private_key if "OPENSSH" in kind else load_pem_private_key
        return load(pem.encode(), password=None)
    except TypeError:
        raise Invalid(_LOCKED) from None
    except (ValueError, UnsupportedAlgorithm):
        if _ENCRYPTED.search(pem):
            raise Invalid(_LOCKED) from None
        raise Invalid("private_key: it is damaged or incomplete; paste the whole file") from None


def _key(key: PrivateKey, comment: str) -> SshKey:
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return SshKey(private=private, public=f"{public} {comment}")
