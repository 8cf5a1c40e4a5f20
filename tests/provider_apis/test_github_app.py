"""GitHub Apps, on a fake that verifies their signatures and what their tokens may do."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.fetch.credentials import Login
from gateway.provider_apis import github, github_app, registration
from gateway.provider_apis.apis import CheckedAddresses, LimitedIdentity, ProviderApis
from gateway.provider_apis.app_webhook import PERMISSIONS, AppWebhook
from gateway.provider_apis.github_app_sign_in import AppIdentity, GitHubApps, NoIdentity
from gateway.provider_apis.operation import ApiRefused, Operation, T
from gateway.provider_apis.registration import Inspection
from gateway.provider_apis.sign_in import SignIn, Use, repositories_of
from gateway.provider_apis.webhooks import Place, Webhook
from gateway.store.identities import Identity, Unsealed
from testing.provider_apis.fake import FakeRepository, serving
from testing.provider_apis.github_app import FakeGitHubWithApp, Installation, make_key
from testing.records import NOW

KEY, PEM = make_key()
ALL = {"contents": "read", "metadata": "read", "repository_hooks": "write"}


@pytest.fixture
def fake() -> Iterator[FakeGitHubWithApp]:
    """Serve GitHub, where the App is installed for one of two repositories of an owner."""
    installation = Installation(7, "acme", ["acme/digits"], {**ALL})
    fake = FakeGitHubWithApp(key=KEY, installations=[installation])
    with serving(fake):
        yield fake


class Gateway:
    """What a worker has to sign in as the App. `late` is how far its clock is ahead."""

    def __init__(self, fake: FakeGitHubWithApp, **changes: Any) -> None:
        """Store the App's identity."""
        self.late = timedelta()
        self.apis = ProviderApis(connector=CheckedAddresses(allow_loopback=True))
        self.sign_in = SignIn({"github-app": GitHubApps(apis=self.apis, clock=self.clock)}, clock=self.clock)
        self.api_url = f"{fake.url}/api/v3"
        self.place = Place(f"{fake.url}/acme/digits.git")
        identity = Identity(
            id="i1",
            name="acme-app",
            provider="github",
            kind="github-app",
            user=None,
            settings={"app_id": str(fake.app_id)},
            api_url=self.api_url,
            expires_at=None,
            created_at=NOW,
            updated_at=NOW,
        )
        self.unsealed = Unsealed(identity=replace(identity, **changes), secret=PEM)

    def clock(self) -> datetime:
        """Return the time of this machine."""
        return datetime.now(UTC) + self.late

    def run(self, operation: Operation[T], identity: LimitedIdentity) -> T:
        """Run an operation."""
        return asyncio.run(self.apis.run(operation, base_url=self.api_url, identity=identity))

    def webhooks(self, place: Place | None = None) -> int:
        """Return the number of webhooks of a place, by default of the repository."""
        place = place or self.place
        return len(
            self.run(github.webhooks(place), self.sign_in.identity(self.unsealed, Use(place, "webhooks")))
        )

    def as_app(self, operation: Operation[T]) -> T:
        """Run an operation as the App itself."""
        return self.run(operation, AppIdentity(unsealed=self.unsealed))

    def login(self, place: Place | None = None) -> Login:
        """Return what git would send for a place, by default for the repository."""
        use = Use(place or self.place, "fetch")
        login = asyncio.run(self.sign_in.identity(self.unsealed, use).git_credentials())
        assert isinstance(login, Login)
        return login


def paths(fake: FakeGitHubWithApp) -> list[str]:
    """Return the requests so far without those of webhooks, and forget them."""
    found = [f"{one.method} {one.path.removeprefix('/api/v3')}" for one in fake.requests]
    fake.requests.clear()
    return [path for path in found if "/hooks" not in path]


