"""The bodies of requests to the REST API, and what they share with the answers: pages, errors, types."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    IPvAnyNetwork,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypeAliasType

from gateway.errors import Invalid
from gateway.plan.source_rules import Rule, YamlPath, read_rules
from gateway.plan.triggers import Glob, Trigger, read_triggers
from gateway.store import sources
from gateway.text.validation import carried
from providers import PROVIDERS
from providers import model as provider_model


@dataclass(frozen=True, slots=True)
class ShownAs:
    """Marks JSON that is passed on as it is, and that the OpenAPI document describes by a model."""

    model: type[BaseModel]

    def __get_pydantic_json_schema__(
        self, _core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return a reference to the model's schema: definitions are stored under their names."""
        return handler(core_schema.definitions_schema(self.model.__pydantic_core_schema__, []))


class NewTrigger(Trigger):
    """A trigger in a request: omitted fields have their defaults."""


class NewRule(Rule):
    """A rule in a request: omitted fields have their defaults."""

    triggers: tuple[NewTrigger, ...] = Field(
        default=(), description="the triggers of each connection: which ref updates run what"
    )


def one_of(values: tuple[str, ...], description: str) -> FieldInfo:
    """Return the description of a text with these values.

    The type is `str`, so that a record with a later version's value can still be shown.
    """
    described: FieldInfo = Field(description=description, json_schema_extra={"enum": list(values)})
    return described


def _accepted_by(read: Callable[[list[Any]], object]) -> Callable[[list[Any]], list[Any]]:
    """Return a validator that returns its input if `read` accepts it, so that all faults are reported."""

    def check(given: list[Any]) -> list[Any]:
        try:
            read(given)
        except Invalid as error:
            raise carried(error) from None
        return given

    return check


Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")
]
Url = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2048)]
WebhookSecret = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[\x20-\x7e]+$")]
NameInPath = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f/]*$")
]
Token = Annotated[SecretStr, Field(min_length=1, max_length=4096)]
EntraId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,253}$")]
PrivateKey = Annotated[SecretStr, Field(min_length=1, max_length=65536)]
Networks = Annotated[list[IPvAnyNetwork], Field(max_length=200)]
Follows = Annotated[list[Glob], Field(max_length=100)]
NewTriggers = Annotated[
    list[Annotated[dict[str, Any], ShownAs(NewTrigger)]], AfterValidator(_accepted_by(read_triggers))
]
NewRules = Annotated[
    list[Annotated[dict[str, Any], ShownAs(NewRule)]], AfterValidator(_accepted_by(read_rules))
]
Item = TypeVar("Item")

# Each of these has a schema of its own in the OpenAPI document.
PackageFormat = TypeAliasType(
    "PackageFormat",
    Annotated[Literal["tar.gz", "tar.zst"], Field(description="the format of package files")],
)
Provider = TypeAliasType("Provider", Annotated[str, one_of(tuple(PROVIDERS), "a kind of git server")])
UpdateKind = TypeAliasType(
    "UpdateKind",
    Annotated[
        str,
        one_of(
            get_args(provider_model.RefKind),
            "the kind of ref; heads of pull requests and merge groups count as refs",
        ),
    ],
)
UpdateAction = TypeAliasType(
    "UpdateAction", Annotated[str, one_of(get_args(provider_model.Action), "what can happen to a ref")]
)
DeliverySource = TypeAliasType(
    "DeliverySource",
    Annotated[
        str,
        one_of(
            ("webhook", "reconciliation"),
            "how the delivery came: from the provider, or from the comparison with the remote's refs",
        ),
    ],
)


