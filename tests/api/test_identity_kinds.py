"""What identities of each kind need."""

from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.api.identity_kinds import check, read_secret
from gateway.api.schemas import IdentityChange, NewIdentity
from gateway.errors import Invalid
from gateway.fetch.credentials import make_deploy_key
from gateway.store.identities import Identity
from testing.provider_apis.github_app import make_key

_, PEM = make_key()
APP = {
    "name": "bot",
    "provider": "github",
    "kind": "github-app",
    "settings": {"app_id": "4711"},
    "private_key": PEM,
}


def checked(**changes: Any) -> str | None:
    """Return the secret of a new identity. Raise `Invalid` if it cannot work."""
    wanted = NewIdentity.model_validate({**APP, **changes})
    now = datetime.now(UTC)
    identity = Identity(
        id="i1",
        name=wanted.name,
        provider=wanted.provider,
        kind=wanted.kind,
        user=wanted.user,
        settings=wanted.settings.model_dump(exclude_none=True),
        api_url=wanted.api_url,
        expires_at=wanted.expires_at,
        created_at=now,
        updated_at=now,
    )
    secret = read_secret(wanted.kind, wanted)
    check(identity, secret or "")
    return secret


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"provider": "gitea"}, "it has no API for identities of the kind github-app; choose github$"),
        ({"settings": {}}, r"settings\.app_id: it is required"),
        ({"user": "ada"}, "user: an identity of the kind github-app has none"),
        ({"token": "c4nary"}, "token: an identity of the kind github-app has none; give its private_key"),
        ({"kind": "token"}, "private_key: an identity of the kind token has none; give its token"),
        (
            {"kind": "token", "private_key": None, "token": "t"},
            "settings: .* token has none",
        ),
        (
            {"private_key": make_deploy_key("github", comment="x").private},
            "must be the RSA key that GitHub",
        ),
        ({"private_key": PEM[: len(PEM) // 2]}, "a private key begins with"),
        ({"private_key": PEM.replace(PEM.splitlines()[4], "")}, "damaged or incomplete"),
    ],
)
def test_an_identity_that_cannot_work_is_refused(change: dict[str, Any], expected: str) -> None:
    """With one sentence, without the secret."""
    with pytest.raises(Invalid, match=expected) as refused:
        checked(**change)
    assert "c4nary" not in str(refused.value)


def test_the_key_of_an_app_is_mended() -> None:
    """As a form or a variable may have changed it."""
    assert checked() == PEM
    assert checked(private_key=PEM.replace("\n", "\\n")) == PEM
    assert checked(private_key=PEM.replace("\n", " \r\n  ")) == PEM
    assert read_secret("github-app", IdentityChange()) is None
