"""Limits, renewed credentials, redirects, and addresses, for the APIs of all providers."""

from collections.abc import Iterator

import pytest
from starlette.responses import JSONResponse, Response

from gateway.errors import RemoteUnavailable
from gateway.metrics import REGISTRY
from gateway.provider_apis import github
from gateway.provider_apis.budget import Budget
from gateway.provider_apis.operation import ApiLimited, ApiRefused, ApiRequest, ApiUnavailable, Operation
from gateway.provider_apis.webhooks import Place
from testing.provider_apis.fake import refusal, serving
from testing.provider_apis.github import FakeGitHub
from tests.provider_apis.running import Token, run

GOOD = "github_pat_good"


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    """Serve an API with one repository."""
    fake = FakeGitHub(tokens={GOOD: {"acme/digits"}})
    with serving(fake):
        yield fake


def read(fake: FakeGitHub, **options: object) -> object:
    """Read the repository's webhooks."""
    place = Place(f"{fake.url}/acme/digits")
    identity = options.pop("identity", None) or Token(github, [GOOD])
    return run(github.webhooks(place), github.base_url(place), identity, **options)  # type: ignore[arg-type]


def test_a_refused_credential_is_renewed_once(fake: FakeGitHub) -> None:
    """A short-lived token may end at any moment."""
    assert read(fake, identity=Token(github, ["expired", GOOD])) == []
    with pytest.raises(ApiRefused):
        read(fake, identity=Token(github, ["expired", "expired", GOOD]))
    assert [one.status for one in fake.requests] == [401, 200, 401, 401]


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (refusal(429, "slow down", retry_after="7"), 7),
        (refusal(403, "You have exceeded a secondary rate limit", retry_after="30"), 30),
        (refusal(429, "slow down"), 60),
        (refusal(429, "slow down", retry_after="0"), 60),
        (refusal(403, "rate limited", x_ratelimit_remaining="0", x_ratelimit_reset="1"), 0),
        (refusal(503, "busy", retry_after="999999"), 3600),
    ],
)
def test_a_limit_of_the_provider_holds_for_all_requests(
    fake: FakeGitHub, answer: Response, seconds: int
) -> None:
    """The next request is not even sent before the time that the provider names, at most an hour later."""
    fake.instead.append(answer)
    now = 1000.0
    budget = Budget(100, clock=lambda: now)
    with pytest.raises(ApiLimited) as limited:
        read(fake, budget=budget)
    assert limited.value.seconds == seconds
    now += seconds - 1
    if seconds:
        with pytest.raises(ApiLimited, match="go on in 1 s"):
            read(fake, budget=budget)
    assert len(fake.requests) == 1
    now += 1
    assert read(fake, budget=budget) == []


def test_a_used_up_quota_is_not_exceeded(fake: FakeGitHub) -> None:
    """The last answer within a quota says that none is left."""
    fake.instead.append(JSONResponse([], headers={"RateLimit-Remaining": "0"}))
    budget = Budget(100)
    assert read(fake, budget=budget) == []
    with pytest.raises(ApiLimited):
        read(fake, budget=budget)
    assert len(fake.requests) == 1


def test_requests_and_what_is_left_of_a_quota_are_metrics(fake: FakeGitHub) -> None:
    """By the host of the API; a number of the provider that is none is left out."""
    counted = {"host": "127.0.0.1", "status": "2xx"}
    before = REGISTRY.get_sample_value("pushgate_provider_request_seconds_count", counted) or 0
    fake.instead.append(JSONResponse([], headers={"X-RateLimit-Remaining": "4711"}))
    fake.instead.append(JSONResponse([], headers={"X-RateLimit-Remaining": "²"}))
    assert read(fake) == read(fake) == []
    left = REGISTRY.get_sample_value("pushgate_provider_rate_limit_remaining", {"host": "127.0.0.1"})
    assert left == 4711
    count = REGISTRY.get_sample_value("pushgate_provider_request_seconds_count", counted)
    assert count == before + 2


def test_no_seconds_to_wait_are_no_limit(fake: FakeGitHub) -> None:
    """Atlassian's servers send them with every answer while requests are left."""
    fake.instead.append(refusal(403, "Forbidden", retry_after="0"))
    with pytest.raises(ApiRefused, match=r"needs the right .* \(Forbidden\)"):
        read(fake)


