"""The signature schemes, with the providers' own vectors, other libraries and forged requests."""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import gidgethub.sansio
import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from providers import (
    PROVIDERS,
    azure_devops,
    bitbucket,
    bitbucket_server,
    generic,
    gitea,
    github,
    gitlab,
    gogs,
)
from providers.errors import Unverified
from providers.model import Provider, VerifiedRequest
from testing.corpus import NOW, SECRET

WHSEC = b"whsec_dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3Q="
NEWER_WHSEC = b"whsec_" + base64.b64encode(b"another key of thirty-two bytes!")
BODY = b'{"object_kind":"push"}'
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


def verify(
    provider: Provider, headers: Mapping[str, str], body: bytes = BODY, *secrets: bytes, **more: Any
) -> VerifiedRequest:
    """Verify at the time of the tests."""
    settings: dict[str, Any] = {"auth": {}, "now": NOW} | more
    return provider.verify(headers=headers, body=body, secrets=secrets or (SECRET,), **settings)


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


def test_gitlab_agrees_with_the_vector_of_its_signing_token() -> None:
    """The vector was made with GitLab's own code."""
    headers = {
        "webhook-id": "f5e5f430-f57b-4e6e-9fac-d9128cd7232f",
        "webhook-timestamp": "1700000000",
        "webhook-signature": "v1,68n7sQVzNQF7jew9KS2HTT9NVpOYy2A5oNqzWGa8QlM=",
    }
    delivery = verify(gitlab, headers, BODY, WHSEC)
    assert (delivery.secret, delivery.id) == (0, "f5e5f430-f57b-4e6e-9fac-d9128cd7232f")


@given(body=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_standardwebhooks_and_we_take_what_the_other_signs(body: str) -> None:
    """The reference library verifies our signature, and we verify the reference library's."""
    now = datetime.now(UTC)
    peer = standardwebhooks.Webhook(WHSEC.decode())
    ours = generic.sign(event="", body=body.encode(), secret=WHSEC, delivery="msg_1", now=now)
    peer.verify(body, ours, json_parse=False)
    theirs = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": peer.sign("msg_1", now, body),
    }
    assert verify(generic, theirs, body.encode(), WHSEC, now=now).secret == 0
    assert verify(gitlab, theirs, body.encode(), WHSEC, now=now).secret == 0


def standard(secret: bytes = WHSEC) -> dict[str, str]:
    """Return the headers of a signed delivery."""
    return generic.sign(event="", body=BODY, secret=secret, delivery="msg_1", now=NOW)


both_standard = pytest.mark.parametrize("provider", [generic, gitlab], ids=["generic", "gitlab"])


@both_standard
def test_one_of_several_signatures_is_enough(provider: Provider) -> None:
    """During a rotation the sender signs with both keys; unknown versions are skipped."""
    good = standard()["webhook-signature"]
    other = standard(NEWER_WHSEC)["webhook-signature"]
    headers = standard() | {"webhook-signature": f"v2,AAAA v1a,{good[3:]} {other} {good}"}
    assert verify(provider, headers, BODY, WHSEC).secret == 0
    assert verify(provider, headers, BODY, NEWER_WHSEC).secret == 0


@both_standard
def test_no_more_signatures_are_compared_than_a_rotation_needs(provider: Provider) -> None:
    """A header of 64 KB would otherwise hold twenty thousand guesses."""
    good = standard()["webhook-signature"]
    headers = standard() | {"webhook-signature": " ".join(["v1,AAAA"] * 19 + [good])}
    assert verify(provider, headers, BODY, WHSEC).secret == 0
    headers = standard() | {"webhook-signature": " ".join(["v1,AAAA"] * 20 + [good])}
    with pytest.raises(Unverified, match="not of the form"):
        verify(provider, headers, BODY, WHSEC)


@both_standard
@pytest.mark.parametrize("seconds", [-300, -1, 0, 299, 300])
def test_five_minutes_of_clock_difference_are_forgiven(provider: Provider, seconds: int) -> None:
    """In either direction."""
    assert verify(provider, standard(), BODY, WHSEC, now=NOW + timedelta(seconds=seconds)).secret == 0


@both_standard
@pytest.mark.parametrize("seconds", [-3600, -301, 301, 10**9])
def test_an_old_delivery_cannot_be_sent_again(provider: Provider, seconds: int) -> None:
    """A timestamp from outside of five minutes is refused, and the sentence names the clock."""
    with pytest.raises(Unverified, match="clock"):
        verify(provider, standard(), BODY, WHSEC, now=NOW + timedelta(seconds=seconds))


@both_standard
@pytest.mark.parametrize(
    "changes",
    [
        {"signature": ""},
        {"signature": "v1,"},
        {"signature": "v1"},
        {"signature": " "},
        {"signature": "v1,é"},
        {"signature": "v1,\ud800"},
        {"signature": standard()["webhook-signature"] + ", " + standard()["webhook-signature"]},
        {"signature": standard()["webhook-signature"].replace("v1,", "v2,")},
        {"signature": standard()["webhook-signature"].rstrip("=")},
        {"timestamp": "abc"},
        {"timestamp": "1e9"},
        {"timestamp": "-1700000000"},
        {"timestamp": " 1700000000"},
        {"timestamp": "٣٤٥"},
        {"timestamp": "9" * 10_000},
        {"timestamp": "1700000000, 1700000000"},
        {"timestamp": "1700000001"},
        {"id": ""},
        {"id": "msg_2"},
        {"id": "msg_1, msg_1"},
        {"id": "msg_1.1700000000"},
    ],
)
def test_anything_but_the_three_exact_headers_is_refused(provider: Provider, changes: dict[str, str]) -> None:
    """Missing, doubled, huge, not ASCII, of another version: a clean refusal."""
    with pytest.raises(Unverified):
        verify(
            provider,
            standard() | {f"webhook-{name}": value for name, value in changes.items()},
            BODY,
            WHSEC,
        )


