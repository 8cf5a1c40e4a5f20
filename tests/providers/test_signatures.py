"""The signature schemes, with the providers' own vectors, other libraries and forged requests."""

import base64
import hashlib
import hmac
import json
import re

import gidgethub.sansio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers import (
    PROVIDERS,
    azure_devops,
    bitbucket,
    bitbucket_server,
    gitea,
    github,
    gogs,
)
from providers.errors import Unverified
from providers.model import Provider, VerifiedRequest
from testing.corpus import NOW, SECRET
from tests.providers.verifying import BODY, verify

EVENTS = {
    "github": "push",
    "gitlab": "Push Hook",
    "bitbucket": "repo:push",
    "bitbucket-server": "repo:refs_changed",
    "azure-devops": "",
    "gitea": "push",
    "forgejo": "push",
    "gogs": "push",
    "generic": "",
}

every_provider = pytest.mark.parametrize("name", PROVIDERS)
by_hex = pytest.mark.parametrize(
    ("provider", "header", "prefix"),
    [
        (github, "x-hub-signature-256", "sha256="),
        (bitbucket, "x-hub-signature", "sha256="),
        (bitbucket_server, "x-hub-signature", "sha256="),
        (gitea, "x-gitea-signature", ""),
        (gitea, "x-forgejo-signature", ""),
        (gogs, "x-gogs-signature", ""),
    ],
    ids=["github", "bitbucket", "bitbucket-server", "gitea", "forgejo", "gogs"],
)


@every_provider
@given(
    body=st.binary(max_size=300),
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
)
def test_what_we_sign_we_verify(name: str, body: bytes, secret: str) -> None:
    """`verify` accepts what `sign` makes, for any body and any printable secret."""
    provider, key = PROVIDERS[name], secret.removeprefix("whsec_").encode() or b"key"
    headers = provider.sign(event=EVENTS[name], body=body, secret=key, delivery="d1", now=NOW)
    delivery = verify(provider, headers, body, b"a newer secret", key)
    assert (delivery.secret, delivery.content) == (1, body)


@every_provider
@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/heads/dev/a", "refs/tags/v1"])
@pytest.mark.parametrize("before", [None, "a" * 40])
def test_a_push_that_we_make_is_read_as_one(name: str, ref: str, before: str | None) -> None:
    """`parse` is the inverse of `push`, and finds the event in the headers or in the body."""
    provider, after = PROVIDERS[name], "b" * 40
    body = json.dumps(provider.push(ref=ref, before=before, after=after)).encode()
    headers = provider.sign(event=provider.PUSH_EVENT, body=body, secret=SECRET, delivery="d1", now=NOW)
    event = provider.parse(verify(provider, headers, body))
    assert [(one.ref, one.before, one.after) for one in event.updates] == [(ref, before, after)]
    assert (event.kind, event.repository) == ("push", None)


@by_hex
def test_a_hex_signature_is_an_hmac_sha256_by_hand(provider: Provider, header: str, prefix: str) -> None:
    """The signature is computed here without our code."""
    signature = prefix + hmac.new(SECRET, BODY, hashlib.sha256).hexdigest()
    assert verify(provider, {header: signature}).secret == 0


@by_hex
@pytest.mark.parametrize(
    "forgery",
    [
        "",
        "none",
        "{prefix}",
        "sha256={prefix}{digest}",
        "{prefix}{digest:.63}",
        "{prefix}{digest}0",
        "{prefix}{digest} ",
        "{prefix}{upper}",
        "{prefix}{zeros}",
        "{prefix}{digest}, {prefix}{digest}",
        "{prefix}{digest:.63}é",
        "{prefix}{digest:.63}\ud800",
        "sha1={digest:.40}",
    ],
    ids=ascii,
)
def test_anything_but_the_exact_signature_is_refused(
    provider: Provider, header: str, prefix: str, forgery: str
) -> None:
    """Empty, cut, lengthened, upper-case, doubled, not ASCII: a clean refusal, never another exception."""
    digest = hmac.new(SECRET, BODY, hashlib.sha256).hexdigest()
    signature = forgery.format(prefix=prefix, digest=digest, upper=digest.upper(), zeros="0" * 64)
    with pytest.raises(Unverified):
        verify(provider, {header: signature})


@every_provider
def test_a_request_without_any_proof_is_refused(name: str) -> None:
    """The headers are missing; the sentence says what to check."""
    with pytest.raises(Unverified, match="no "):
        verify(PROVIDERS[name], {})


def test_github_agrees_with_the_vector_of_its_documentation() -> None:
    """https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries#testing-the-webhook-payload-validation."""
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert verify(github, {"x-hub-signature-256": signature}, b"Hello, World!").secret == 0


def test_github_does_not_take_the_older_signature() -> None:
    """X-Hub-Signature is SHA-1: it is ignored, right or wrong."""
    sha1 = "sha1=" + hmac.new(SECRET, BODY, hashlib.sha1).hexdigest()
    with pytest.raises(Unverified):
        verify(github, {"x-hub-signature": sha1})


@given(body=st.binary(max_size=300), secret=st.text(min_size=1))
def test_gidgethub_takes_what_we_sign_as_github(body: bytes, secret: str) -> None:
    """An independent verifier agrees with our signer."""
    key = secret.encode("utf-8", "ignore") or b"key"
    headers = github.sign(event="push", body=body, secret=key, delivery="d1", now=NOW)
    gidgethub.sansio.validate_event(body, signature=headers["x-hub-signature-256"], secret=key.decode())