def test_a_token_is_for_one_repository_and_one_use(fake: FakeGitHubWithApp) -> None:
    """It is kept for the next use; the installation is known to other uses."""
    gateway = Gateway(fake)
    assert gateway.webhooks() == 0
    assert paths(fake) == ["GET /repos/acme/digits/installation", "POST /app/installations/7/access_tokens"]
    assert gateway.webhooks() == 0
    assert paths(fake) == []
    login = gateway.login()
    assert gateway.login() == login == Login(user="x-access-token", password="ghs_token2")
    assert paths(fake) == ["POST /app/installations/7/access_tokens"]
    assert [(token.repositories, token.permissions) for token in fake.issued] == [
        (["acme/digits"], {"repository_hooks": "write", "metadata": "read"}),
        (["acme/digits"], {"contents": "read", "metadata": "read"}),
    ]
    assert all(secret not in repr(gateway.unsealed) for secret in (PEM, PEM.splitlines()[3]))


def test_a_token_is_obtained_again_before_its_end_and_when_it_is_refused(fake: FakeGitHubWithApp) -> None:
    """By one task at a time; a changed identity shares no token with what it was."""
    gateway = Gateway(fake)
    use = Use(Place(f"{fake.url}/acme/digits"), "fetch")

    async def logins() -> set[Any]:
        identities = [gateway.sign_in.identity(gateway.unsealed, use) for _ in range(5)]
        found = set(await asyncio.gather(*(each.git_credentials() for each in identities)))
        # The second to be refused finds the token that the first has obtained.
        for each in identities[:2]:
            each.forget_token()
            found.add(await each.git_credentials())
        return found

    assert {login.password for login in asyncio.run(logins())} == {"ghs_token1", "ghs_token2"}
    for minutes, tokens in ((54, 2), (56, 3)):
        gateway.late = fake.ahead = timedelta(minutes=minutes)
        gateway.login()
        assert len(fake.issued) == tokens
    gateway.webhooks()
    fake.issued.clear()
    assert gateway.webhooks() == 0
    assert len(fake.issued) == 1
    gateway.unsealed = replace(
        gateway.unsealed, identity=replace(gateway.unsealed.identity, updated_at=NOW + timedelta(1))
    )
    assert gateway.webhooks() == 0
    assert len(fake.issued) == 2


@pytest.mark.parametrize(
    ("fault", "reason", "where"),
    [
        (
            {"repositories": ["acme/letters"]},
            "is not installed on acme/digits: install it, or add the repository to the installation, at",
            "{url}/github-apps/octo-gate/installations/new",
        ),
        (
            {"is_suspended": True},
            "the installation of the GitHub App octo-gate on acme/digits is suspended: unsuspend it at",
            "{url}/organizations/acme/settings/installations/7",
        ),
        (
            {"permissions": {**ALL, "repository_hooks": "read"}},
            "lacks the permission “Webhooks: read and write” on acme/digits: add it in the settings of",
            "accept it at {url}/organizations/acme/settings/installations/7; or connect acme as a source,",
        ),
    ],
    ids=["not installed", "suspended", "a permission"],
)
@pytest.mark.parametrize("is_known", [False, True], ids=["new", "known"])
def test_why_there_is_no_token(
    fake: FakeGitHubWithApp, fault: dict[str, Any], reason: str, where: str, *, is_known: bool
) -> None:
    """Also if a token was obtained before."""
    gateway = Gateway(fake)
    if is_known:
        gateway.login()
    fake.installations[0] = replace(fake.installations[0], **fault)
    with pytest.raises(ApiRefused) as refused:
        gateway.webhooks()
    assert reason in str(refused.value)
    assert where.format(url=fake.url) in str(refused.value)


