"""What identities of each kind need."""

from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.api import identity_kinds
from gateway.api.identity_schemas import IdentityChange, NewIdentity
from gateway.errors import Invalid
from gateway.fetch.credentials import make_deploy_key
from gateway.store.identities import Identity
from testing.provider_apis.entra import make_client_certificate
from testing.provider_apis.github_app import make_key

_, PEM = make_key()
APP = {
    "name": "bot",
    "provider": "github",
    "kind": "github-app",
    "settings": {"app_id": "4711"},
    "private_key": PEM,
}


def checked(**changes: Any) -> tuple[str, datetime | None]:
    """Return the secret of a new identity, and when it ends. Raise `Invalid` if it cannot work."""
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
    secret = identity_kinds.read_secret(wanted.kind, identity.settings, wanted)
    if secret is None:
        secret = identity_kinds.without_secret(wanted.kind, identity.settings)
    return secret, identity_kinds.checked(identity, secret).expires_at


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
    assert checked() == (PEM, None)
    assert checked(private_key=PEM.replace("\n", "\\n"))[0] == PEM
    assert checked(private_key=PEM.replace("\n", " \r\n  "))[0] == PEM
    assert identity_kinds.read_secret("github-app", {}, IdentityChange()) is None


ENTRA = {"provider": "azure-devops", "kind": "entra", "private_key": None}
IDS = {"tenant": "acme.example", "client_id": "535fb089-9ff3-47b6-9bfb-4f1264799865"}


@pytest.mark.parametrize(
    ("settings", "change", "expected"),
    [
        ({}, {}, r"settings\.credential: it is required; choose client-secret, certificate, workload"),
        (IDS | {"credential": "client-secret"}, {}, "client_secret: it is required"),
        (
            IDS | {"credential": "client-secret"},
            {"certificate": "c4nary"},
            "kind entra with a client-secret has none; give its client_secret",
        ),
        ({"credential": "managed-identity"}, {"client_secret": "c4nary"}, "managed-identity has none$"),
        ({"credential": "client-secret"}, {"client_secret": "c4nary"}, r"tenant: .* with a client-secret"),
        (IDS | {"credential": "managed-identity"}, {}, "tenant: a managed identity has that of its machine"),
        ({"credential": "workload-identity"}, {"api_url": "https://a.example"}, r"is for dev\.azure\.com"),
        (
            {"credential": "workload-identity"},
            {"provider": "github"},
            r"entra; choose azure-devops",
        ),
        (IDS | {"credential": "certificate"}, {"certificate": "c4nary"}, "paste the PEM file"),
        ({"credential": "workload-identity"}, {"kind": "github-app"}, "kind github-app has none"),
    ],
)
def test_what_an_identity_in_entra_needs(
    settings: dict[str, str], change: dict[str, Any], expected: str
) -> None:
    """By how it signs in."""
    with pytest.raises(Invalid, match=expected) as refused:
        checked(**ENTRA | {"settings": settings} | change)
    assert "c4nary" not in str(refused.value)


def test_how_identities_in_entra_sign_in() -> None:
    """Those of the worker's pod or machine have no secret; a certificate says itself when it ends."""
    certificate, pem = make_client_certificate()
    wanted = ENTRA | {"settings": IDS | {"credential": "certificate"}, "certificate": f"\n{pem}\n"}
    assert checked(**wanted) == (pem, certificate.not_valid_after_utc)
    wanted = ENTRA | {"settings": IDS | {"credential": "client-secret"}, "client_secret": " a~b\n"}
    assert checked(**wanted) == ("a~b", None)
    for settings in ({"credential": "workload-identity"}, {"credential": "managed-identity"}):
        assert checked(**ENTRA | {"settings": settings}) == ("", None)