def test_github_signs_the_form_and_gitea_the_document_in_it() -> None:
    """The same form, with different signed bytes."""
    document = b'{"ref":"refs/heads/main"}'
    form = b"payload=%7B%22ref%22%3A%22refs%2Fheads%2Fmain%22%7D"
    media_type = {"content-type": "application/x-www-form-urlencoded"}
    digest = "d8f89f0618acd61fe621aa4e64078c0e2bca15d0b578b7f3eb734f55883c5320"
    whole = "sha256=" + hmac.new(b"secret", form, hashlib.sha256).hexdigest()
    found = verify(gitea, media_type | {"x-gitea-signature": digest}, form, b"secret")
    assert (found.content, found.form) == (document, False)
    assert verify(gogs, media_type | {"x-gogs-signature": digest}, form, b"secret").content == document
    assert verify(github, media_type | {"x-hub-signature-256": whole}, form, b"secret").form
    with pytest.raises(Unverified):
        verify(gitea, media_type | {"x-gitea-signature": whole.removeprefix("sha256=")}, form, b"secret")


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"x=1",
        b"payload=a&payload=a",
        b"payload=%zz",
        b"payload=%",
        b"&" * 17 + b"payload=a",
        b"p;payload=a",
    ],
)
def test_a_form_without_one_payload_proves_nothing(form: bytes) -> None:
    """If the signed document is ambiguous, the request is unverified, not malformed."""
    signature = hmac.new(SECRET, b"a", hashlib.sha256).hexdigest()
    headers = {"content-type": "application/x-www-form-urlencoded", "x-gitea-signature": signature}
    with pytest.raises(Unverified, match="nothing to verify"):
        verify(gitea, headers, form)


class TestAzureCredentials:
    """Azure DevOps signs nothing: it sends a password, or a custom header."""

    @staticmethod
    def basic(credentials: bytes) -> dict[str, str]:
        """Return an Authorization header."""
        return {"authorization": "Basic " + base64.b64encode(credentials).decode()}

    def test_the_password_is_the_secret_and_the_user_is_anybody(self) -> None:
        """Colons in the password belong to it."""
        assert verify(azure_devops, self.basic(b"whoever:pass:word"), BODY, b"pass:word").secret == 0

    def test_the_user_counts_where_one_is_set(self) -> None:
        """The right password under another name is refused."""
        headers = self.basic(b"ada:" + SECRET)
        assert verify(azure_devops, headers, auth={"user": "ada"}).secret == 0
        with pytest.raises(Unverified):
            verify(azure_devops, headers, auth={"user": "eve"})

    def test_a_header_of_ones_own_takes_the_place_of_the_password(self) -> None:
        """Then Basic credentials are no longer accepted."""
        auth = {"header": "X-Pushgate-Secret"}
        assert verify(azure_devops, {"x-pushgate-secret": SECRET.decode()}, auth=auth).secret == 0
        for headers in ({"x-pushgate-secret": "wrong"}, self.basic(b"ada:" + SECRET)):
            with pytest.raises(Unverified):
                verify(azure_devops, headers, auth=auth)

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "Basic",
            "Basic ",
            "Basic ***",
            "Bearer abc",
            "Basic é",
            "Basic \ud800",
            "Basic YTpiYw==, Basic YTpiYw==",
        ],
    )
    def test_anything_but_basic_credentials_is_refused(self, value: str) -> None:
        """Not base64, of another scheme, sent twice: a clean refusal."""
        with pytest.raises(Unverified):
            verify(azure_devops, {"authorization": value}, BODY, b"bc")

    def test_credentials_without_a_colon_have_an_empty_password(self) -> None:
        """An empty password never matches a secret."""
        with pytest.raises(Unverified):
            verify(azure_devops, self.basic(SECRET))


class TestUnsignedPing:
    """Bitbucket Data Center does not sign what its test button sends."""

    @staticmethod
    def test_the_same_body_under_another_event_is_refused() -> None:
        """Only the ping needs no proof."""
        with pytest.raises(Unverified):
            verify(bitbucket_server, {"x-event-key": "repo:refs_changed"}, b'{"test":true}')

    @staticmethod
    def test_the_ping_brings_nothing_with_it() -> None:
        """Neither body nor id of an unproven request is used."""
        headers = {"x-event-key": "diagnostics:ping", "x-request-id": "known"}
        expected = VerifiedRequest(event="diagnostics:ping", id=None, secret=None, content=b"")
        assert verify(bitbucket_server, headers, b'{"test":true}') == expected

    @staticmethod
    def test_a_ping_with_a_wrong_signature_is_refused() -> None:
        """A signature, if sent, has to be right."""
        headers = {"x-event-key": "diagnostics:ping", "x-hub-signature": "sha256="}
        with pytest.raises(Unverified):
            verify(bitbucket_server, headers, b"")

    @staticmethod
    def test_a_large_unsigned_ping_is_refused() -> None:
        """Pings must not fill the store."""
        with pytest.raises(Unverified, match=re.escape("diagnostics:ping of 2000 bytes")):
            verify(bitbucket_server, {"x-event-key": "diagnostics:ping"}, b" " * 2000)
