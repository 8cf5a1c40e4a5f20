"""What is recorded of a request: which headers, and how its meaning is worded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, get_args

import pytest

from gateway.intake.connection_cache import CachedConnection
from gateway.intake.normalize import delivery_to, read_request
from gateway.store.accept import NewDelivery
from providers import PROVIDERS
from providers.clone_urls import repository_key
from providers.errors import Malformed, Undecodable
from providers.model import (
    Actor,
    Event,
    EventKind,
    PullRequest,
    PullRequestAction,
    RefPages,
    Repository,
    RepositoryChange,
    SetupGuide,
    VerifiedRequest,
)
from providers.signatures import hmac_hex
from testing.corpus import NOW, SECRET, Case, cases
from testing.records import A, B, move

CASES = {str(case): case for case in cases()}
SIGNED = "sha256=" + hmac_hex(b"{}", SECRET)
EVERYTHING = {header for provider in PROVIDERS.values() for header in provider.HEADERS}


def received(case: Case, url: str = "https://github.com/acme/digits.git", **headers: str) -> NewDelivery:
    """Return what is recorded of a case of the corpus, sent to a connection of its provider."""
    known = CachedConnection(
        id="cn_1",
        provider_name=case.provider_name,
        provider=case.provider,
        auth=case.auth,
        secrets=case.secrets,
        secret_ids=tuple(range(len(case.secrets))),
        repository_id=None,
        repository_key=repository_key(url),
        networks=(),
    )
    sent = {**headers, **case.headers}
    return delivery_to(known, read_request(known, sent, case.body, NOW))


@pytest.mark.parametrize("name", PROVIDERS)
def test_of_the_headers_only_those_on_the_providers_own_list_are_kept(name: str) -> None:
    """No signature, no cookie, and no header of another provider's list."""
    case = CASES[f"{name}/push"]
    others = dict.fromkeys(EVERYTHING - case.provider.HEADERS, "x")
    secret = {"authorization": "Basic c2VjcmV0", "cookie": "a=b", "x-github-encoded-secret": "s3cret"}
    own = {header: f"value of {header}" for header in case.provider.HEADERS - case.headers.keys()}
    own.pop("content-type", None)
    kept = received(case, **others, **secret, **own).headers
    expected = {**own, **{key: case.headers[key] for key in case.headers.keys() & case.provider.HEADERS}}
    assert kept == expected
    assert set(kept) <= case.provider.HEADERS


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("github/repository-renamed", "renamed"),
        ("github/repository-transferred", "transferred"),
        ("gitlab/system-project-rename", "renamed"),
        ("gitlab/system-project-transfer", "transferred"),
        ("bitbucket/repository-renamed", "renamed"),
        ("bitbucket/repository-transferred", "transferred"),
        ("bitbucket-server/repository-renamed", "renamed"),
        ("bitbucket-server/repository-moved", "transferred"),
        ("azure-devops/repository-renamed", "renamed"),
    ],
)
def test_a_repository_of_another_name_is_reported_with_what_to_do(name: str, action: str) -> None:
    """Fetches still use the connection's URL, which may no longer work."""
    case = CASES[name]
    event = case.parse()
    assert event.change is not None
    assert event.repository is not None
    own = next(iter(event.repository.urls), f"https://host.example/{event.repository.full_name}")
    arrival = received(case, own)
    assert (arrival.verdict, arrival.updates) == ("ignored", ())
    expected = f"the repository was {action} to {event.change.full_name}: check the connection's URL"
    assert arrival.reason == expected


def test_a_new_name_that_is_not_known_is_left_out() -> None:
    """The sentence is complete without it."""
    case = CASES["bitbucket/repository-transferred"]
    nameless = replace(case, body=b"{}", headers={**case.headers, "x-hub-signature": SIGNED})
    assert received(nameless).reason == "the repository was transferred: check the connection's URL"


