"""Microsoft Entra's tokens, on a fake that verifies secrets and signatures as Entra does."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from gateway.errors import Invalid
from gateway.fetch.credentials import Bearer
from gateway.provider_apis import azure_devops
from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.provider_apis.client_certificate import read_certificate
from gateway.provider_apis.entra_sign_in import EntraIdentities
from gateway.provider_apis.operation import ApiError, ApiRefused, ApiUnavailable
from gateway.provider_apis.sign_in import SignedIn, SignIn, Use
from gateway.provider_apis.webhooks import Place
from gateway.store.identities import Identity, Unsealed
from testing.provider_apis.azure_devops import FakeAzureDevOps
from testing.provider_apis.entra import (
    Application,
    FakeEntra,
    federated_token,
    make_client_certificate,
)
from testing.provider_apis.fake import serving
from testing.records import NOW

TENANT, CLIENT = "9188040d-6c67-4c5b-b112-36a304b66dad", "535fb089-9ff3-47b6-9bfb-4f1264799865"
SECRET = "canary~8Q"
CERTIFICATE, PEM = make_client_certificate()
ISSUER, SUBJECT = "https://oidc.example/aks", "system:serviceaccount:pushgate:worker"
KEY = generate_private_key(65537, 2048)
DAY = timedelta(days=1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEntra]:
    """Serve Entra with one application, as the authority of this process."""
    application = Application(
        secrets={SECRET: datetime.now(UTC) + DAY, "old~8Q": datetime.now(UTC) - DAY},
        certificates=[CERTIFICATE],
        federated={(ISSUER, SUBJECT)},
    )
    fake = FakeEntra(applications={(TENANT, CLIENT): application}, issuers={ISSUER: KEY.public_key()})
    with serving(fake):
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", f"{fake.url}/")
        yield fake


def identity(credential: str, secret: str = "", **settings: str) -> Unsealed:
    """Return a stored identity."""
    found = Identity(
        id="i1",
        name="acme-entra",
        provider="azure-devops",
        kind="entra",
        user=None,
        settings={"credential": credential, **settings},
        api_url=None,
        expires_at=None,
        created_at=NOW,
        updated_at=NOW,
    )
    return Unsealed(identity=found, secret=secret)


def application(credential: str, secret: str = "", tenant: str = TENANT, client: str = CLIENT) -> Unsealed:
    """Return a stored identity of an application."""
    return identity(credential, secret, tenant=tenant, client_id=client)


class Gateway:
    """What a worker has to sign in."""

    def __init__(self, metadata_service: str = "http://127.0.0.1:1", late: timedelta | None = None) -> None:
        """Know no token yet."""
        self.apis = ProviderApis(connector=CheckedAddresses(allow_loopback=True))
        kind = EntraIdentities(apis=self.apis, allow_http=True, metadata_service=metadata_service)
        now = datetime.now(UTC) + (late or timedelta())
        self.sign_in = SignIn({"entra": kind}, clock=lambda: now)

    def signed_in(self, unsealed: Unsealed) -> SignedIn:
        """Return an identity in use."""
        place = Place("https://dev.azure.com/acme/digits/_git/digits")
        return self.sign_in.identity(unsealed, Use(place, "fetch"))

    async def bearer(self, unsealed: Unsealed) -> Bearer:
        """Return what git would send."""
        found = await self.signed_in(unsealed).git_credentials()
        assert isinstance(found, Bearer)
        return found


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a service account's token, in a pod with a workload identity."""
    file = tmp_path / "azure-identity-token"
    file.write_text(federated_token(KEY, issuer=ISSUER, subject=SUBJECT))
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(file))
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", CLIENT)
    return file


