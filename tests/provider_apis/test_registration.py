"""A repository's webhook is brought in order, whatever has happened to it, and foreign ones survive."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from gateway.provider_apis import gitea, github, gitlab, registration
from gateway.provider_apis.operation import Operation, T
from gateway.provider_apis.webhooks import Place, ProviderApi, Webhook
from testing.provider_apis.fake import FakeApi, serving
from testing.provider_apis.gitea import FakeGitea
from testing.provider_apis.github import FakeGitHub
from testing.provider_apis.gitlab import MANY_FAILURES, FakeGitLab
from tests.provider_apis.running import Token, run

WANTED = Webhook(url="http://127.0.0.1:9/hooks/c1", secret="new-secret", events=github.EVENTS)
FOREIGN = {"id": 7, "active": False, "events": ["push"], "config": {"url": "https://other.example/hooks/c1"}}


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    """Serve a repository with a foreign webhook."""
    fake = FakeGitHub(tokens={"good": {"acme/digits"}}, hooks={"acme/digits": [{**FOREIGN}]})
    with serving(fake):
        yield fake


def do(fake: FakeGitHub, operation: Operation[T]) -> T:
    """Run an operation."""
    return run(operation, f"{fake.url}/api/v3", Token(github, ["good"]))


def hook(number: int, **changes: Any) -> dict[str, Any]:
    """Return a webhook of ours, as GitHub has it."""
    config = {"url": WANTED.url, "secret": "old-secret", **changes.pop("config", {})}
    present = {key: value for key, value in config.items() if value is not None}
    return {"id": number, "active": True, "events": sorted(WANTED.events), "config": present, **changes}


@pytest.mark.parametrize(
    ("present", "difference"),
    [
        ([], "missing"),
        ([hook(1, active=False)], "switched off"),
        ([hook(1, config={"url": "https://old.example/hooks/c1"})], "wrong URL"),
        ([hook(1, config={"secret": None})], "no secret"),
        ([hook(1, events=["push"])], "missing events"),
        ([hook(1, config={"url": "https://old.example/hooks/c1"}), hook(2)], "doubled"),
    ],
)
def test_one_repair_brings_it_in_order(
    fake: FakeGitHub, present: list[dict[str, Any]], difference: str
) -> None:
    """A check finds the difference; after the repair there is one webhook with all that is wanted."""
    hooks = fake.hooks["acme/digits"]
    hooks += present
    place, earlier = Place(f"{fake.url}/acme/digits.git"), ["https://old.example/hooks/c1"]
    found = do(fake, registration.inspect(github, place, WANTED, earlier_urls=earlier))
    assert found.repair.differences == (difference,)
    do(fake, registration.register(github, place, WANTED, earlier_urls=earlier))
    assert hooks[0] == FOREIGN
    [ours] = hooks[1:]
    assert (ours["active"], ours["config"]["url"], ours["config"]["secret"]) == (
        True,
        WANTED.url,
        WANTED.secret,
    )
    assert set(ours["events"]) == WANTED.events
    assert fake.pings[-1] == ours["id"]
    assert (
        do(fake, registration.inspect(github, place, WANTED, earlier_urls=earlier)).repair.differences == ()
    )


def test_no_push_falls_between_two_webhooks(fake: FakeGitHub) -> None:
    """What is wanted is there before a double is removed."""
    fake.hooks["acme/digits"] += [hook(1, active=False), hook(2)]
    do(fake, registration.register(github, Place(f"{fake.url}/acme/digits"), WANTED))
    methods = [one.method for one in fake.requests]
    assert methods == ["GET", "PATCH", "DELETE", "POST"]


def test_only_ours_are_unregistered(fake: FakeGitHub) -> None:
    """Also doubles; again there is nothing to do."""
    fake.hooks["acme/digits"] += [hook(1), hook(2)]
    place = Place(f"{fake.url}/acme/digits")
    assert do(fake, registration.unregister(github, place, WANTED)) == 2
    assert fake.hooks["acme/digits"] == [FOREIGN]
    assert do(fake, registration.unregister(github, place, WANTED)) == 0


class Receiver(FakeApi):
    """Receives deliveries."""

    async def handle(self, request: Request) -> Response:  # noqa: ARG002
        """Take everything."""
        return Response()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A provider, what it does to a webhook that it switches off, and secrets in its words."""

    api: ProviderApi
    fake: type[FakeGitLab | FakeGitea]
    switched_off: dict[str, Any]
    secret: str = "new-secret"


CASES = [
    Case(
        api=gitlab,
        fake=FakeGitLab,
        switched_off={"recent_failures": MANY_FAILURES},
        secret=f"whsec_{'c' * 43}=",
    ),
    Case(api=gitea, fake=FakeGitea, switched_off={"active": False}),
]
FAULTS = ("missing", "switched off", "wrong URL", "wrong secret", "missing events", "doubled")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fake.__name__)
@pytest.mark.parametrize("fault", FAULTS)
def test_other_providers_repair_as_well(case: Case, fault: str) -> None:
    """Whether the secret is the right one, Gitea does not show: a repair sets it in any case."""
    api, fake = case.api, case.fake(tokens={"good": {"acme/digits"}}, hooks={"acme/digits": []})
    hooks, receiver = fake.hooks["acme/digits"], Receiver()
    with serving(fake), serving(receiver):
        wanted = Webhook(url=f"{receiver.url}/hooks/c1", secret=case.secret, events=api.EVENTS)
        old = replace(wanted, url="http://old.example/hooks/c1")
        place = Place(f"{fake.url}/acme/digits.git")

        def do(operation: Operation[T]) -> T:
            return run(operation, api.base_url(place), Token(api, ["good"]))

        do(api.create(place, replace(wanted, url="https://other.example/hooks/c1")))
        foreign = copy.deepcopy(hooks[0])
        made = {
            "wrong URL": [old],
            "wrong secret": [replace(wanted, secret="an-old-secret")],
            "missing events": [replace(wanted, events=frozenset(sorted(api.EVENTS)[-1:]))],
            "switched off": [wanted],
            "doubled": [wanted, old],
        }
        for webhook in made.get(fault, []):
            do(api.create(place, webhook))
        if fault == "switched off":
            hooks[-1].update(case.switched_off)
        seen = do(registration.inspect(api, place, wanted, earlier_urls=[old.url])).repair.differences
        assert seen == (() if (fault, api) == ("wrong secret", gitea) else (fault,))
        do(registration.register(api, place, wanted, earlier_urls=[old.url]))
        assert hooks[0] == foreign
        [ours] = hooks[1:]
        assert case.secret in {ours.get("signing_token"), ours.get("config", {}).get("secret")}
        after = registration.inspect(api, place, wanted, earlier_urls=[old.url])
        assert do(after).repair.differences == ()
        assert do(registration.unregister(api, place, wanted)) == 1
    assert hooks == [foreign]
