"""What the providers show of a token, on fakes that behave as they do."""

from datetime import UTC, datetime, timedelta

import pytest

from gateway.provider_apis import github, gitlab
from gateway.provider_apis.operation import ApiRefused
from gateway.provider_apis.token_states import TOKEN_STATES, TokenState
from testing.provider_apis.fake import serving
from testing.provider_apis.github import FakeGitHub
from testing.provider_apis.gitlab_tokens import AccessToken, FakeGitLabTokens
from tests.provider_apis.running import Token, run


def test_github_shows_rights_and_end_in_headers() -> None:
    """Of a classic token; a fine-grained token shows its end only, in either form, and an app's nothing."""
    fake = FakeGitHub(
        tokens={token: set() for token in ("classic", "bare", "fine", "app")},
        scopes={"classic": "repo, read:org", "bare": ""},
        ends={"classic": "2026-12-30 10:00:00 UTC", "fine": "2026-12-30 12:00:00 +0200"},
    )
    end = datetime(2026, 12, 30, 10, tzinfo=UTC)
    expected = {
        "classic": TokenState(rights=["repo", "read:org"], expires_at=end),
        "bare": TokenState(rights=[], expires_at=None),
        "fine": TokenState(rights=None, expires_at=end),
        "app": TokenState(rights=None, expires_at=None),
    }
    with serving(fake):
        for token, state in expected.items():
            found = run(TOKEN_STATES["github"](), f"{fake.url}/api/v3", Token(github, [token]))
            assert found == state
        with pytest.raises(ApiRefused, match="wrong, expired or revoked"):
            run(TOKEN_STATES["github"](), f"{fake.url}/api/v3", Token(github, ["revoked"]))


def test_gitlab_has_an_operation_for_it() -> None:
    """With the scopes, and the day on which the token ends."""
    today = datetime.now(UTC).date()
    ends = today + timedelta(days=10)
    fake = FakeGitLabTokens(tokens={"good": set()})
    fake.access_tokens["good"] = AccessToken(ends, today, scopes=("read_repository", "api"))
    with serving(fake):
        found = run(TOKEN_STATES["gitlab"](), f"{fake.url}/api/v4", Token(gitlab, ["good"]))
    assert found.rights == ["api", "read_repository"]
    assert found.expires_at == datetime(ends.year, ends.month, ends.day, tzinfo=UTC)