@pytest.mark.usefixtures("workload")
@pytest.mark.parametrize(
    "unsealed",
    [
        application("client-secret", SECRET),
        application("certificate", PEM),
        identity("workload-identity"),
        identity("managed-identity"),
        identity("managed-identity", client_id=CLIENT),
    ],
    ids=["secret", "certificate", "workload", "machine", "assigned"],
)
def test_a_token_is_obtained_and_kept(
    fake: FakeEntra, unsealed: Unsealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For git and for the REST API, by one request until five minutes before its end; no proxy is used."""
    fake.managed = {None, CLIENT}
    gateway = Gateway(fake.url)
    monkeypatch.setenv("NO_PROXY", "" if unsealed.identity.settings["credential"][0] == "m" else "*")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    async def use() -> None:
        signed_in = gateway.signed_in(unsealed)
        first, second = await asyncio.gather(gateway.bearer(unsealed), signed_in.git_credentials())
        assert first == second
        [token] = fake.issued
        assert first == Bearer(token=token)
        assert await signed_in.headers(renew=False) == {
            **azure_devops.HEADERS,
            "Authorization": f"Bearer {token}",
        }
        assert len(fake.requests) == 1
        renewed = await signed_in.headers(renew=True)
        assert token not in renewed["Authorization"]
        assert len(fake.issued) == 2

    asyncio.run(use())
    fake.lifetime = timedelta(minutes=4)
    late = Gateway(fake.url)
    for _ in range(2):
        asyncio.run(late.bearer(unsealed))
    assert len(fake.issued) == 4


@pytest.mark.parametrize(
    ("unsealed", "reason"),
    [
        (application("client-secret", "wrong"), "secret .* is wrong: enter its value, not its id"),
        (application("client-secret", "old~8Q"), "secret .* has expired: create another .AADSTS7000222"),
        (application("client-secret", SECRET, tenant="acme"), "has no tenant acme .AADSTS90002"),
        (application("client-secret", SECRET, client="7"), f"{TENANT} has no application .* id 7 "),
        (application("certificate", make_client_certificate()[1]), "does not have this certificate"),
    ],
)
def test_why_there_is_no_token(fake: FakeEntra, unsealed: Unsealed, reason: str) -> None:
    """One sentence, with what to do and Entra's code."""
    with pytest.raises(ApiRefused, match=reason) as refused:
        asyncio.run(Gateway().bearer(unsealed))
    assert "Trace ID" not in str(refused.value)
    assert fake.issued == {}


def test_a_federated_token_is_read_each_time(
    fake: FakeEntra, workload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong one names the issuer and the subject to set; without a file, there is no workload identity."""
    unsealed = identity("workload-identity")
    workload.write_text(federated_token(KEY, issuer=ISSUER, subject="other"), encoding="utf-8")
    with pytest.raises(ApiRefused, match=f"no federated .* issuer {ISSUER}, the subject other and .*700213"):
        asyncio.run(Gateway().bearer(unsealed))
    workload.write_text("no token", encoding="utf-8")
    with pytest.raises(ApiRefused, match="Entra issues no token: AADSTS50027: JWT token is invalid"):
        asyncio.run(Gateway().bearer(unsealed))
    workload.write_text(federated_token(KEY, issuer=ISSUER, subject=SUBJECT) + "\n", encoding="utf-8")
    assert asyncio.run(Gateway().bearer(unsealed)).token in fake.issued
    workload.unlink()
    with pytest.raises(ApiRefused, match=r"cannot read .*, which AZURE_FEDERATED_TOKEN_FILE names"):
        asyncio.run(Gateway().bearer(unsealed))
    monkeypatch.delenv("AZURE_CLIENT_ID")
    with pytest.raises(ApiRefused, match="has no variable AZURE_CLIENT_ID: give its pod the label"):
        asyncio.run(Gateway().bearer(unsealed))


def test_a_machine_without_identity(fake: FakeEntra) -> None:
    """Or one outside of Azure, where nothing answers."""
    cases: list[tuple[str, Unsealed, type[ApiError], str]] = [
        (fake.url, identity("managed-identity"), ApiRefused, "have exactly one managed identity: assign"),
        (fake.url, identity("managed-identity", client_id="7"), ApiRefused, "the managed identity 7: assign"),
        ("http://127.0.0.1:1", identity("managed-identity"), ApiUnavailable, "only machines in Azure have"),
        (f"{fake.url}/updating", identity("managed-identity"), ApiUnavailable, "is being updated"),
    ]
    for url, unsealed, kind, reason in cases:
        with pytest.raises(kind, match=reason):
            asyncio.run(Gateway(url).bearer(unsealed))


@pytest.mark.usefixtures("fake")
def test_the_authority_is_https(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client secret is sent there. Its name alone is enough, as Azure's own programs have it."""
    gateway = Gateway()
    kind = EntraIdentities(apis=gateway.apis, allow_http=False)
    use = Use(Place("https://dev.azure.com/acme/digits/_git/digits"), "fetch")
    with pytest.raises(ApiRefused, match="AZURE_AUTHORITY_HOST: http is not encrypted"):
        asyncio.run(kind.obtain(application("client-secret", SECRET), use))
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "login.invalid")
    with pytest.raises(ApiUnavailable, match=r"cannot be resolved: login\.invalid"):
        asyncio.run(kind.obtain(application("client-secret", SECRET), use))


def test_a_principal_must_be_in_the_organization(fake: FakeEntra) -> None:
    """Azure DevOps accepts its token, and then knows nobody of that name."""
    organization = FakeAzureDevOps()
    gateway = Gateway()
    signed_in = gateway.signed_in(application("client-secret", SECRET))
    with serving(organization):
        place = Place(f"{organization.url}/tfs/Default/digits/_git/digits")

        async def count() -> int:
            base_url = azure_devops.base_url(place)
            operation = azure_devops.webhooks(place)
            return len(await gateway.apis.run(operation, base_url=base_url, identity=signed_in))

        organization.strangers = fake.issued
        with pytest.raises(ApiRefused, match=r"acme-entra is not a user of the organization .* level Basic"):
            asyncio.run(count())
        organization.strangers = {}
        organization.tokens = {token: {"digits/digits"} for token in fake.issued}
        assert asyncio.run(count()) == 0


@pytest.mark.parametrize(
    ("pasted", "reason"),
    [
        (PEM.partition("-----BEGIN CERTIFICATE")[0], "paste the PEM file"),
        (PEM.replace("PRIVATE", "PUBLIC"), "paste the PEM file"),
        (
            PEM.partition("-----BEGIN CERTIFICATE")[0]
            + "-----BEGIN CERTIFICATE"
            + make_client_certificate()[1].partition("-----BEGIN CERTIFICATE")[2],
            "belongs to another certificate",
        ),
    ],
)
def test_a_certificate_comes_with_its_key(pasted: str, reason: str) -> None:
    """In one PEM file, as Azure's tools write it; a form may have changed its line breaks."""
    with pytest.raises(Invalid, match=reason):
        read_certificate(pasted)
    read = read_certificate(PEM.replace("\n", "\\n"))
    assert read.expires_at == CERTIFICATE.not_valid_after_utc
