"""One webhook serves all repositories of an owner or a server, and these are listed."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.requests import Request
from starlette.responses import Response

import providers
from gateway.provider_apis import azure_devops, bitbucket, bitbucket_server, gitea, github, gitlab, gogs
from gateway.provider_apis.apis import APIS
from gateway.provider_apis.operation import ApiAnswer, ApiRefused, Operation, T
from gateway.provider_apis.webhooks import ListedRepository, Place, ProviderApi, Scope, Webhook, compare
from providers.model import VerifiedRequest
from testing.provider_apis.azure_devops import FakeAzureDevOps
from testing.provider_apis.bitbucket import FakeBitbucket
from testing.provider_apis.bitbucket_server import FakeBitbucketServer
from testing.provider_apis.fake import FakeApi, FakeRepository, serving
from testing.provider_apis.gitea import FakeGitea
from testing.provider_apis.github import FakeGitHub
from testing.provider_apis.gitlab import SYSTEM_SAMPLE, FakeGitLab
from testing.provider_apis.gogs import FakeGogs
from tests.provider_apis.running import Token, run

COUNT = 130
FILE = "ml/valohai.yaml"
GOOD = "good"


@dataclass(slots=True)
class Receiver(FakeApi):
    """Receives the deliveries of a webhook."""

    async def handle(self, request: Request) -> Response:  # noqa: ARG002 - as of others
        """Accept it."""
        return Response()


@dataclass(frozen=True, slots=True)
class Case:
    """A place at a fake. `page` is the path of its page, `owner` begins the names of its repositories."""

    api: ProviderApi
    fake: Callable[..., Any]
    page: str
    owner: str
    scope: Scope = "owner"
    has_tests: bool = True
    new_id: Callable[[int], str] = str
    clone: str = ""
    without_right: str = "readers"

    def place(self, fake: FakeApi) -> Place:
        """Return the place."""
        return Place(fake.url + self.page, self.scope)

    def tokens(self) -> dict[str, set[str]]:
        """Return the tokens of the fake, with what each sees."""
        names = {f"{self.owner}/r{number}".lower() for number in range(COUNT)}
        seen = {self.owner.lower() if self.scope == "owner" else "", *names}
        return {"good": seen, "reader": seen - {""}}


CASES = {
    "github": Case(github, FakeGitHub, "/orgs/Acme/repositories", "acme"),
    "gitlab": Case(gitlab, FakeGitLab, "/groups/acme/ml", "acme/ml", without_right="developers"),
    "gitlab server": Case(gitlab, FakeGitLab, "", "acme/ml", "server", without_right="developers"),
    "bitbucket": Case(
        bitbucket,
        FakeBitbucket,
        "/acme/workspace/repositories",
        "acme",
        has_tests=False,
        new_id=lambda number: f"{{{uuid.uuid5(uuid.NAMESPACE_URL, str(number))}}}",
    ),
    "bitbucket-server": Case(
        bitbucket_server, FakeBitbucketServer, "/projects/ML/repos/x", "ML", clone="/scm/ml"
    ),
    "azure-devops": Case(
        azure_devops,
        FakeAzureDevOps,
        "/tfs/Default/Machine%20Learning",
        "Machine Learning",
        new_id=lambda number: str(uuid.uuid5(uuid.NAMESPACE_URL, str(number))),
        clone="/tfs/Default/Machine%20Learning/_git",
    ),
    "gitea": Case(gitea, FakeGitea, "/org/acme/teams", "acme", has_tests=False),
    "gitea server": Case(gitea, FakeGitea, "/", "acme", "server", has_tests=False),
}


@dataclass
class Served:
    """A served fake, and what receives its deliveries: another, if a test shows how they ended."""

    case: Case
    fake: Any
    receiver: FakeApi

    def do(self, operation: Operation[T], token: str = GOOD) -> T:
        """Run an operation."""
        base_url = self.case.api.base_url(self.case.place(self.fake))
        return run(operation, base_url, Token(self.case.api, [token]))

    @property
    def place(self) -> Place:
        """Return the place."""
        return self.case.place(self.fake)

    @property
    def deliveries(self) -> int:
        """Return how many deliveries have been sent to the webhook."""
        return sum(request.path == "/hooks/s1" for request in self.receiver.requests)

    @property
    def webhook(self) -> Webhook:
        """Return the webhook as it should be; without another receiver, the fake refuses its deliveries."""
        url = f"{self.receiver.url}/hooks/s1"
        return Webhook(url=url, secret="canary-5f1d", events=self.case.api.EVENTS)


@pytest.fixture(scope="module", params=CASES)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Serve a provider with an owner of many repositories, and one of another owner."""
    case = CASES[request.param]
    fake = case.fake(tokens=case.tokens())
    getattr(fake, case.without_right).add("reader")
    fake.repositories = [
        FakeRepository(
            id=case.new_id(number + 1),
            full_name=f"{case.owner}/r{number}",
            default_branch="release/1" if number == 1 else "main",
            is_archived=number == 2,
            files=frozenset({FILE}) if number < 2 else frozenset(),
        )
        for number in range(COUNT)
    ]
    if case.scope == "owner":
        other = FakeRepository(id=case.new_id(COUNT), full_name=f"{case.owner}-labs/digits")
        fake.repositories.append(other)
    receiver = Receiver() if case.api is gitlab else None
    with serving(fake), serving(receiver) if receiver else nullcontext():
        yield Served(case, fake, receiver or fake)


