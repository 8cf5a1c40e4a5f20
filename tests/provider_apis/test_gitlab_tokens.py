"""GitLab's access tokens, on a fake that behaves as GitLab does."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from gateway.provider_apis import gitlab, gitlab_tokens
from gateway.provider_apis.operation import ApiRefused, Operation, T
from gateway.provider_apis.webhooks import Place
from testing.provider_apis.fake import refusal, serving
from testing.provider_apis.gitlab_tokens import AccessToken, FakeGitLabTokens
from tests.provider_apis.running import Token, run

GOOD = "glpat-good"
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.fixture
def fake() -> Iterator[FakeGitLabTokens]:
    """Serve GitLab with a token of 30 days, which has 10 left, and one that may only read."""
    fake = FakeGitLabTokens(tokens={token: {"acme/digits"} for token in (GOOD, "reader")})
    ends, made = TODAY + timedelta(days=10), TODAY - timedelta(days=20)
    fake.access_tokens[GOOD] = AccessToken(ends.date(), created_at=made.date())
    fake.access_tokens["reader"] = AccessToken(ends.date(), made.date(), scopes=("read_repository",))
    with serving(fake):
        yield fake


def do(fake: FakeGitLabTokens, operation: Operation[T], token: str = GOOD) -> T:
    """Run an operation with a token."""
    return run(operation, gitlab.base_url(Place(f"{fake.url}/acme/digits")), Token(gitlab, [token]))


def test_a_token_is_rotated_for_as_long_as_it_was_created(fake: FakeGitLabTokens) -> None:
    """The old one is refused; to rotate it again would cost the new one as well."""
    own = do(fake, gitlab_tokens.own_token())
    assert own.scopes == {"api"}
    assert own.expires_at == TODAY + timedelta(days=10)
    assert own.lifetime == timedelta(days=30)
    new = do(fake, gitlab_tokens.rotate(expires_on=(TODAY + own.lifetime).date()))
    assert new.expires_at == TODAY + timedelta(days=30)
    assert new.value not in repr(new)
    with pytest.raises(ApiRefused, match="wrong, expired or revoked"):
        do(fake, gitlab_tokens.own_token())
    assert do(fake, gitlab_tokens.own_token(), new.value).lifetime == timedelta(days=30)
    with pytest.raises(ApiRefused, match="wrong, expired or revoked"):
        do(fake, gitlab_tokens.rotate(expires_on=TODAY.date()))
    with pytest.raises(ApiRefused, match="wrong, expired or revoked"):
        do(fake, gitlab_tokens.own_token(), new.value)


def test_why_a_token_is_not_rotated(fake: FakeGitLabTokens) -> None:
    """A missing scope, a shorter limit of the server, or a server that cannot."""
    with pytest.raises(ApiRefused, match="needs the right “scope self_rotate or api”"):
        do(fake, gitlab_tokens.rotate(expires_on=TODAY.date()), "reader")
    with pytest.raises(ApiRefused, match=r"400 .*Expiration date must be before"):
        do(fake, gitlab_tokens.rotate(expires_on=(TODAY + timedelta(days=367)).date()))
    fake.instead.append(refusal(404, "404 Not Found"))
    with pytest.raises(ApiRefused, match=r"cannot rotate tokens, which came with 16\.10"):
        do(fake, gitlab_tokens.rotate(expires_on=TODAY.date()))
