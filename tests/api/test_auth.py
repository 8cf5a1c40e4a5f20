"""Access to the API: the admin token, wrong tokens, and how many of those a client may try."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from starlette.requests import Request

from gateway.api.auth import AdminToken, TooManyTries, WrongToken
from testing.service import Service, run_pushgate

STRONG = "a token that is long enough for all"
WEAK = "short"


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def request(address: str = "192.0.2.1") -> Request:
    """Return a request of this client."""
    return Request({"type": "http", "method": "GET", "path": "/api", "headers": [], "client": (address, 1)})


def tried(token: AdminToken, given: str, address: str = "192.0.2.1") -> str:
    """Return the result for a token: right, wrong, or not checked."""
    try:
        token.check(request(address), given)
    except WrongToken:
        return "wrong"
    except TooManyTries:
        return "too many"
    return "right"


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


def test_a_client_may_try_ten_wrong_tokens_and_then_ten_a_minute(clock: Clock) -> None:
    """Other clients are not affected; one that goes on trying waits no longer than an idle one."""
    token = AdminToken(STRONG, clock=clock)
    assert [tried(token, "guess") for _ in range(12)] == ["wrong"] * 10 + ["too many"] * 2
    assert tried(token, "guess", "192.0.2.2") == "wrong"
    clock.now += 6.1
    assert [tried(token, "guess") for _ in range(2)] == ["wrong", "too many"]
    clock.now += 60
    assert [tried(token, "guess") for _ in range(11)] == ["wrong"] * 10 + ["too many"]


def test_the_answer_says_when_a_client_may_try_again(clock: Clock) -> None:
    """In whole seconds, after which one more try is allowed."""
    token = AdminToken(STRONG, clock=clock)
    for _ in range(10):
        tried(token, "guess")
    with pytest.raises(TooManyTries) as refused:
        token.check(request(), "guess")
    clock.now += refused.value.seconds
    assert tried(token, "guess") == "wrong"


def test_wrong_tokens_of_others_do_not_keep_the_operator_out(clock: Clock) -> None:
    """Behind a proxy all have one address. A guessable token has no such privilege."""
    strong, weak = AdminToken(STRONG, clock=clock), AdminToken(WEAK, clock=clock)
    for _ in range(20):
        tried(strong, "guess")
        tried(weak, "guess")
    assert tried(strong, STRONG) == "right"
    assert tried(weak, WEAK) == "too many"
    assert tried(weak, WEAK, "192.0.2.2") == "right"


def test_an_ipv6_client_is_its_network(clock: Clock) -> None:
    """A client has 18 quintillion addresses to try from."""
    token = AdminToken(STRONG, clock=clock)
    for number in range(10):
        assert tried(token, "guess", f"2001:db8::{number}") == "wrong"
    assert tried(token, "guess", "2001:db8::ffff") == "too many"
    assert tried(token, "guess", "2001:db8:0:1::1") == "wrong"


def test_what_is_kept_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """The client with the oldest try is forgotten."""
    monkeypatch.setattr("gateway.api.auth._MAX_CLIENTS", 3)
    token = AdminToken(STRONG, clock=clock)
    for _ in range(10):
        tried(token, "guess", "192.0.2.1")
    for number in range(2, 5):
        assert tried(token, "guess", f"192.0.2.{number}") == "wrong"
    assert len(token._forgotten_at) == 3  # noqa: SLF001 - the bound is what is tested
    assert tried(token, "guess", "192.0.2.1") == "wrong"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a gateway that distinguishes clients by X-Forwarded-For."""
    folder = tmp_path_factory.mktemp("auth") / "data"
    with Service(folder, TRUSTED_PROXIES="1", CONCURRENCY="1") as service:
        yield service