@pytest.mark.parametrize(
    ("repository", "taught"),
    [
        ({"id": 17, "full_name": "acme/digits"}, "17"),
        ({"id": 17, "clone_url": "https://github.com/acme/digits.git"}, "17"),
        ({"id": 17}, None),
        ({"full_name": "acme/digits"}, None),
        (None, None),
    ],
)
def test_an_id_is_learned_only_beside_a_name_that_fits(repository: Any, taught: str | None) -> None:
    """A payload without a name is processed, but the next one may be about another repository."""
    case = CASES["github/push"]
    body = json.dumps({**json.loads(case.body), "repository": repository}).encode()
    headers = case.provider.sign(event="push", body=body, secret=SECRET, delivery="d1", now=NOW)
    arrival = received(replace(case, body=body, headers=headers))
    assert (arrival.verdict, arrival.teaches) == ("accepted", taught)
    assert [update.ref for update in arrival.updates] == ["refs/heads/main"]


class FakeProvider:
    """A provider whose deliveries all hold the same event."""

    COMMIT_PAGE: str | None = None
    REF_PAGES: RefPages | None = None
    AUTH_OPTIONS: frozenset[str] = frozenset()
    HAS_SIGNING_SECRETS = False
    TOKEN_USERS: Mapping[str, str] = MappingProxyType({"": "token"})
    PUBLIC_HOST: str | None = None
    RSA_KEYS_ONLY = False
    SETUP = SetupGuide(place="", credential="", events="", limitation="")
    HEADERS = frozenset({"x-kept"})
    SECRET_HEADERS: frozenset[str] = frozenset()
    ID_HEADERS: tuple[str, ...] = ()
    EVENT_HEADERS: tuple[str, ...] = ()
    PUSH_EVENT = "push"
    MEDIA_TYPES = frozenset({"application/json", "text/json"})
    BODY_IS_SIGNED = True

    def __init__(self, event: Event | Exception) -> None:
        """Let every delivery hold this event, or raise this error."""
        self._event = event

    def verify(
        self,
        *,
        headers: Mapping[str, str],  # noqa: ARG002
        body: bytes,
        secrets: Sequence[bytes],  # noqa: ARG002
        auth: Mapping[str, str],  # noqa: ARG002
        now: datetime,  # noqa: ARG002
    ) -> VerifiedRequest:
        """Accept every request, as verified by the second secret."""
        return VerifiedRequest(event="an event", id="d1", secret=1, content=body)

    def parse(self, delivery: VerifiedRequest) -> Event:  # noqa: ARG002
        """Return the event, or raise the error."""
        if isinstance(self._event, Exception):
            raise self._event
        return self._event

    def push(self, *, ref: str, before: str | None, after: str) -> dict[str, Any]:  # noqa: ARG002
        """Return an empty document."""
        return {}

    def sign(self, *, event: str, body: bytes, secret: bytes, delivery: str, now: datetime) -> dict[str, str]:  # noqa: ARG002
        """Return no headers."""
        return {}


OURS = Repository(id="17", full_name="acme/digits", web_url="https://h.example/", default_branch="main")
OTHER = Repository(id="18", full_name="evil/digits")
PUSH = Event(kind="push", updates=(move(A, B),))


def said(
    event: Event | Exception, *, repository_id: str | None = None, headers: Mapping[str, str] | None = None
) -> tuple[NewDelivery, int]:
    """Return what is recorded of an event, and the answer's status."""
    known = CachedConnection(
        id="cn_1",
        provider_name="github",
        provider=FakeProvider(event),
        auth={},
        secrets=(b"new", b"old"),
        secret_ids=(8, 7),
        repository_id=repository_id,
        repository_key="github.com/acme/digits",
        networks=(),
    )
    read = read_request(known, headers or {}, b"{}", NOW)
    return delivery_to(known, read), read.status


@pytest.mark.parametrize("kind", [kind for kind in get_args(EventKind) if kind != "ping"])
def test_only_a_ping_is_200(kind: EventKind) -> None:
    """All else is 202: accepted, even if it is ignored."""
    assert said(Event(kind="ping"))[1] == 200
    assert said(Event(kind=kind))[1] == 202
    arrival, status = said(Event(kind=kind, updates=(move(A, B),)))
    assert (arrival.verdict, status) == ("accepted", 202)
    assert said(Event(kind="ping", updates=(move(A, B),)))[0].verdict == "ignored"


