"""The bodies of requests to the REST API about identities."""

from typing import Annotated

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints

from gateway.api.schemas import EntraId, Line, NameInPath, PrivateKey, Provider, RequestBody, Token, Url
from gateway.provider_apis import entra
from gateway.store import identities


class IdentitySettings(RequestBody):
    """What an identity needs beside its secret: which fields depends on its kind."""

    app_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.]{1,64}$")] | None = Field(
        default=None, description="of the kind `github-app`: the App ID, or the client ID, of the GitHub App"
    )
    credential: entra.Credential | None = Field(
        default=None,
        description="of the kind `entra`: how it signs in: with a `client-secret` or a `certificate` of its"
        " application, with the `workload-identity` of the worker's pod, or with the `managed-identity` of"
        " the worker's machine",
    )
    tenant: EntraId | None = Field(
        default=None, description="of the kind `entra`: the id of the tenant, or one of its domains"
    )
    client_id: EntraId | None = Field(
        default=None,
        description="of the kind `entra`: the client id of the application or managed identity; of the kind"
        " `github-app`, that of the App, which is only shown",
    )
    slug: EntraId | None = Field(
        default=None, description="of the kind `github-app`: the name of the App in its addresses"
    )


class NewIdentity(RequestBody):
    """A new identity."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "acme-bot", "provider": "github", "token": "github_pat_…"}],
        }
    )

    name: NameInPath = Field(description="a unique name, without a slash")
    provider: Provider
    kind: identities.Kind = Field(
        default="token",
        description="`token`, an access token of the provider; `github-app`, a GitHub App, which needs the"
        " setting `app_id` and a `private_key`; `entra`, an application or a managed identity in Microsoft"
        " Entra, for Azure DevOps Services, which needs the setting `credential`",
    )
    settings: IdentitySettings = Field(default=IdentitySettings(), description="the settings of its kind")
    token: Token | None = Field(
        default=None, description="of the kind `token`: the access token; no answer contains it"
    )
    private_key: PrivateKey | None = Field(
        default=None, description="of the kind `github-app`: a private key of the App; no answer contains it"
    )
    client_secret: Token | None = Field(
        default=None, description="of the kind `entra`: the client secret; no answer contains it"
    )
    certificate: PrivateKey | None = Field(
        default=None,
        description="of the kind `entra`: a PEM file that has the certificate and its private key; no answer"
        " contains it",
    )
    user: Line | None = Field(
        default=None,
        description="the user of the token, where the provider wants one: the mail address of the account for"
        " an API token of Bitbucket Cloud, which begins with ATATT",
    )
    api_url: Url | None = Field(
        default=None,
        description="the base URL of the API; the secret is used at no other server. Without it, the identity"
        " is for the provider's own service, such as github.com",
    )
    expires_at: AwareDatetime | None = Field(
        default=None, description="when the secret expires, as the provider shows it; null if it never does"
    )
    rotates: bool | None = Field(
        default=None,
        description="whether Pushgate replaces the token two weeks before it ends, which revokes the old"
        " one; by default, it does so with the access tokens of GitLab, and can with no others",
    )


class IdentityChange(RequestBody):
    """The changes of an identity: omitted fields stay as they are. Null removes an optional field."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"expires_at": "2027-11-30T00:00:00Z"}]})

    name: NameInPath | None = Field(default=None, description="a unique name, without a slash")
    settings: IdentitySettings | None = Field(
        default=None, description="the settings of its kind, all of them"
    )
    token: Token | None = Field(default=None, description="the new access token")
    private_key: PrivateKey | None = Field(default=None, description="the new private key")
    client_secret: Token | None = Field(default=None, description="the new client secret")
    certificate: PrivateKey | None = Field(default=None, description="the new certificate and its key")
    user: Line | None = Field(default=None, description="the user of the token")
    api_url: Url | None = Field(
        default=None, description="the base URL of the API; another server requires the secret again"
    )
    expires_at: AwareDatetime | None = Field(default=None, description="when the secret expires")
    rotates: bool | None = Field(
        default=None, description="whether Pushgate replaces the token before it ends"
    )
