"""What is recorded of a request: which of its headers, and in which words what it means."""

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.intake.arrival import receive_delivery
from gateway.intake.book import Known
from gateway.store.deliveries import Arrival
from providers import PROVIDERS
from providers.signatures import hmac_hex
from providers.urls import repository_key
from tests.providers.corpus import NOW, SECRET, Case, cases

CASES = {str(case): case for case in cases()}
SIGNED = "sha256=" + hmac_hex(b"{}", SECRET)
EVERYTHING = {header for provider in PROVIDERS.values() for header in provider.HEADERS}


def received(case: Case, url: str = "https://github.com/acme/digits.git", **headers: str) -> Arrival:
    """Return what is recorded of a case of the corpus, sent to a connection of its provider."""
    known = Known(
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
    return receive_delivery(known, sent, case.body, NOW)[0]


@pytest.mark.parametrize("name", PROVIDERS)
def test_of_the_headers_only_those_on_the_providers_own_list_are_kept(name: str) -> None:
    """Neither a proof, nor a cookie, nor a header that another provider's list has."""
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
def test_a_repository_of_another_name_is_told_with_what_to_do(name: str, action: str) -> None:
    """Fetches go on to the connection's URL, which may lead nowhere from now on."""
    case = CASES[name]
    event = case.parse()
    assert event.change is not None
    assert event.repository is not None
    own = next(iter(event.repository.urls), f"https://host.example/{event.repository.full_name}")
    arrival = received(case, own)
    assert (arrival.verdict, arrival.updates) == ("ignored", ())
    expected = (
        f"the repository was {action} to {event.change.full_name}: see that the connection's URL is right"
    )
    assert arrival.reason == expected


def test_a_new_name_that_is_not_told_is_left_out() -> None:
    """The sentence is whole without it."""
    case = CASES["bitbucket/repository-transferred"]
    nameless = replace(case, body=b"{}", headers={**case.headers, "x-hub-signature": SIGNED})
    assert (
        received(nameless).reason == "the repository was transferred: see that the connection's URL is right"
    )


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
    """A payload that names nothing is carried, but the next one may be about another repository."""
    case = CASES["github/push"]
    body = json.dumps({**json.loads(case.body), "repository": repository}).encode()
    headers = case.provider.sign(event="push", body=body, secret=SECRET, delivery="d1", now=NOW)
    arrival = received(replace(case, body=body, headers=headers))
    assert (arrival.verdict, arrival.teaches) == ("accepted", taught)
    assert [update.ref for update in arrival.updates] == ["refs/heads/main"]