def test_the_webhook_of_a_place_is_created_found_changed_tested_and_deleted(served: Served) -> None:
    """It is no webhook of a repository, and a token without the right may not see it."""
    api, place, wanted = served.case.api, served.place, served.webhook
    made = served.do(api.create(place, wanted))
    [found] = served.do(api.webhooks(place))
    assert (found, compare([found], wanted).differences) == (made, ())
    before = served.deliveries
    assert served.do(api.test(place, found.id)) == served.case.has_tests
    assert served.deliveries == before + served.case.has_tests
    changed = served.do(api.change(place, found.id, wanted))
    assert served.do(api.webhooks(place)) == [changed]
    repository = Place(f"{served.fake.url}{served.case.clone or f'/{served.case.owner}'}/r0")
    # Only at Azure DevOps, webhooks of the owner are webhooks of its repositories.
    inherited = [changed] if api is azure_devops else []
    assert run(api.webhooks(repository), api.base_url(repository), Token(api, [GOOD])) == inherited
    with pytest.raises(ApiRefused, match="right") as refused:
        served.do(api.webhooks(place), "reader")
    assert api.RIGHTS[place.scope] in str(refused.value)
    served.do(api.delete(place, changed.id))
    assert served.do(api.webhooks(place)) == []


def test_the_repositories_of_a_place_are_listed_to_the_last_page(served: Served) -> None:
    """With the ids that payloads have, and without the user that some clone URLs have."""
    listed = served.do(served.case.api.repositories(served.place))
    clone = served.fake.url + (served.case.clone or f"/{served.case.owner}")
    shows_branches = served.case.api is not bitbucket_server
    assert listed == [
        ListedRepository(
            id=one.id,
            full_name=one.full_name,
            url=f"{clone}/r{number}" + ("" if served.case.api is azure_devops else ".git"),
            default_branch=one.default_branch if shows_branches else None,
            is_archived=one.is_archived and served.case.api is not bitbucket,
        )
        for number, one in enumerate(served.fake.repositories[:COUNT])
    ]
    with_file, slashed, _, without = listed[:4]
    has_file = served.case.api.has_file
    assert served.do(has_file(with_file.url, FILE, None))
    assert served.do(has_file(with_file.url, FILE, "main"))
    assert served.do(has_file(slashed.url, FILE, "release/1"))
    assert not served.do(has_file(with_file.url, FILE, "other/branch"))
    assert not served.do(has_file(with_file.url, "other.yaml", None))
    assert not served.do(has_file(without.url, FILE, None))
    assert not served.do(has_file(f"{clone}/gone.git", FILE, None))


