"""Standard Webhooks: the signatures of GitLab's signing token and of generic senders."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from providers import (
    generic,
    gitlab,
)
from providers.errors import Unverified
from providers.model import Provider
from testing.corpus import NOW, SECRET
from tests.providers.verifying import BODY, verify

WHSEC = b"whsec_dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3Q="
NEWER_WHSEC = b"whsec_" + base64.b64encode(b"another key of thirty-two bytes!")


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
