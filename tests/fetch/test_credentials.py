"""Keys and passwords: made, repaired, checked, refused with one sentence."""

import base64
import hashlib
import json

import asyncssh
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Invalid
from gateway.fetch.credentials import (
    Bearer,
    Login,
    SshKey,
    as_json,
    from_json,
    make_deploy_key,
    make_login,
    mend_private_key,
    read_private_key,
    secrets_of,
    take_login,
    without_user,
)
from gateway.fetch.host_keys import KNOWN_HOSTS, read_host_keys
from gateway.fetch.urls import check_url

KEY = make_deploy_key("github", comment="test")
PEM_RSA = asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_private_key("pkcs1-pem").decode()
# Made by ssh-keygen, with a passphrase; used nowhere else.
LOCKED = """\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABAw15kfYB
lvNh44YSkyzsv4AAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIH/4v9AtRriu7SuT
du39ceSyQutXWDPtIl/ZAVJ2Xv32AAAAkLRZrA960sYJYnUyM47gYNk0uAx9tmGS+7/Me/
gBJa3o5fWlN8CYfvxn5nX6E4/wBwTdF1jJs1cKxTayjNR0rOihbQNus0q3tlmpggS8tzKQ
XlrHRpOmvExJ3s8gMGZiITWesFD6QwKxVecaIzgWiWk8lqy6AVJxFCYCVwunSZMRnDW9iB
sPDrkWU1RsfrE1eQ==
-----END OPENSSH PRIVATE KEY-----
"""
TOKEN = Login(user="oauth2", password="glpat-abc")
# As the providers publish them.
FINGERPRINTS = {
    "github.com": {
        "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU",
        "SHA256:p2QAMXNIC1TJYWeIOttrVc98/R1BUFWu3/LiyKgUfQM",
    },
    "gitlab.com": {"SHA256:eUXGGm1YGsMAS7vkcx6JOJdOGHPem5gQp4taiCfCLB8"},
    "bitbucket.org": {"SHA256:ybgmFkzwOSotHTHLJgHO0QN8L0xErw6vd0VhFA9m3SM"},
    "ssh.dev.azure.com": {"SHA256:ohD8VZEXGWo6Ez8GSEJQ9WpafgLFsOfLOtGGQCQo6Og"},
}


def test_published_host_keys_have_the_published_fingerprints() -> None:
    """A typing error in one would break all fetches, or worse."""
    found: dict[str, set[str]] = {}
    for line in KNOWN_HOSTS.splitlines():
        hosts, _, key = line.split()
        digest = base64.b64encode(hashlib.sha256(base64.b64decode(key)).digest()).decode().rstrip("=")
        found.setdefault(hosts.split(",")[0], set()).add(f"SHA256:{digest}")
    assert found == FINGERPRINTS


def test_deploy_keys_are_ed25519_and_rsa_where_nothing_else_is_taken() -> None:
    """Azure DevOps accepts only RSA."""
    assert KEY.public.startswith("ssh-ed25519 ")
    azure = make_deploy_key("azure-devops", comment="pushgate:digits")
    kind, _, comment = azure.public.split(" ")
    assert (kind, comment) == ("ssh-rsa", "pushgate:digits")
    assert asyncssh.import_private_key(azure.private).export_public_key().split()[1].decode() in azure.public


@pytest.mark.parametrize(
    "damage",
    [
        lambda pem: pem.replace("\n", "\\n"),
        lambda pem: pem.replace("\n", "\\r\\n"),
        lambda pem: pem.replace("\n", "\r\n"),
        lambda pem: pem.replace("\n", "\r"),
        lambda pem: pem.rstrip("\n"),
        lambda pem: f'"{pem}"',
        lambda pem: f"'{pem.strip()}'",
        lambda pem: "".join(f"    {line}\n" for line in pem.splitlines()),
        lambda pem: "\n\n" + pem.replace("\n", "\n\n"),
        lambda pem: pem.replace("\n", " "),
        json.dumps,
        lambda pem: json.dumps(json.dumps(pem)),
        lambda pem: pem.replace("\n", "\\\n"),
        lambda pem: "key: |\n" + pem,
    ],
)
@pytest.mark.parametrize("pem", [KEY.private, PEM_RSA], ids=["OpenSSH", "PEM"])
def test_a_pasted_key_is_mended(damage: object, pem: str) -> None:
    """What forms, JSON and YAML do to a key is undone."""
    assert callable(damage)
    assert mend_private_key(damage(pem)) == mend_private_key(pem)
    assert read_private_key(damage(pem), "github", comment="x").public.startswith("ssh-")