def test_what_cannot_be_read_says_so_by_its_status() -> None:
    """Only a body that cannot be parsed is the sender's error; the reason is stored in each case."""
    for error, expected in ((Undecodable("no JSON"), 400), (Malformed("no ref"), 202)):
        arrival, status = said(error)
        assert (arrival.verdict, arrival.reason, status) == ("unreadable", str(error), expected)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"content-type": "application/json"}, 202),
        ({"content-type": "Text/JSON; charset=utf-8"}, 202),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": ""}, 415),
    ],
)
def test_the_content_type_is_one_that_the_provider_sends(headers: dict[str, str], status: int) -> None:
    """Without a content type, the body is read as JSON."""
    arrival, found = said(PUSH, headers=headers)
    assert found == status
    assert arrival.verdict == ("accepted" if status == 202 else "unreadable")


def test_a_long_content_type_is_cut() -> None:
    """The expected content types follow it."""
    reason = said(PUSH, headers={"content-type": "x" * 5000})[0].reason
    assert reason == f"content type {'x' * 100}, not application/json or text/json"


def test_the_event_takes_precedence_over_the_headers() -> None:
    """Name and id; without them, those of the headers. The recorded secret is the one that matched."""
    plain, _ = said(PUSH)
    named, _ = said(replace(PUSH, name="e" * 101, delivery_id="i" * 201, pusher=Actor(name="ada")))
    assert (plain.event, plain.provider_delivery_id, plain.pusher) == ("an event", "d1", None)
    assert (named.event, named.provider_delivery_id, named.pusher) == ("e" * 100, "i" * 200, "ada")
    assert (plain.secret, plain.repository, plain.detail) == (7, None, None)
    assert (plain.reason, plain.other_repository) == (None, None)


def test_reasons_and_headers_are_cut() -> None:
    """Signed senders choose their text, and they are shown in many places."""
    arrival, _ = said(Event(kind="other", note="n" * 1001), headers={"x-kept": "h" * 1001, "x-lost": "h"})
    assert (arrival.reason, arrival.headers) == ("n" * 1000, {"x-kept": "h" * 1000})


def test_the_repository_is_kept_as_the_payload_describes_it() -> None:
    """For display; no URL in it is ever fetched."""
    assert said(replace(PUSH, repository=OURS))[0].repository == {
        "id": "17",
        "full_name": "acme/digits",
        "web_url": "https://h.example/",
        "default_branch": "main",
    }


@pytest.mark.parametrize(
    ("event", "repository_id", "taught"),
    [
        (replace(PUSH, repository=OURS), None, "17"),
        (replace(PUSH, repository=OURS), "17", None),
        (replace(PUSH, repository=replace(OURS, full_name="acme/renamed")), "17", None),
        (replace(PUSH, repository=OTHER), None, None),
        (replace(PUSH, repository=OTHER), "17", None),
        (Event(kind="other", repository=OURS), None, None),
        (Event(kind="ping", repository=OURS), None, None),
    ],
)
def test_only_a_push_to_the_own_repository_teaches_its_id(
    event: Event, repository_id: str | None, taught: str | None
) -> None:
    """And only while no id is known."""
    assert said(event, repository_id=repository_id)[0].teaches == taught


@pytest.mark.parametrize("repository", [None, OURS, OTHER], ids=["none", "ours", "other"])
@pytest.mark.parametrize("all_refs", [False, True])
def test_a_push_without_refs_requests_a_reconciliation(
    repository: Repository | None, *, all_refs: bool
) -> None:
    """For the connection's repository; a push to another one requests nothing."""
    arrival, status = said(Event(kind="push", all_refs=all_refs, repository=repository, note="a note"))
    is_asking = all_refs and repository is not OTHER
    assert (arrival.asks_for_reconciliation, status) == (is_asking, 202)
    assert arrival.verdict == ("accepted" if is_asking else "ignored")
    if is_asking:
        assert arrival.reason == (
            "the payload does not list the refs that moved: all refs are being compared with the remote's"
        )
    elif repository is not OTHER:
        assert arrival.reason == "a note"