def test_an_app_that_was_installed_again_is_found(fake: FakeGitHubWithApp) -> None:
    """Its installation has another id."""
    gateway = Gateway(fake)
    gateway.login()
    fake.installations[0].id = 8
    assert gateway.webhooks() == 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            {"key": make_key()[0]},
            "GitHub refuses the private key of the GitHub App 4711 of the identity acme-app",
        ),
        ({"app_id": 5}, "GitHub knows no App with the ID of the GitHub App 4711 of the identity acme-app"),
        ({"ahead": timedelta(minutes=-2)}, "GitHub refuses the time in the sign-in of .*'Issued at' claim"),
        ({"ahead": timedelta(minutes=-1, seconds=5)}, None),
        ({"ahead": timedelta(minutes=8)}, None),
        ({"ahead": timedelta(minutes=10)}, "set this machine's clock, which shows .*'Expiration time' claim"),
    ],
    ids=["key", "App", "clock ahead", "clock a little ahead", "clock a little behind", "clock behind"],
)
def test_a_sign_in_that_is_refused_names_what_is_wrong(
    fake: FakeGitHubWithApp, fault: dict[str, Any], reason: str | None
) -> None:
    """The key, the App or the clock; a clock may be wrong by a minute."""
    gateway = Gateway(fake)
    for name, value in fault.items():
        setattr(fake, name, value)
    if reason is None:
        assert gateway.webhooks() == 0
        return
    with pytest.raises(ApiRefused, match=reason):
        gateway.webhooks()


def test_an_app_signs_in_by_its_client_id_as_well(fake: FakeGitHubWithApp) -> None:
    """GitHub recommends it."""
    assert Gateway(fake, settings={"app_id": fake.client_id}).as_app(github_app.app()).slug == "octo-gate"


def test_an_app_has_a_webhook_of_its_own(fake: FakeGitHubWithApp) -> None:
    """Its address is set, and its deliveries are requested again."""
    gateway = Gateway(fake)
    config = gateway.as_app(github_app.change_hook_config(url="http://127.0.0.1:9/hooks/s1", secret="s3cret"))
    assert config == gateway.as_app(github_app.hook_config())
    assert (config.url, config.secret) == ("http://127.0.0.1:9/hooks/s1", "********")
    assert fake.hook_config["secret"] == "s3cret"
    fake.log({"id": fake.app_id}, "push", b"{}", 503)
    [attempt] = gateway.as_app(github_app.delivery_log(None)).attempts
    assert (attempt.event, attempt.has_succeeded) == ("push", False)
    gateway.as_app(github_app.redeliver(attempt.id))
    again, first = gateway.as_app(github_app.delivery_log(None)).attempts
    assert (again.guid, first.id) == (attempt.guid, attempt.id)


HOOK = Webhook(url="http://127.0.0.1:9/hooks/s1", secret="s3cret", events=github.EVENTS)
EARLIER = "http://127.0.0.1:9/hooks/s0"


def brought_in_order(fake: FakeGitHubWithApp, work: Any) -> Inspection:
    """Inspect or register the webhook of the App for a source."""
    api, place = AppWebhook([HOOK.url, EARLIER]), Place(f"{fake.url}/acme", "owner")
    found: Inspection = Gateway(fake).as_app(work(api, place, HOOK, earlier_urls=[EARLIER]))
    return found


@pytest.mark.parametrize(
    ("config", "differences"),
    [
        ({}, ("missing",)),
        ({"url": EARLIER, "secret": "old"}, ("wrong URL",)),
        ({"url": HOOK.url}, ("no secret",)),
        ({"url": HOOK.url, "secret": "old"}, ()),
    ],
)
def test_the_own_webhook_of_an_app_is_brought_in_order(
    fake: FakeGitHubWithApp, config: dict[str, str], differences: tuple[str, ...]
) -> None:
    """Its URL and its secret; a repair that is complete leaves no difference."""
    fake.hook_config, fake.events = config, sorted(github.EVENTS)
    fake.permissions = {**PERMISSIONS, "statuses": "write"}
    assert brought_in_order(fake, registration.inspect).differences == differences
    assert fake.hook_config == config
    after = brought_in_order(fake, registration.register)
    assert (after.differences, after.is_tested) == ((), False)
    assert fake.hook_config == {
        "url": HOOK.url,
        "secret": "s3cret",
        "content_type": "json",
        "insecure_ssl": "0",
    }