@given(
    indent=st.text(" \t", max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\\n", "\\r\\n"]),
    quote=st.sampled_from(["", '"', "'"]),
    last=st.booleans(),
)
def test_any_mixture_is_mended(indent: str, end: str, quote: str, *, last: bool) -> None:
    """Any combination is repaired."""
    lines = [indent + line for line in KEY.private.splitlines()]
    pasted = quote + end.join(lines) + (end if last else "") + quote
    assert read_private_key(pasted, "github", comment="test").public == KEY.public


@pytest.mark.parametrize(
    ("pasted", "provider", "expected"),
    [
        ("", "github", "it is not a private key"),
        ("hello", "github", "it is not a private key"),
        (KEY.public, "github", "public key"),
        ("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----", "github", "it is a certificate"),
        (KEY.private.replace("b3Bl", "xxxx", 1), "github", "damaged"),
        (KEY.private[:200] + "\n-----END OPENSSH PRIVATE KEY-----", "github", "damaged"),
        (KEY.private, "azure-devops", "only RSA"),
        (
            LOCKED,
            "github",
            "passphrase",
        ),
        (
            asyncssh.generate_private_key("ssh-rsa", key_size=2048)
            .export_private_key("pkcs8-pem", passphrase="x")
            .decode(),
            "github",
            "passphrase",
        ),
        (
            asyncssh.generate_private_key("ssh-rsa", key_size=1024).export_private_key().decode(),
            "github",
            "1024 bits is too weak",
        ),
    ],
    ids=[
        "nothing",
        "words",
        "public",
        "certificate",
        "damaged",
        "cut",
        "not RSA",
        "locked",
        "locked PEM",
        "weak",
    ],
)
def test_what_is_wrong_with_a_key_is_one_sentence(pasted: str, provider: str, expected: str) -> None:
    """And it contains nothing of the key."""
    with pytest.raises(Invalid, match=expected) as caught:
        read_private_key(pasted, provider, comment="x")
    assert "b3BlbnNzaC1" not in str(caught.value)


@pytest.mark.parametrize("before", ["EC PARAMETERS", "CERTIFICATE"])
def test_a_key_may_stand_behind_something_else(before: str) -> None:
    """`openssl ecparam -genkey` writes the curve first, and other files have a certificate first."""
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    pasted = f"-----BEGIN {before}-----\nBggqhkjOPQMBBw==\n-----END {before}-----\n{key.decode()}"
    assert read_private_key(pasted, "github", comment="x").public.startswith("ecdsa-sha2-nistp256 ")


@pytest.mark.parametrize(
    "curve", [ec.SECP256K1(), ec.SECP224R1(), ec.BrainpoolP256R1()], ids=lambda curve: curve.name
)
@pytest.mark.parametrize("kind", [PrivateFormat.TraditionalOpenSSL, PrivateFormat.PKCS8])
def test_a_key_on_a_curve_that_ssh_does_not_know_is_refused(
    curve: ec.EllipticCurve, kind: PrivateFormat
) -> None:
    """The sentence names the curve and what to use instead."""
    key = ec.generate_private_key(curve).private_bytes(Encoding.PEM, kind, NoEncryption())
    with pytest.raises(
        Invalid, match=f"does not support ECDSA keys on the curve {curve.name}.*ssh-keygen -t ed25519"
    ):
        read_private_key(key.decode(), "github", comment="x")


@pytest.mark.parametrize(
    ("password", "user"),
    [
        ("ATATT3xFfGF0abc", "x-bitbucket-api-token-auth"),
        ("ATCTT3xFfGN0abc", "x-token-auth"),
        ("anything else", "x-token-auth"),
    ],
)
def test_bitbuckets_tokens_have_user_names_of_their_own(password: str, user: str) -> None:
    """A person's API token, and a repository's access token; a given name stays."""
    assert make_login(None, password, "bitbucket") == Login(user=user, password=password)
    assert make_login("ada", password, "bitbucket").user == "ada"
    assert make_login(None, "ATATT3xFfGF0abc", "gitlab").user == "oauth2"


@pytest.mark.parametrize(
    "token",
    [
        "ATATT3xFfGF0abc",
        "ATCTT3xFfGN0abc",
        "BBDC-MDEyMzQ1Njc4OTAx",
        "0123456789abcdef0123456789abcdef01234567",
        "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst",
    ],
)
def test_a_token_in_place_of_a_user_name_is_not_dropped(token: str) -> None:
    """Also one of Azure DevOps or Gitea, which has no recognizable prefix."""
    _, login = take_login(f"https://{token}@host.example/a/b", "bitbucket")
    assert login == make_login(None, token, "bitbucket")
    with pytest.raises(Invalid, match="remove the user name and the password"):
        check_url(without_user(f"https://{token}@host.example/a/b"), allow_http=False, hosts=())


@pytest.mark.parametrize(
    ("url", "bare", "login"),
    [
        ("https://host.example/a/b.git", "https://host.example/a/b.git", None),
        (
            "https://ada:s%40c@host.example:8443/a/b",
            "https://host.example:8443/a/b",
            Login(user="ada", password="s@c"),
        ),
        ("https://oauth2:t0ken@[::1]/a/b", "https://[::1]/a/b", Login(user="oauth2", password="t0ken")),
        (
            "https://:t0ken@host.example/a/b",
            "https://host.example/a/b",
            Login(user="oauth2", password="t0ken"),
        ),
        ("https://glpat-abc@host.example/a/b", "https://host.example/a/b", TOKEN),
        ("https://glpat-abc:@host.example/a/b", "https://host.example/a/b", TOKEN),
        ("https://glpat-abc:x-oauth-basic@host.example/a/b", "https://host.example/a/b", TOKEN),
        ("https://acme@dev.azure.com/acme/p/_git/r", "https://dev.azure.com/acme/p/_git/r", None),
        ("git@host.example:a/b.git", "git@host.example:a/b.git", None),
        ("ssh://git@host.example/a/b.git", "ssh://git@host.example/a/b.git", None),
    ],
)
def test_credentials_leave_the_url_at_once(url: str, bare: str, login: Login | None) -> None:
    """A token alone gets the user name that the provider requires."""
    assert take_login(url, "gitlab") == (bare, login)


@pytest.mark.parametrize("credentials", [KEY, Login(user="ada", password="s3cret"), None])
def test_what_is_kept_comes_back(credentials: SshKey | Login | None) -> None:
    """And printing it shows no secret."""
    assert from_json(as_json(credentials, "host ssh-ed25519 AAAA")) == (credentials, "host ssh-ed25519 AAAA")
    assert "PRIVATE" not in repr(credentials)
    assert "s3cret" not in repr(credentials)


@pytest.mark.parametrize("password", ["", "two\nlines", "two\rlines", "nul\0"])
def test_a_password_is_one_line(password: str) -> None:
    """Git reads it as a line, and would take the rest as the answer to another prompt."""
    with pytest.raises(Invalid, match="one line each"):
        make_login("ada", password, "github")


def test_what_must_not_be_repeated() -> None:
    """A password as given, as in a URL, and as in a header; a key is never sent."""
    login = Login(user="ada", password="s3/cret")
    assert secrets_of(login) == ("YWRhOnMzL2NyZXQ=", "s3/cret", "s3%2Fcret")
    assert secrets_of(KEY) == secrets_of(None) == ()


def test_a_bearer_token_is_one_word() -> None:
    """Git reads it from a line of a configuration file; printing it shows nothing secret."""
    assert "s3cret" not in repr(Bearer(token="s3cret"))
    with pytest.raises(Invalid, match="one word"):
        Bearer(token="s3cret\n[core]")


def test_the_shortest_secret_that_is_taken_out() -> None:
    """Four characters; with fewer, every other word of a sentence would be masked."""
    assert "abcd" in secrets_of(Login(user="ada", password="abcd"))
    assert secrets_of(Login(user="ada", password="abc")) == ()


# GitHub's; always the same, so that tests have the same names in each process that collects them.
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


@pytest.mark.parametrize(
    "pasted",
    [
        f"git.example {HOST_KEY}",
        f"# git.example:22 SSH-2.0-OpenSSH\r\n\r\n  Git.Example,10.0.0.1 {HOST_KEY} a comment\r\n",
        f"@cert-authority *.example {HOST_KEY}\n",
        f"|1|JfKTdBh7rNbXkVAQCRp4OQoPfmI=|USECr3SWf1JUPsms5AqfD5QfxkM= {HOST_KEY}",
    ],
)
def test_host_keys_are_lines_as_ssh_keyscan_prints_them(pasted: str) -> None:
    """Comments and line ends of other systems are removed."""
    text, unreadable = read_host_keys(pasted, known_as="git.example")
    [line] = text.splitlines()
    assert HOST_KEY in line
    assert unreadable == []


@pytest.mark.parametrize(
    "odd",
    [
        "git.example ssh-dss AAAAB3NzaC1kc3M=",
        "git.example 2048 35 1234567890",
        "git.example:22 SSH-2.0-OpenSSH_9.6",
        "<<<<<<< HEAD",
    ],
)
def test_one_odd_line_does_not_cost_the_other_host_keys(odd: str) -> None:
    """As with ssh itself: a key of an old type, or a merge marker, is left out and named."""
    given = f"{odd}\ngit.example {HOST_KEY}\n# fine\n{odd}\n"
    assert read_host_keys(given, known_as="git.example") == (f"git.example {HOST_KEY}\n", [1, 4])


@pytest.mark.parametrize(
    ("pasted", "expected"),
    [
        ("git.example", "a host, a type and a key"),
        (HOST_KEY, "a host, a type and a key"),
        ("git.example ssh-ed25519 AAAA", "a host, a type and a key"),
        (f"git.example {HOST_KEY}\n@revoked", "line 2 revokes a key that cannot be read"),
        (f"other.example {HOST_KEY}\ngit.example ssh-dss AA", r"no line is for git.example \(line 2"),
        (f"other.example {HOST_KEY}", "no line is for git.example"),
        (f"[git.example]:2222 {HOST_KEY}", "no line is for git.example"),
        ("# nothing\n", "no line is for git.example"),
    ],
)
def test_host_keys_that_cannot_work_are_refused(pasted: str, expected: str) -> None:
    """When the connection is made, not at its first push."""
    with pytest.raises(Invalid, match=expected):
        read_host_keys(pasted, known_as="git.example")
