"""Azure DevOps' service hooks, on a fake that behaves as Azure DevOps does."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from starlette.responses import Response

import providers
from gateway.provider_apis import azure_devops
from gateway.provider_apis.operation import ApiRefused, Operation, T
from gateway.provider_apis.webhooks import Place, Webhook, compare
from testing.provider_apis.azure_devops import FakeAzureDevOps, id_of
from testing.provider_apis.fake import serving
from tests.provider_apis.running import Token, run

GOOD = "canary-pat"
REPOSITORY = "machine learning/digits"


@pytest.fixture
def fake() -> Iterator[FakeAzureDevOps]:
    """Serve Azure DevOps with one repository."""
    fake = FakeAzureDevOps(tokens={GOOD: {REPOSITORY}, "reader": {REPOSITORY}}, readers={"reader"})
    with serving(fake):
        yield fake


def clone_url(fake: FakeAzureDevOps, name: str = "digits") -> str:
    """Return the clone URL of a repository."""
    return f"{fake.url}/tfs/Default/Machine%20Learning/_git/{name}"


def wanted(fake: FakeAzureDevOps, **auth: str) -> Webhook:
    """Return the webhook as it should be; the fake itself receives its deliveries, and answers 401."""
    url = f"{fake.url}/hooks/c1"
    return Webhook(url=url, secret="canary-5f1d", events=azure_devops.EVENTS, auth=auth)


def do(fake: FakeAzureDevOps, operation: Operation[T], token: str = GOOD) -> T:
    """Run an operation with a token."""
    return run(operation, azure_devops.base_url(Place(clone_url(fake))), Token(azure_devops, [token]))


def test_subscriptions_of_one_url_are_one_webhook(fake: FakeAzureDevOps) -> None:
    """It is created, found, repaired and deleted as a whole; subscriptions of others are left alone."""
    place, hook = Place(clone_url(fake)), wanted(fake)
    assert do(fake, azure_devops.webhooks(place)) == []
    made = do(fake, azure_devops.create(place, hook))
    assert (made.url, made.events, made.is_active, made.has_secret) == (hook.url, hook.events, True, True)
    first, second, *_ = fake.subscriptions
    assert [len(fake.subscriptions), first["eventType"]] == [5, "git.push"]
    assert first["consumerInputs"]["basicAuthPassword"] == hook.secret
    assert first["publisherInputs"] == {
        "projectId": id_of("machine learning"),
        "repository": id_of(REPOSITORY),
    }
    [found] = do(fake, azure_devops.webhooks(place))
    assert found == made
    assert compare([found], hook).differences == ()

    fake.subscriptions.append({**first, "id": "foreign", "publisherInputs": {"projectId": id_of("other")}})
    first["publisherInputs"]["branch"] = "main"
    first["consumerInputs"].pop("basicAuthPassword")
    asyncio.run(fake.deliver(second, {}))
    fake.subscriptions.remove(fake.subscriptions[2])
    [found] = do(fake, azure_devops.webhooks(place))
    assert found.problem == "git.pullrequest.created: onProbation"
    differences = ("switched off", "no secret", "missing events", "branch filter")
    assert compare([found], hook).differences == differences
    changed = do(fake, azure_devops.change(place, found.id, hook))
    assert [changed] == do(fake, azure_devops.webhooks(place))
    assert compare([changed], hook).differences == ()
    assert first["id"] in changed.id

    fewer = do(fake, azure_devops.change(place, changed.id, replace(hook, events=frozenset({"git.push"}))))
    assert fewer.id == first["id"]
    do(fake, azure_devops.delete(place, changed.id))
    assert [one["id"] for one in fake.subscriptions] == ["foreign"]


def test_a_doubled_subscription_is_another_webhook(fake: FakeAzureDevOps) -> None:
    """Otherwise each push would be delivered twice for ever; the better one is kept."""
    place, hook = Place(clone_url(fake)), wanted(fake)
    do(fake, azure_devops.create(place, hook))
    # By hand, for the whole project.
    by_hand = {"publisherInputs": {"projectId": id_of("machine learning"), "repository": ""}}
    fake.subscriptions.insert(0, {**fake.subscriptions[0], **by_hand, "id": "x", "status": "disabledByUser"})
    repair = compare(do(fake, azure_devops.webhooks(place)), hook)
    assert repair.differences == ("doubled",)
    assert [other.id for other in repair.remove] == ["x"]


@pytest.mark.parametrize("auth", [{}, {"user": "ada"}, {"header": "X-Pushgate-Secret"}])
def test_a_test_delivery_has_the_secret_and_no_push(fake: FakeAzureDevOps, auth: dict[str, str]) -> None:
    """The secret is where the connection expects it; the event is about a sample project."""
    place, hook = Place(clone_url(fake)), wanted(fake, **auth)
    made = do(fake, azure_devops.create(place, hook))
    if "user" in auth:
        assert fake.subscriptions[0]["consumerInputs"]["basicAuthUsername"] == auth["user"]
        auth = {}  # The fake sends another user.
    assert do(fake, azure_devops.test(place, made.id))
    [delivery] = [answered for answered in fake.requests if answered.path == "/hooks/c1"]
    verified = providers.azure_devops.verify(
        headers=delivery.headers,
        body=delivery.body,
        secrets=[hook.secret.encode()],
        auth=auth,
        now=datetime.now(UTC),
    )
    event = providers.azure_devops.parse(verified)
    assert (event.kind, event.name, event.note) == (
        "other",
        "git.repo.renamed",
        "a test about the sample project Fabrikam",
    )


def test_a_sample_push_is_never_requested(fake: FakeAzureDevOps) -> None:
    """Neither for a webhook with only pushes, nor for one that is gone."""
    place = Place(clone_url(fake))
    made = do(fake, azure_devops.create(place, replace(wanted(fake), events=frozenset({"git.push"}))))
    assert not do(fake, azure_devops.test(place, made.id))
    do(fake, azure_devops.delete(place, made.id))
    assert not do(fake, azure_devops.test(place, made.id))


@pytest.mark.parametrize(
    ("token", "name", "reason"),
    [
        ("wrong", "digits", "refuses the credential of identity bot: it is wrong, expired or revoked$"),
        ("reader", "digits", r"needs the right “scope Code .* Edit and Delete .* \(TF50309: .*: Edit"),
        (GOOD, "other", r"no such repository, or identity bot may not see it; .* \(TF401019: The Git"),
    ],
)
def test_a_refusal_names_what_is_missing(fake: FakeAzureDevOps, token: str, name: str, reason: str) -> None:
    """In one sentence, without the credential."""
    with pytest.raises(ApiRefused, match=reason) as refused:
        do(fake, azure_devops.create(Place(clone_url(fake, name)), wanted(fake)), token)
    assert GOOD not in str(refused.value)


def test_hidden_subscriptions_are_not_missing_ones(fake: FakeAzureDevOps) -> None:
    """Azure DevOps shows an empty list to an identity that may not view them."""
    with pytest.raises(ApiRefused, match="does not show the project's service hooks; the right “scope Code"):
        do(fake, azure_devops.webhooks(Place(clone_url(fake))), "reader")


@pytest.mark.parametrize(
    "answer",
    [
        Response("<html>Sign In</html>", 203, media_type="text/html; charset=utf-8"),
        Response(
            status_code=302, headers={"Location": "https://spsprodweu1.vssps.visualstudio.com/_signin?r"}
        ),
    ],
)
def test_a_page_to_sign_in_at_means_a_wrong_credential(fake: FakeAzureDevOps, answer: Response) -> None:
    """It is not an answer that cannot be read, and not another address of the server."""
    fake.instead.extend([answer, answer])
    with pytest.raises(ApiRefused, match=r"it is wrong, expired or revoked$") as refused:
        do(fake, azure_devops.webhooks(Place(clone_url(fake))))
    assert refused.value.status == 401


def test_the_reason_of_an_invalid_webhook_is_azures_own(fake: FakeAzureDevOps) -> None:
    """An old server may lack an event."""
    invalid = replace(wanted(fake), events=frozenset({"git.unknown"}))
    with pytest.raises(ApiRefused, match=r"answered 400 \(The event type git\.unknown is not supported"):
        do(fake, azure_devops.create(Place(clone_url(fake)), invalid))


@pytest.mark.parametrize(
    ("clone_url", "base_url", "repository"),
    [
        ("https://acme@dev.azure.com/acme/ML/_git/digits", "https://dev.azure.com/acme", "ML/digits"),
        ("https://acme.visualstudio.com/DefaultCollection/ML/_git/digits", "", "ML/digits"),
        ("https://acme.visualstudio.com/_git/digits", "", "digits/digits"),
        ("git@ssh.dev.azure.com:v3/acme/My%20ML/digits", "", "My%20ML/digits"),
        ("acme@vs-ssh.visualstudio.com:v3/acme/ML/digits", "", "ML/digits"),
        (
            "https://git.acme.example/tfs/Main/ML/_git/digits",
            "https://git.acme.example/tfs/Main",
            "ML/digits",
        ),
        ("https://git.acme.example:8443/Main/ML/_git/_full/digits", "https://git.acme.example:8443/Main", ""),
        (
            "https://git.acme.example/TFS/Main/_git/digits",
            "https://git.acme.example/TFS/Main",
            "digits/digits",
        ),
        ("https://git.acme.example/Main/_git/digits", "https://git.acme.example/Main", "digits/digits"),
        (
            "https://git.acme.example/a/b/Main/ML/_git/digits",
            "https://git.acme.example/a/b/Main",
            "ML/digits",
        ),
        (
            "ssh://git.acme.example:22/tfs/Main/ML/_ssh/digits",
            "https://git.acme.example/tfs/Main",
            "ML/digits",
        ),
    ],
)
def test_the_api_is_found_by_the_clone_url(clone_url: str, base_url: str, repository: str) -> None:
    """Each organisation or collection has an API of its own."""
    project, _, name = (repository or "ML/digits").partition("/")
    assert azure_devops.base_url(Place(clone_url)) == (base_url or "https://dev.azure.com/acme")
    assert next(azure_devops.webhooks(Place(clone_url))).path == f"/{project}/_apis/git/repositories/{name}"


@pytest.mark.parametrize(
    "clone_url", ["https://dev.azure.com/acme", "https://git.acme.example/ML/digits", "x"]
)
def test_a_url_of_no_repository_is_refused(clone_url: str) -> None:
    """The error names the form of a clone URL."""
    with pytest.raises(ApiRefused, match=r"names no repository of Azure DevOps: it has the form"):
        azure_devops.base_url(Place(clone_url))