class RequestBody(BaseModel):
    """The body of a request. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NoFields(RequestBody):
    """The body of a request that needs none: it may be empty, or an empty object."""


class NewCredentials(RequestBody):
    """The credentials of a private repository: a generated key, a pasted key, or a password or token."""

    deploy_key: bool = Field(
        default=False, description="whether to generate a key, whose public half the answer contains"
    )
    private_key: SecretStr | None = Field(
        default=None, description="an unencrypted private key, in the format of OpenSSH or in PEM"
    )
    user: Line | None = Field(
        default=None,
        description="the user of `password`; by default the one that the provider uses for tokens",
    )
    password: SecretStr | None = Field(default=None, description="a password or a token, for https")
    host_keys: Annotated[str, StringConstraints(max_length=16_384)] | None = Field(
        default=None,
        description="lines as in known_hosts, for ssh: if given, no other key of the host is accepted",
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.deploy_key + (self.private_key is not None) + (self.password is not None) > 1:
            raise ValueError("give one of deploy_key, private_key, or user and password")
        if self.user is not None and self.password is None:
            raise ValueError("a user requires a password or token")
        return self

    @property
    def is_some(self) -> bool:
        """Return whether this contains more than host keys."""
        return self.deploy_key or self.private_key is not None or self.password is not None


class NewStatusWebhook(RequestBody):
    """A webhook that receives the verdicts on commits in place of the provider, signed."""

    url: Url = Field(description="an https URL", examples=["https://ci.example.com/verdicts"])
    secret: SecretStr = Field(
        description="the signing secret of Standard Webhooks: whsec_ and the base64 of 24 to 64 random bytes"
    )


_STATUSES = "whether the provider shows the verdicts on commits, if the `identity` may set statuses"


class NewPlatform(RequestBody):
    """A platform that fetches after each push."""

    url: Url = Field(description="scheme and host of the platform", examples=["https://app.valohai.com"])
    project: Line = Field(description="the UUID of the project on the platform")
    token: SecretStr | None = Field(
        default=None,
        description="the token for its header Authorization: Token; required for a new URL, and never shown",
    )


class NewConnection(RequestBody):
    """A repository to connect."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "provider": "github",
                    "url": "https://github.com/acme/digits.git",
                    "project": "digits",
                    "triggers": [{"name": "train", "branches": ["main"], "run": {"step": "train"}}],
                }
            ]
        }
    )

    provider: Provider = Field(description="the kind of git server that sends the webhooks")
    url: Url = Field(
        description="the clone URL, over https or ssh; a user and password in it become the credentials",
        examples=["https://github.com/acme/digits.git"],
    )
    project: Line = Field(description="the platform's project; a word of the messages' routing key")
    name: Line | None = Field(default=None, description="a unique name; by default the repository's path")
    secret: WebhookSecret | None = Field(
        default=None, description="the webhook secret; by default one is generated"
    )
    auth: dict[str, str] = Field(
        default_factory=dict,
        description="how the provider authenticates in place of a signature: see the page of the provider",
    )
    triggers: NewTriggers = Field(
        default_factory=list, description="which ref updates run what; by default none do"
    )
    yaml_path: YamlPath = Field(
        default="valohai.yaml", description="the manifest's path in the repository; by default valohai.yaml"
    )
    follows: Follows = Field(
        default_factory=list,
        description="globs of branches: nothing runs for other branches; by default all branches count",
    )
    networks: Networks = Field(
        default_factory=list,
        description="the networks that may send webhooks, such as 192.0.2.0/24; by default any",
    )
    credentials: NewCredentials | None = Field(default=None, description="for a private repository")
    identity: Line | None = Field(
        default=None,
        description="the id or the name of an identity, which is used where there are no `credentials`",
    )
    statuses: bool = Field(default=True, description=_STATUSES)
    status_webhook: NewStatusWebhook | None = Field(
        default=None, description="a webhook that receives the verdicts in place of the provider"
    )
    platform: NewPlatform | None = Field(
        default=None, description="a platform that shall fetch after each push"
    )
    package_format: PackageFormat = Field(
        default="tar.gz", description="the format of packages; by default tar.gz"
    )
    force: bool = Field(
        default=False,
        description="connect a repository again to the same project: each push then runs twice",
    )


class ConnectionChange(RequestBody):
    """The changes of a connection: fields that are omitted or null stay as they are."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"follows": ["main", "release/*"]}]})

    url: Url | None = Field(default=None, description="the new clone URL")
    project: Line | None = Field(default=None, description="the platform's project")
    name: Line | None = Field(default=None, description="a unique name")
    triggers: NewTriggers | None = Field(default=None, description="the triggers, which replace all others")
    yaml_path: YamlPath | None = Field(default=None, description="the manifest's path in the repository")
    follows: Follows | None = Field(
        default=None, description="globs of branches: nothing runs for other branches"
    )
    networks: Networks | None = Field(default=None, description="the networks that may send webhooks")
    credentials: NewCredentials | None = Field(
        default=None, description="new credentials; null deletes the stored ones, unlike an omitted field"
    )
    identity: Line | None = Field(
        default=None,
        description="the id or the name of an identity; null removes it, unlike an omitted field",
    )
    statuses: bool | None = Field(default=None, description=_STATUSES)
    status_webhook: NewStatusWebhook | None = Field(
        default=None,
        description="a webhook that receives the verdicts in place of the provider; null removes it, unlike"
        " an omitted field",
    )
    platform: NewPlatform | None = Field(
        default=None, description="a platform that fetches; null removes it, unlike an omitted field"
    )
    package_format: PackageFormat | None = Field(default=None, description="the format of packages")


class NewSecret(RequestBody):
    """The new webhook secret of a connection."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})

    secret: WebhookSecret | None = Field(default=None, description="by default, one is generated")


