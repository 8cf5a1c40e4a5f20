"""GitLab's webhooks, on a fake that behaves as GitLab does."""

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from starlette.requests import Request
from starlette.responses import Response

import providers
from gateway.provider_apis import gitlab
from gateway.provider_apis.operation import ApiLimited, ApiRefused, Operation, T
from gateway.provider_apis.webhooks import Place, Webhook, compare
from providers.model import Event
from testing.provider_apis.fake import FakeApi, serving
from testing.provider_apis.gitlab import MAX_HOOKS, FakeGitLab
from tests.provider_apis.running import Token, run

GOOD = "glpat-good"
PROJECT = "acme/ml/digits"
SIGNING = "whsec_" + base64.b64encode(b"canary-5f1d".ljust(32, b"-")).decode()
TEST = "/api/v4/projects/acme%2Fml%2Fdigits/hooks/1001/test/resource_access_token_events"


@dataclass(slots=True)
class Receiver(FakeApi):
    """Receives GitLab's deliveries, verifies them as the gateway does, and answers with `status`."""

    secret: str = SIGNING
    status: int = 200
    events: list[Event] = field(default_factory=list)

    async def handle(self, request: Request) -> Response:
        """Verify a delivery."""
        verified = providers.gitlab.verify(
            headers=request.headers,
            body=await request.body(),
            secrets=[self.secret.encode()],
            auth={},
            now=datetime.now(UTC),
        )
        self.events.append(providers.gitlab.parse(verified))
        return Response("the gateway is stopping" if self.status >= 400 else "", self.status)