@pytest.mark.parametrize(
    ("owner", "page"),
    [
        ({"login": "acme", "type": "Organization"}, "{url}/organizations/acme/settings/apps/octo-gate"),
        ({"login": "ada", "type": "User"}, "{url}/settings/apps/octo-gate"),
        ({"slug": "big"}, "{url}/github-apps/octo-gate"),
    ],
    ids=["organization", "user", "enterprise"],
)
def test_what_only_a_person_can_change_stays_a_difference(
    fake: FakeGitHubWithApp, owner: dict[str, str], page: str
) -> None:
    """With the page where to change it."""
    fake.owner, fake.permissions["contents"] = owner, "write"
    found = brought_in_order(fake, registration.register)
    assert found.differences == ("missing events", "missing permissions")
    assert found.webhook is not None
    assert found.webhook.advice == (
        "Add the permissions “Pull requests: read-only”, “Merge queues: read-only”, “Checks: read and write”"
        " and the events create, delete, merge_group, pull_request, repository to the GitHub App octo-gate at"
        f" {page.format(url=fake.url)}/permissions; then an owner of each organization where it is installed"
        " accepts that"
    )
    fake.permissions |= PERMISSIONS
    found = brought_in_order(fake, registration.inspect)
    assert found.differences == ("missing events",)
    assert found.webhook is not None
    assert "accepts" not in (found.webhook.advice or "accepts")


def test_the_webhook_of_another_system_is_left_alone(fake: FakeGitHubWithApp) -> None:
    """An App has only one: its deliveries would be lost there."""
    fake.hook_config = {"url": "https://other.example/hooks/s1", "secret": "theirs"}
    for work in (registration.inspect, registration.register):
        with pytest.raises(ApiRefused, match=r"sends its webhook to https://other\.example/hooks/s1, and an"):
            brought_in_order(fake, work)
    assert fake.hook_config["secret"] == "theirs"


def test_the_repositories_of_an_owner_are_listed(fake: FakeGitHubWithApp) -> None:
    """All pages, with a token for no more than that."""
    names = [f"acme/r{number:03}" for number in range(150)]
    fake.installations[0].repositories = names
    gateway = Gateway(fake)
    place = Place(f"{fake.url}/Acme", "owner")
    listing = repositories_of(gateway.unsealed.identity, place)
    found = gateway.run(listing, gateway.sign_in.identity(gateway.unsealed, Use(place, "fetch")))
    assert [each.full_name for each in found] == names
    assert (found[0].id, found[0].default_branch) == ("1", "main")
    assert fake.issued[0].permissions == {"metadata": "read"}
    assert paths(fake)[0] == "GET /orgs/Acme/installation"
    fake.installations[0].at = "users"
    assert Gateway(fake).login(place).password == "ghs_token2"
    assert paths(fake)[1] == "GET /users/Acme/installation"


def test_a_source_reads_files(fake: FakeGitHubWithApp) -> None:
    """With the token to fetch."""
    fake.repositories.append(
        FakeRepository(id="1", full_name="acme/digits", files=frozenset({"valohai.yaml"}))
    )
    gateway = Gateway(fake)
    place = Place(f"{fake.url}/acme/digits")
    reading = github.has_file(place.url, "valohai.yaml", "main")
    assert gateway.run(reading, gateway.sign_in.identity(gateway.unsealed, Use(place, "fetch")))


def test_an_app_is_made_of_a_manifest_once(fake: FakeGitHubWithApp) -> None:
    """Without signing in; its secrets are in no text about it."""
    fake.manifests["c0de"] = {
        "id": 5,
        "slug": "octo",
        "name": "Octo",
        "html_url": f"{fake.url}/github-apps/octo",
        "client_id": "Iv1",
        "client_secret": "canary-a",
        "webhook_secret": "canary-b",
        "pem": "canary-c",
    }
    gateway = Gateway(fake)
    made = gateway.run(github_app.convert_manifest("c0de"), NoIdentity())
    assert (made.id, made.pem, made.webhook_secret) == (5, "canary-c", "canary-b")
    assert "canary" not in repr(made)
    with pytest.raises(ApiRefused, match="a code that is not an hour old"):
        gateway.run(github_app.convert_manifest("c0de"), NoIdentity())