@pytest.mark.parametrize(
    ("repository", "repository_id", "shown", "ours"),
    [
        (OTHER, None, "evil/digits (id 18)", ""),
        (replace(OTHER, id=None), None, "evil/digits", ""),
        (OTHER, "17", "evil/digits (id 18)", " (id 17)"),
        (replace(OTHER, full_name=None), "17", "a repository without a name (id 18)", " (id 17)"),
        (
            Repository(urls=("https://github.com/evil/digits.git",)),
            None,
            "https://github.com/evil/digits.git",
            "",
        ),
        (
            Repository(full_name="evil/digits", urls=("https://github.com/evil/x.git",)),
            None,
            "evil/digits",
            "",
        ),
        (Repository(full_name="e" * 500), None, "e" * 200, ""),
    ],
)
def test_a_push_to_another_repository_names_both(
    repository: Repository, repository_id: str | None, shown: str, ours: str
) -> None:
    """With their ids, as far as they are known; nothing of it is processed."""
    arrival, status = said(replace(PUSH, repository=repository), repository_id=repository_id)
    assert (arrival.verdict, arrival.updates, status) == ("ignored", (), 202)
    assert arrival.reason == (
        f"other repository: the delivery is about {shown}, the connection is for github.com/acme/digits{ours}"
    )


@pytest.mark.parametrize(
    ("repository", "name"),
    [
        (replace(OURS, id="18"), "acme/digits"),
        (Repository(id="18", urls=("https://github.com/acme/digits",)), None),
    ],
)
def test_another_repository_at_the_same_address_may_replace_the_own(
    repository: Repository, name: str | None
) -> None:
    """With the reported refs, by which the remote can confirm it; twenty of them are enough."""
    moves = tuple(move(None, A, f"refs/tags/v{number}") for number in range(30))
    arrival, _ = said(Event(kind="push", updates=moves, repository=repository), repository_id="17")
    assert (arrival.verdict, arrival.updates) == ("ignored", ())
    assert arrival.other_repository is not None
    assert (arrival.other_repository.id, arrival.other_repository.name) == ("18", name)
    assert arrival.other_repository.delivery == arrival.id
    assert arrival.other_repository.refs == {f"refs/tags/v{number}": A for number in range(20)}


@pytest.mark.parametrize("repository", [OTHER, replace(OTHER, full_name=None), OURS])
def test_a_repository_elsewhere_replaces_none(repository: Repository) -> None:
    """Nor does a payload without a URL, or with the connection's own."""
    assert said(replace(PUSH, repository=repository), repository_id="17")[0].other_repository is None


def pull_request(action: PullRequestAction, head: str | None) -> Event:
    """Return an event of a pull request."""
    asked = PullRequest(action=action, number="5", source="topic", target="main", head=head)
    return Event(kind="pull_request", pull_request=asked)


@pytest.mark.parametrize("action", ["opened", "updated"])
def test_the_head_of_a_pull_request_moves_like_a_ref(action: PullRequestAction) -> None:
    """When it is opened or updated and the payload has the head."""
    arrival, status = said(pull_request(action, A))
    [head] = arrival.updates
    assert (arrival.verdict, arrival.reason, status) == ("accepted", None, 202)
    assert (head.ref, head.kind, head.name) == ("refs/pull/5/head", "pull_request", "5")
    assert (head.before, head.after, head.action) == (None, A, "create")
    assert arrival.detail is not None
    assert arrival.detail["pull_request"]["number"] == "5"


@pytest.mark.parametrize(
    ("action", "head", "reason"),
    [
        ("opened", None, "the payload has no head commit"),
        ("updated", None, "the payload has no head commit"),
        ("merged", A, "nothing runs"),
        ("closed", A, "nothing runs"),
        ("closed", None, "nothing runs"),
    ],
)
def test_a_pull_request_of_which_nothing_comes_says_why(
    action: PullRequestAction, head: str | None, reason: str
) -> None:
    """It is ignored, and stored."""
    arrival, _ = said(pull_request(action, head))
    assert (arrival.verdict, arrival.updates) == ("ignored", ())
    assert arrival.reason == f"pull request 5 was {action}: {reason}"


def test_a_change_of_the_repository_is_kept() -> None:
    """With its new name."""
    change = RepositoryChange(action="renamed", full_name="acme/letters")
    arrival, _ = said(Event(kind="repository", change=change))
    assert arrival.detail == {"change": {"action": "renamed", "full_name": "acme/letters"}}