@pytest.fixture
def fake() -> Iterator[FakeGitLab]:
    """Serve GitLab with one project."""
    fake = FakeGitLab(
        tokens={token: {PROJECT} for token in (GOOD, "developer", "reader")},
        developers={"developer"},
        readers={"reader"},
    )
    with serving(fake):
        yield fake


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Serve the address of the webhook."""
    receiver = Receiver()
    with serving(receiver):
        yield receiver


def webhook(receiver: Receiver | None = None, secret: str = SIGNING) -> Webhook:
    """Return the webhook as it should be."""
    url = receiver.url if receiver else "https://gate.example"
    return Webhook(url=f"{url}/hooks/c1", secret=secret, events=gitlab.EVENTS)


def do(fake: FakeGitLab, operation: Operation[T], token: str = GOOD) -> T:
    """Run an operation."""
    return run(operation, gitlab.base_url(Place(fake.url)), Token(gitlab, [token]))


def test_a_webhook_is_created_found_changed_tested_and_deleted(fake: FakeGitLab, receiver: Receiver) -> None:
    """A test reaches the gateway, signed, and has no effect there."""
    place, wanted = Place(f"{fake.url}/Acme/ml/digits.git"), webhook(receiver)
    made = do(fake, gitlab.create(place, wanted))
    assert (made.url, made.events, made.is_active, made.has_secret) == (wanted.url, wanted.events, True, True)
    assert compare([made], wanted).differences == ()
    assert do(fake, gitlab.test(place, made.id))
    assert [event.kind for event in receiver.events] == ["other"]
    [hook] = fake.hooks[PROJECT]
    assert (hook["signing_token"], "token" in hook) == (SIGNING, False)
    hook.update(url="http://127.0.0.1/hooks/c1", tag_push_events=False, push_events_branch_filter="main")
    [found] = do(fake, gitlab.webhooks(place))
    assert compare([found], wanted).differences == ("wrong URL", "missing events", "branch filter")
    assert found.events == {"push_events", "merge_requests_events"}
    assert do(fake, gitlab.change(place, found.id, wanted)) == made
    assert do(fake, gitlab.webhooks(place)) == [made]
    do(fake, gitlab.delete(place, found.id))
    do(fake, gitlab.delete(place, found.id))
    assert do(fake, gitlab.webhooks(place)) == []


def test_a_disabled_webhook_is_activated_by_a_test(fake: FakeGitLab, receiver: Receiver) -> None:
    """GitLab disables it after failures, for a time and then for ever, and no change of it ends that."""
    place, wanted = Place(f"{fake.url}/{PROJECT}"), webhook(receiver)
    do(fake, gitlab.create(place, wanted))
    [hook] = fake.hooks[PROJECT]
    receiver.status = 503
    for _ in range(4):
        asyncio.run(fake.deliver(hook, "Push Hook", {"object_kind": "push"}))
    [found] = do(fake, gitlab.webhooks(place))
    assert compare([found], wanted).differences == ("switched off",)
    assert (found.problem or "").startswith("temporarily disabled until 20")
    hook.update(recent_failures=40, disabled_until=datetime.now(UTC) - timedelta(days=1))
    [found] = do(fake, gitlab.webhooks(place))
    assert (found.is_active, found.problem) == (False, "disabled")
    with pytest.raises(ApiRefused, match=r"127\.0\.0\.1 answered 422 \(the gateway is stopping\)"):
        do(fake, gitlab.change(place, found.id, wanted))
    receiver.status = 200
    changed = do(fake, gitlab.change(place, found.id, wanted))
    assert (changed.is_active, changed.problem) == (True, None)
    assert do(fake, gitlab.webhooks(place)) == [changed]


def test_tests_are_limited(fake: FakeGitLab, receiver: Receiver) -> None:
    """GitLab permits 5 a minute for each project."""
    place = Place(f"{fake.url}/{PROJECT}")
    made = do(fake, gitlab.create(place, webhook(receiver)))
    for _ in range(5):
        do(fake, gitlab.test(place, made.id))
    with pytest.raises(ApiLimited) as limited:
        do(fake, gitlab.test(place, made.id))
    assert limited.value.seconds == 60
    assert [one.path for one in fake.requests[1:]] == [TEST] * 6


def test_a_failed_delivery_is_found_in_the_log_and_delivered_again(
    fake: FakeGitLab, receiver: Receiver
) -> None:
    """GitLab leaves out what succeeded, and delivers 5 events a minute again, each with its own id."""
    place = Place(f"{fake.url}/{PROJECT}")
    made = do(fake, gitlab.create(place, webhook(receiver)))
    [hook] = fake.hooks[PROJECT]
    receiver.status = 503
    push = {"object_kind": "push", "ref": "refs/heads/main", "before": "1" * 40, "after": "2" * 40}
    for _ in range(20):
        asyncio.run(fake.deliver(hook, "Push Hook", push))
    fake.add_to_log(hook, "Merge Request Hook", {}, 0, {})
    receiver.status = 200
    asyncio.run(fake.deliver(hook, "Push Hook", push))
    page = do(fake, gitlab.delivery_log(place, made.id, None))
    assert len(page.attempts) == 20
    unanswered = page.attempts[0]
    assert (unanswered.event, unanswered.status) == ("merge_requests_events", "internal error")
    [last] = do(fake, gitlab.delivery_log(place, made.id, page.next)).attempts
    assert (last.event, last.status, last.has_succeeded) == ("push_events", "503", False)
    assert last.at is not None
    do(fake, gitlab.redeliver(place, made.id, last.id))
    assert fake.log[-1]["request_headers"]["Idempotency-Key"] == last.guid
    assert len(do(fake, gitlab.delivery_log(place, made.id, None)).attempts) == 20
    for attempt in page.attempts[1:5]:
        do(fake, gitlab.redeliver(place, made.id, attempt.id))
    with pytest.raises(ApiLimited):
        do(fake, gitlab.redeliver(place, made.id, page.attempts[5].id))


def test_a_secret_in_the_wrong_field_is_found(fake: FakeGitLab, receiver: Receiver) -> None:
    """A secret that begins with whsec_ does not sign in the field of plain ones, where others belong."""
    place = Place(f"{fake.url}/{PROJECT}")
    plain = receiver.secret = "canary-9e77-plain-secret"
    made = do(fake, gitlab.create(place, webhook(receiver, plain)))
    assert do(fake, gitlab.test(place, made.id))
    assert compare([made], webhook(receiver, plain)).differences == ()
    assert compare([made], webhook(receiver)).differences == ("wrong secret",)
    fake.hooks[PROJECT][0]["token"] = ""
    assert compare(do(fake, gitlab.webhooks(place)), webhook(receiver)).differences == ("no secret",)


def test_an_old_server_gets_no_signing_token(fake: FakeGitLab) -> None:
    """It would ignore the token, and send deliveries that are all refused."""
    place, plain = Place(f"{fake.url}/{PROJECT}"), webhook(secret="canary-9e77-plain-secret")
    fake.version = (16, 10)
    with pytest.raises(ApiRefused, match=r"came with 19\.0: connect with --secret") as refused:
        do(fake, gitlab.create(place, webhook()))
    assert SIGNING not in str(refused.value)
    assert fake.hooks[PROJECT] == []
    made = do(fake, gitlab.create(place, plain))
    assert (made.has_secret, compare([made], webhook()).differences) == (None, ())
    with pytest.raises(ApiRefused, match=r"came with 19\.0"):
        do(fake, gitlab.change(place, made.id, webhook()))
    assert not do(fake, gitlab.test(place, made.id))


def test_webhooks_are_read_to_the_last_page(fake: FakeGitLab) -> None:
    """A page has at most 100."""
    fake.hooks[PROJECT] = [{"id": number, "url": f"https://a.example/{number}"} for number in range(250)]
    found = do(fake, gitlab.webhooks(Place(f"{fake.url}/{PROJECT}")))
    assert [hook.id for hook in found] == [str(number) for number in range(250)]
    assert len(fake.requests) == 3


@pytest.mark.parametrize(
    ("token", "project", "reason"),
    [
        (
            "wrong",
            PROJECT,
            "refuses the credential of identity bot: it is wrong, expired or revoked (Token was",
        ),
        (
            "developer",
            PROJECT,
            "identity bot needs the right “scope api with the role Maintainer” at 127.0.0.1",
        ),
        ("reader", PROJECT, "(The request requires higher privileges than provided by the access token.)"),
        (
            GOOD,
            "acme/other",
            "127.0.0.1 has no such repository, or identity bot may not see it; check the URL",
        ),
    ],
)
def test_a_refusal_names_what_is_missing(fake: FakeGitLab, token: str, project: str, reason: str) -> None:
    """In one sentence, without the credential."""
    with pytest.raises(ApiRefused) as refused:
        do(fake, gitlab.create(Place(f"{fake.url}/{project}"), webhook()), token)
    assert reason in str(refused.value)
    assert GOOD not in str(refused.value)


def test_the_reason_of_an_invalid_webhook_is_gitlabs_own(fake: FakeGitLab) -> None:
    """It is a text or a list, under another name for each kind of error."""
    place = Place(f"{fake.url}/{PROJECT}")
    with pytest.raises(ApiRefused, match=r"422 \(Invalid url given\)"):
        do(fake, gitlab.create(place, replace(webhook(), url="gate")))
    fake.hooks[PROJECT] = [{"id": number, "url": "https://a.example"} for number in range(MAX_HOOKS)]
    with pytest.raises(ApiRefused, match=r"422 \(Maximum number of project hooks \(100\) exceeded\)"):
        do(fake, gitlab.create(place, webhook()))


@pytest.mark.parametrize(
    ("clone_url", "base_url"),
    [
        ("https://gitlab.com/acme/ml/digits.git", "https://gitlab.com/api/v4"),
        ("git@gitlab.com:acme/ml/digits.git", "https://gitlab.com/api/v4"),
        ("ssh://git@altssh.gitlab.com:443/acme/ml/digits.git", "https://gitlab.com/api/v4"),
        ("https://git.acme.example:8443/acme/digits", "https://git.acme.example:8443/api/v4"),
        ("ssh://git@git.acme.example:2222/acme/digits", "https://git.acme.example/api/v4"),
    ],
)
def test_the_api_is_found_by_the_clone_url(clone_url: str, base_url: str) -> None:
    """On gitlab.com and on a self-managed server."""
    assert gitlab.base_url(Place(clone_url)) == base_url
