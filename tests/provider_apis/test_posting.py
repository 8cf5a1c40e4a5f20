"""Messages to URLs that people enter, signed and unsigned: what each answer means."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from gateway.errors import Invalid
from gateway.provider_apis.operation import ApiAnswer, ApiLimited, ApiRefused, ApiRequest, ApiUnavailable
from gateway.provider_apis.posting import Message, Sender, origin, post
from gateway.provider_apis.standard_webhook import check_secret, new_secret, send
from testing.provider_apis.fake import serving
from testing.receivers import FakeReceiver, FakeSlack, FakeTeams, too_fast
from tests.provider_apis.running import run

BODY = '{"type":"test","text":"grün"}'.encode()


@pytest.fixture
def slack() -> Iterator[FakeSlack]:
    """Serve Slack's incoming webhooks."""
    fake = FakeSlack()
    with serving(fake):
        yield fake


@pytest.fixture
def receiver() -> Iterator[FakeReceiver]:
    """Serve a receiver of signed webhooks."""
    fake = FakeReceiver(secret=new_secret())
    with serving(fake):
        yield fake


def post_to(url: str, content: bytes = b'{"text":"hello"}') -> None:
    """Post JSON to a URL, as the sender of a channel."""
    message = Message(url=url, content=content, headers={"Content-Type": "application/json"})
    run(post(message), origin(url), Sender(name="the channel ops"))


def send_to(receiver: FakeReceiver, *, secret: str | None = None, id_: str = "msg_1") -> None:
    """Send a signed document."""
    signed = send(
        url=receiver.webhook, secret=secret or receiver.secret, id=id_, body=BODY, now=datetime.now(UTC)
    )
    run(signed, origin(receiver.webhook), Sender(name="the channel ops"))


def test_the_signature_is_that_of_the_reference_implementations() -> None:
    """Their libraries have this vector in their own tests."""
    operation = send(
        url="https://example.org/events",
        secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        body=b'{"test": 2432232314}',
        now=datetime.fromtimestamp(1614265330, UTC),
    )
    assert next(operation) == ApiRequest(
        method="POST",
        path="https://example.org/events",
        right="",
        subject="webhook",
        content=b'{"test": 2432232314}',
        headers={
            "Content-Type": "application/json",
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
    )
    with pytest.raises(StopIteration):
        operation.send(ApiAnswer(status=204, headers={}, content=b""))


def test_the_reference_library_verifies_what_is_sent(receiver: FakeReceiver) -> None:
    """A retry has the same id, so it counts once; another secret is refused, for good."""
    send_to(receiver)
    send_to(receiver)
    assert receiver.received == {"msg_1": {"type": "test", "text": "grün"}}
    with pytest.raises(ApiRefused, match=r"127\.0\.0\.1 answered 401") as refused:
        send_to(receiver, secret=new_secret(), id_="msg_2")
    assert refused.value.status == 401
    # No second try with a credential that there is not.
    assert [one.status for one in receiver.requests] == [204, 204, 401]


@pytest.mark.parametrize(
    "secret", ["", "secret", "whsec_", "whsec_***", "whsec_" + "A" * 28, "whsec_" + "A" * 92]
)
def test_a_secret_that_the_scheme_does_not_allow_is_invalid(secret: str) -> None:
    """The specification has bounds for its length."""
    with pytest.raises(Invalid, match="24 to 64 random bytes"):
        check_secret(secret)
    check_secret(new_secret())


def test_slack_and_teams_take_messages(slack: FakeSlack) -> None:
    """Slack answers 200 and ok, Teams 202 and nothing. The URL of Teams has a query."""
    post_to(slack.webhook)
    assert slack.messages == [{"text": "hello"}]
    teams = FakeTeams()
    with serving(teams):
        card = (
            b'{"attachments":[{"contentType":"application/vnd.microsoft.card.adaptive","content":{"a":1}}]}'
        )
        post_to(teams.webhook, card)
        with pytest.raises(ApiRefused, match=r"401 \(The request must be authenticated"):
            post_to(teams.webhook + "x", card)
    assert teams.cards == [{"a": 1}]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (PlainTextResponse("no_service", 404), ApiRefused, r"answered 404 \(no_service\)"),
        (PlainTextResponse("action_prohibited", 403), ApiRefused, r"answered 403 \(action_prohibited\)"),
        (RedirectResponse("https://example.org/", 308), ApiRefused, "answered 308"),
        (Response(status_code=408), ApiUnavailable, "answered 408; try again"),
        (PlainTextResponse("rollup_error", 500), ApiUnavailable, "answered 500; try again"),
        (too_fast(7), ApiLimited, "limits the requests of the channel ops; they go on in 7 s"),
    ],
)
def test_an_answer_decides_whether_a_retry_can_help(
    slack: FakeSlack, answer: Response, error: type[Exception], words: str
) -> None:
    """The error names the host, and nothing more of the URL, which is a secret."""
    slack.instead.append(answer)
    with pytest.raises(error, match=words) as raised:
        post_to(slack.webhook)
    assert "secret" not in str(raised.value)
    assert len(slack.requests) == 1
