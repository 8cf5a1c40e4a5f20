"""Deliveries of every provider reach the connection of their repository, through the webhook of its owner."""

import asyncio
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from gateway.store import connections, source_repositories
from gateway.store.database import Database
from gateway.store.source_repositories import Seen
from gateway.store.sources import Scope
from testing.corpus import NOW as SENT
from testing.corpus import Case, cases
from tests.intake.local import KEYRING, Answer, answered, opened, scope
from tests.worker.acme import Acme, add, delivered, found

CASES = {str(case): case for case in cases()}


class Place(NamedTuple):
    """Where the webhook of a source is, and a repository as a listing has it."""

    source: str
    id: str
    url: str
    scope: Scope = "owner"


HUB = Place("https://git.example.com/acme", "140", "https://git.example.com/acme/digits.git")
GROUP = Place("https://gitlab.example.com/acme", "15", "https://gitlab.example.com/acme/ml/digits.git")
SERVER = GROUP._replace(source="https://gitlab.example.com", scope="server")
AZURE = Place(
    "https://dev.azure.com/acme/Machine%20Learning",
    "d3d1760b-311c-4175-a726-20dfc6a7f885",
    "https://dev.azure.com/acme/Machine%20Learning/_git/digits%20v2",
)
BITBUCKET = Place(
    "https://bitbucket.org/acme",
    "{21fa9bf8-b5b2-4891-97ed-d590bad0f871}",
    "https://bitbucket.org/acme/digits.git",
)
DATA_CENTER = Place("https://git.example.com/projects/ML", "84", "https://git.example.com/scm/ml/digits.git")
GITHUB = Place("https://github.com/acme", "186853002", "https://github.com/acme/digits.git")
LISTED = {
    "azure-devops/push": AZURE,
    "azure-devops/details-minimal": AZURE,
    "bitbucket/push": BITBUCKET,
    "bitbucket-server/push": DATA_CENTER,
    "bitbucket-server/no-links": DATA_CENTER,
    "forgejo/push": HUB,
    "gitea/push": HUB,
    "github/push": GITHUB,
    "gitlab/push": GROUP,
    "gitlab/system-push": SERVER,
}
FOUND = {
    "azure-devops/pull-request-created": AZURE,
    "bitbucket/push": BITBUCKET,
    "bitbucket-server/pull-request-opened": DATA_CENTER,
    "gitea/new-branch-companion": HUB._replace(source="https://git.example.com", scope="server"),
    "gitlab/old-system-push-without-project-id": SERVER,
    "gitlab/system-merge-request": SERVER,
    "gitlab/system-repository-update-many-refs": SERVER,
}


def add_source(database: Database, case: Case, place: Place) -> None:
    """Store the source with the secrets of a case."""
    where: dict[str, Any] = {
        "provider": case.provider_name,
        "url": place.source,
        "scope": place.scope,
        "auth": case.auth,
    }
    add(database, "c2", rules=[{"project": "p"}], name="source", **where)
    with database.writing() as conn:
        for secret in case.secrets:
            connections.add_secret(conn, KEYRING, "c2", secret, now=SENT)


async def send(database: Database, case: Case) -> Answer:
    """Send a case to the source, and let the rules decide."""
    async with opened(database, clock=lambda: SENT) as endpoint:
        given = scope(case.body, path_params={"connection": "c2"})
        given["headers"] = [(name.encode(), value.encode()) for name, value in case.headers.items()]
        answer = await answered(endpoint, given, case.body)
        await Acme(database, endpoint).decide()
        return answer


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_repository_receives_its_deliveries(sourced: Database, name: str) -> None:
    """By the id that the provider's list has, before and after the rules have decided."""
    case, place = CASES[name], LISTED[name]
    add_source(sourced, case, place)
    listed = Seen(
        source="c2", repository=place.id, full_name="x", url=place.url, default_branch="main", is_listed=True
    )
    with sourced.writing() as conn:
        source_repositories.see_listed(conn, [listed], now=datetime.now(UTC))
    waited, later = asyncio.run(send(sourced, case)), asyncio.run(send(sourced, case))
    [made] = found(sourced).values()
    assert (made.url, made.repository_id) == (place.url, place.id)
    assert "waiting until the rules" in waited.body["reason"]
    assert (waited.status, later.status) == (202, 202)
    verdicts = sorted(one.verdict for one in delivered(sourced, made.id))
    assert verdicts == ["accepted", "duplicate"]


@pytest.mark.parametrize("name", FOUND)
def test_a_delivery_makes_its_repository_known(sourced: Database, name: str) -> None:
    """Without an identity there is no list; the delivery arrives at the new connection."""
    case, place = CASES[name], FOUND[name]
    add_source(sourced, case, place)
    asyncio.run(send(sourced, case))
    [made] = found(sourced).values()
    assert (made.url, made.repository_id) == (place.url, place.id)
    assert [one.verdict for one in delivered(sourced, made.id)] == ["accepted"]