def test_a_place_that_does_not_exist_is_named(served: Served) -> None:
    """As an owner, and with the right that would show it; administrators see every server."""
    if served.case.scope == "owner":
        page = unquote(served.place.url).replace(served.case.owner, "other").replace("Acme", "other")
        operation = served.case.api.webhooks(Place(page, "owner"))
        with pytest.raises(ApiRefused, match=r"has no such organisation, group, workspace or project, or"):
            served.do(operation)


def test_a_system_hook_of_gitlab_reports_all_refs_of_a_push() -> None:
    """In one event, which the limit of three refs does not apply to. Its test is about a sample project."""
    place = Place("https://git.acme.example", "server")
    operation = gitlab.create(place, Webhook(url="https://g.example", secret="s", events=gitlab.EVENTS))
    body = next(operation).body or {}
    events = {name: value for name, value in body.items() if name.endswith("_events")}
    assert {name for name, value in events.items() if not value} == {"push_events", "tag_push_events"}
    content = json.dumps({"id": 1, "url": "https://g.example", **events}).encode()
    with pytest.raises(StopIteration) as made:
        operation.send(ApiAnswer(status=201, headers={}, content=content))
    assert made.value.value.events >= gitlab.EVENTS
    sample = json.dumps(SYSTEM_SAMPLE).encode()
    event = providers.gitlab.parse(VerifiedRequest(event="System Hook", id=None, secret=0, content=sample))
    assert (event.kind, event.updates) == ("other", ())


def test_a_system_webhook_of_gitea_is_no_template_for_new_repositories() -> None:
    """Without the flag, only repositories that are made later would inherit it."""
    place = Place("https://acme.example/git", "server")
    request = next(gitea.create(place, Webhook(url="https://g.example", secret="s", events=gitea.EVENTS)))
    assert request.path == "/admin/hooks"
    assert (request.body or {})["config"]["is_system_webhook"] == "true"
    assert gitea.base_url(place) == "https://acme.example/git/api/v1"


def test_gogs_has_only_webhooks_of_repositories() -> None:
    """In its API; those of an organisation are added by hand, and its repositories can be listed."""
    assert frozenset({"repository"}) == gogs.SCOPES
    fake = FakeGogs(tokens={"good": {"acme"}})
    fake.repositories.append(FakeRepository(id="7", full_name="acme/digits", files=frozenset({FILE})))
    with serving(fake):
        place = Place(f"{fake.url}/acme", "owner")
        base_url, token = gogs.base_url(place), Token(gogs, [GOOD])
        [found] = run(gogs.repositories(place), base_url, token)
        assert found.id == "7"
        assert run(gogs.has_file(found.url, FILE, None), base_url, token)


@pytest.mark.parametrize("name", APIS)
def test_an_error_about_a_file_names_the_right_of_the_provider(name: str) -> None:
    """Gogs, whose tokens have no scopes, in other words than Gitea."""
    url = (
        "https://dev.azure.com/acme/p/_git/digits"
        if name == "azure-devops"
        else "https://x.example/acme/digits"
    )
    reading = APIS[name].has_file(url, FILE, "main")
    assert next(reading).right == APIS[name].READ_RIGHT


def test_a_url_of_no_owner_is_refused() -> None:
    """The error says what the URL should look like."""
    with pytest.raises(
        ApiRefused, match=r"^the URL names no project: it has the form https://dev\.azure\.com"
    ):
        azure_devops.base_url(Place("https://dev.azure.com/acme", "owner"))


def test_a_project_without_repositories_has_no_webhook_yet() -> None:
    """Azure DevOps shows the project's id only with one."""
    operation = azure_devops.webhooks(Place("https://dev.azure.com/acme/ML", "owner"))
    assert next(operation).path == "/ML/_apis/git/repositories"
    with pytest.raises(ApiRefused, match="the project has no repository yet"):
        operation.send(ApiAnswer(status=200, headers={}, content=b'{"count": 0, "value": []}'))