def asked(service: Service, token: str, address: str) -> tuple[int, str | None]:
    """Request something of the API; return the status, and when to retry."""
    headers = {"authorization": f"Bearer {token}", "x-forwarded-for": address}
    wanted = urllib.request.Request(f"{service.url}/api/v1/connections", headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(wanted) as answer:  # noqa: S310 - our own gateway
            return answer.status, None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["retry-after"]


def signed_in(service: Service, token: str, address: str) -> tuple[int, str | None]:
    """Sign in to the dashboard; return the status, and when to try again."""
    url = urlsplit(service.url)
    with closing(http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)) as client:
        client.request("POST", "/sign-in", urlencode({"token": token}), {"x-forwarded-for": address})
        answer = client.getresponse()
        return answer.status, answer.getheader("retry-after")


Ask = Callable[[Service, str, str], tuple[int, str | None]]


@pytest.mark.parametrize("ask", [asked, signed_in], ids=["API", "dashboard"])
def test_wrong_tokens_are_logged_and_limited(service: Service, ask: Ask) -> None:
    """Each with the client's address, never with the token; beyond ten they are 429 with Retry-After."""
    address = "198.51.100.1" if ask is asked else "198.51.100.2"
    statuses = [ask(service, "a wrong guess", address)[0] for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    status, seconds = ask(service, "a wrong guess", address)
    assert (status, 1 <= int(seconds or 0) <= 6) == (429, True)
    lines = [line for line in service.log() if line.get("client") == address]
    assert [line["event"] for line in lines] == ["wrong admin token refused"] * 10
    assert "a wrong guess" not in str(service.log())
    assert ask(service, service.admin_token, address)[0] in {200, 303}


def test_to_ask_without_a_token_is_no_try(service: Service) -> None:
    """It is 401, without a limit."""
    for _ in range(15):
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(f"{service.url}/api/v1/connections")  # noqa: S310 - our own gateway
        refused.value.close()
    assert asked(service, "a wrong guess", "")[0] == 401


def test_a_short_admin_token_is_refused_for_a_new_gateway(tmp_path: Path) -> None:
    """In one sentence that does not repeat it; with an existing store it is accepted, with a warning."""
    data = tmp_path / "data"
    variables = {"PUSHGATE_ADMIN_TOKEN": "hunter2"}
    done = run_pushgate("serve", "--port", "0", "--data", data, variables=variables)
    assert done.returncode == 1
    assert "fewer than 32 characters" in done.stderr
    assert "hunter2" not in done.stderr
    with Service(data):
        pass
    with Service(data, ADMIN_TOKEN="hunter2") as again:
        [line] = [line for line in again.log() if "admin token too short" in line["event"]]
        assert "hunter2" not in str(line)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/v1/connections", "GET, HEAD, OPTIONS, POST"),
        ("PUT", "/api/v1/connections/x", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("GET", "/api/v1/connections/x/fetch", "OPTIONS, POST"),
        ("DELETE", "/api/v1/executions/x", "GET, HEAD, OPTIONS"),
        ("PUT", "/sign-in", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/connections", "GET, HEAD, OPTIONS"),
        ("GET", "/sign-out", "OPTIONS, POST"),
        ("POST", "/static/pushgate.css", "GET, HEAD, OPTIONS"),
        ("DELETE", "/static/connections", "GET, HEAD, OPTIONS"),
        ("POST", "/livez", "GET, HEAD, OPTIONS"),
        ("POST", "/openapi.json", "GET, HEAD, OPTIONS"),
        ("PATCH", "/hooks/x", "OPTIONS, POST"),
    ],
)
def test_the_answer_to_a_wrong_method_names_the_right_ones(
    service: Service, method: str, path: str, allowed: str
) -> None:
    """Those of every route with this path, for programs and browsers."""
    url = urlsplit(service.url)
    for accepted in ("application/json", "text/html"):
        with closing(http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)) as client:
            client.request(method, path, headers={"accept": accepted})
            answer = client.getresponse()
            assert (answer.status, answer.getheader("allow")) == (405, allowed)