def test_signed_bytes_cannot_be_split_into_other_parts() -> None:
    """A dot in the id would move the border between id, timestamp and body: Gitea's CVE-2026-58426."""
    content = b"1.1700000000.2.1700000000." + BODY
    key = base64.b64decode(WHSEC.removeprefix(b"whsec_"))
    signature = "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
    headers = {"webhook-timestamp": "1700000000", "webhook-signature": signature}
    with pytest.raises(Unverified):
        verify(generic, headers | {"webhook-id": "1.1700000000.2"}, BODY, WHSEC)


@both_standard
@pytest.mark.parametrize("secret", [b"whsec_", b"whsec_***", b"whsec_a", b"whsec_\xff"])
def test_a_signing_secret_that_is_no_base64_refuses_everything(provider: Provider, secret: bytes) -> None:
    """The sentence names the secret as the cause."""
    with pytest.raises(Unverified, match="rotate its secret"):
        verify(provider, standard(), BODY, secret)


@both_standard
def test_an_undecodable_secret_does_not_stop_the_good_one_beside_it(provider: Provider) -> None:
    """One broken secret does not break a rotation."""
    assert verify(provider, standard(), BODY, b"whsec_***", WHSEC).secret == 1


class TestGitLabTokens:
    """GitLab's two schemes, alone and together."""

    @staticmethod
    def test_the_plain_token_is_the_secret_itself() -> None:
        """A project without a signing token sends only this."""
        assert verify(gitlab, {"x-gitlab-token": SECRET.decode()}).secret == 0

    @staticmethod
    def test_a_token_may_hold_any_characters() -> None:
        """Servers decode headers as latin-1; the sent bytes are compared."""
        token = "pässwörd-密".encode()
        assert verify(gitlab, {"x-gitlab-token": token.decode("latin-1")}, BODY, token).secret == 0

    @staticmethod
    @pytest.mark.parametrize("token", ["", "wrong", "It's a Secret to Everybod", "é", "\ud800"])
    def test_another_token_is_refused(token: str) -> None:
        """A clean refusal, also if it is not ASCII."""
        with pytest.raises(Unverified):
            verify(gitlab, {"x-gitlab-token": token})

    @staticmethod
    def test_a_token_sent_twice_is_refused() -> None:
        """Two headers of one name arrive joined."""
        with pytest.raises(Unverified):
            verify(gitlab, {"x-gitlab-token": f"{SECRET.decode()}, {SECRET.decode()}"})

    @staticmethod
    @pytest.mark.parametrize("order", [1, -1])
    def test_the_plain_token_never_makes_up_for_a_signature(order: int) -> None:
        """With a live signing token, a right plain token without a signature is refused."""
        with pytest.raises(Unverified, match="field for the signing token"):
            verify(gitlab, {"x-gitlab-token": SECRET.decode()}, BODY, *(WHSEC, SECRET)[::order])

    @staticmethod
    def test_the_plain_token_does_not_mend_a_wrong_signature() -> None:
        """Nor does it help next to a wrong signature."""
        headers = standard(NEWER_WHSEC) | {"x-gitlab-token": SECRET.decode()}
        with pytest.raises(Unverified):
            verify(gitlab, headers, BODY, WHSEC, SECRET)

    @staticmethod
    def test_the_signing_token_itself_is_no_plain_token() -> None:
        """Sending `whsec_...` as X-Gitlab-Token proves nothing."""
        with pytest.raises(Unverified):
            verify(gitlab, {"x-gitlab-token": WHSEC.decode()}, BODY, WHSEC)

    @staticmethod
    def test_both_together_are_taken() -> None:
        """GitLab can send both; the signing token is the one verified."""
        headers = standard() | {"x-gitlab-token": SECRET.decode()}
        assert verify(gitlab, headers, BODY, SECRET, WHSEC).secret == 1

    @staticmethod
    def test_a_wrong_plain_token_beside_a_good_signature_is_refused() -> None:
        """If both are configured, each one sent has to be right."""
        with pytest.raises(Unverified, match="X-Gitlab-Token"):
            verify(gitlab, standard() | {"x-gitlab-token": "wrong"}, BODY, WHSEC, SECRET)

    @staticmethod
    def test_the_id_of_a_delivery_is_never_the_event_uuid() -> None:
        """Webhooks caused by a webhook share its X-Gitlab-Event-UUID: deliveries would be lost."""
        headers = {"x-gitlab-token": SECRET.decode(), "x-gitlab-event-uuid": "shared"}
        assert verify(gitlab, headers).id is None
        assert verify(gitlab, headers | {"idempotency-key": "own"}).id == "own"


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