class NewSource(RequestBody):
    """An organisation, group, workspace, project or server whose repositories rules shall connect."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "provider": "github",
                    "url": "https://github.com/acme",
                    "identity": "acme-bot",
                    "rules": [
                        {
                            "match": ["ml-*"],
                            "triggers": [{"name": "train", "branches": ["main"], "run": {"step": "train"}}],
                        }
                    ],
                }
            ]
        }
    )

    provider: Provider = Field(description="the kind of git server that sends the webhooks")
    url: Url = Field(
        description="the web page of the organisation, group, workspace or project, or of the server",
        examples=["https://github.com/acme"],
    )
    scope: sources.Scope | None = Field(
        default=None,
        description="`owner` for the repositories of an organisation, group, workspace or project, `server`"
        " for all repositories of a server; by default `server` if the URL has no path",
    )
    name: NameInPath | None = Field(
        default=None,
        description="a unique name, without a slash; by default that of the owner, or the host of a server",
    )
    rules: NewRules = Field(
        default_factory=list,
        description="which repositories are connected, and how: the first rule that matches counts. By"
        " default none are",
    )
    identity: Line | None = Field(
        default=None,
        description="the id or the name of an identity, which lists the repositories, registers the webhook,"
        " and fetches",
    )
    secret: WebhookSecret | None = Field(
        default=None, description="the webhook secret; by default one is generated"
    )
    auth: dict[str, str] = Field(
        default_factory=dict,
        description="how the provider authenticates in place of a signature: see the page of the provider",
    )
    networks: Networks = Field(
        default_factory=list,
        description="the networks that may send webhooks, such as 192.0.2.0/24; by default any",
    )


class SourceChange(RequestBody):
    """The changes of a source: fields that are omitted or null stay as they are."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"rules": [{"match": ["ml-*", "!ml-old"]}]}]})

    url: Url | None = Field(default=None, description="the new URL, such as after a rename")
    name: NameInPath | None = Field(default=None, description="a unique name, without a slash")
    rules: NewRules | None = Field(default=None, description="the rules, which replace all others")
    identity: Line | None = Field(
        default=None,
        description="the id or the name of an identity; null removes it, unlike an omitted field",
    )
    networks: Networks | None = Field(default=None, description="the networks that may send webhooks")


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    items: list[Item] = Field(description="the items of this page")
    next: str | None = Field(description="the `cursor` of the next page; null on the last page")


class FaultView(BaseModel):
    """One of the things that are wrong with a request."""

    pointer: str | None = Field(
        description="the field of the body, as a JSON pointer (RFC 6901); null if it is no field",
        examples=["#/triggers/0/branches"],
    )
    parameter: str | None = Field(
        description="the parameter of the URL, or the header; null if it is none", examples=["limit"]
    )
    detail: str = Field(description="a sentence for people that names the field; do not parse it")


class Error(BaseModel):
    """An error as RFC 9457 defines it: what is wrong, and what to do."""

    type: str = Field(
        description="a URI reference that identifies the kind of error: its section in the gateway's page"
        " about errors; `about:blank` if the status says all",
        examples=["/docs/errors#not-found"],
    )
    title: str = Field(description="the kind of error, in a few words", examples=["Not found"])
    status: int = Field(description="the status of the answer", examples=[404])
    detail: str = Field(description="a sentence for people; do not parse it")
    errors: list[FaultView] = Field(
        description="of an invalid request, everything that is wrong with it; empty otherwise"
    )
    error: str = Field(
        description="the title in lower case, for clients of earlier versions: use `type` or `title`",
        deprecated=True,
    )