def test_a_path_may_lead_to_another_api_of_the_server(fake: FakeGitHub) -> None:
    """Bitbucket Data Center has several, beneath its context path; no path leads to another server."""

    def other(path: str) -> Operation[None]:
        yield ApiRequest(method="GET", path=path, right="any", may_be_missing=True)

    for path in ("../../statuses/1.0/x", "../../../../../x"):
        run(other(path), f"{fake.url}/context/rest/api/latest", Token(github, [GOOD]))
    assert [one.path for one in fake.requests] == ["/context/rest/statuses/1.0/x", "/x"]


def test_a_redirect_is_not_followed(fake: FakeGitHub) -> None:
    """It would carry the credential to another server."""
    fake.instead.append(Response(status_code=301, headers={"Location": "https://evil.example/x"}))
    with pytest.raises(ApiRefused, match=r"redirects to evil\.example: set the API URL"):
        read(fake)
    for new in ("/api/v3/repositories/7/hooks", f"{fake.url}/api/v3/repositories/7/hooks"):
        fake.instead.append(Response(status_code=301, headers={"Location": new}))
        with pytest.raises(ApiRefused, match="has the repository under another name; change the connection"):
            read(fake)
    fake.instead.append(JSONResponse([], headers={"Link": '<https://evil.example/2>; rel="next"'}))
    with pytest.raises(ApiRefused, match="next page at another address"):
        read(fake)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Response("<html>", 502), "127.0.0.1 answered 502; try again later"),
        (Response("<html>", 200), "the API's answer cannot be read"),
        (JSONResponse([{"id": "x"}]), r"the API's answer cannot be read: 0\.id: "),
        (Response(b" " * (8 * 1024 * 1024 + 1)), "larger than 8 MiB"),
    ],
)
def test_a_broken_answer_may_be_right_later(fake: FakeGitHub, answer: Response, reason: str) -> None:
    """A proxy may answer in the provider's place."""
    fake.instead.append(answer)
    with pytest.raises(ApiUnavailable, match=reason):
        read(fake)


PROTECTED = (
    "127.0.0.1 refuses identity bot: the organization or group requires single sign-on or two-factor"
    " authentication; authorize the token for it, or let its user set it up"
)
REFUSED = "127.0.0.1 refuses the credential of identity bot: it is wrong, expired or revoked"
UNSEEN = (
    "127.0.0.1 has no such repository, or identity bot may not see it; check the URL and the right"
    " “Webhooks: read and write”"
)


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (401, "Bad credentials", REFUSED),
        (403, "Forbidden", "identity bot needs the right “Webhooks: read and write” at 127.0.0.1"),
        (403, "Resource protected by organization SAML enforcement.", PROTECTED),
        (403, "The group requires 2FA", PROTECTED),
        (404, "Not Found", UNSEEN),
    ],
)
def test_a_refusal_says_what_to_do(fake: FakeGitHub, status: int, said: str, reason: str) -> None:
    """In one sentence that names the identity, the host and the missing right, and no credential."""
    # A refused credential is renewed once.
    fake.instead.extend(refusal(status, said) for _ in range(2))
    with pytest.raises(ApiRefused) as refused:
        read(fake)
    assert str(refused.value) == f"{reason} ({said})"


class Refusing:
    """Lets no host be connected to."""

    async def checked_address(self, _scheme: str, host: str, _port: int) -> str | None:
        """Refuse the host."""
        raise RemoteUnavailable(f"the host {host} has a forbidden address")


class Pinned:
    """Connects to one address, whatever the host."""

    async def checked_address(self, _scheme: str, _host: str, _port: int) -> str | None:
        """Return this machine's address."""
        return "127.0.0.1"


def test_the_address_that_was_checked_is_connected_to(fake: FakeGitHub) -> None:
    """A name that resolves differently a moment later has no effect."""
    with pytest.raises(ApiUnavailable, match="forbidden address"):
        read(fake, connector=Refusing())
    assert fake.requests == []
    base_url = f"http://git.acme.example:{fake.port}/api/v3"
    operation = github.webhooks(Place("https://git.acme.example/acme/digits"))
    assert run(operation, base_url, Token(github, [GOOD]), connector=Pinned()) == []
    assert fake.requests[0].headers["host"] == f"git.acme.example:{fake.port}"


def test_an_unreachable_server_is_named() -> None:
    """The error has no credential."""
    operation = github.webhooks(Place("https://127.0.0.1:1/acme/digits"))
    with pytest.raises(ApiUnavailable, match=r"cannot reach 127\.0\.0\.1 \(.*\); try again later") as error:
        run(operation, "http://127.0.0.1:1", Token(github, [GOOD]))
    assert GOOD not in str(error.value)
