"""The bodies of requests to the REST API, and the page of a list."""

from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    StringConstraints,
    model_validator,
)

from gateway.plan.triggers import Glob


def _path_inside(path: str) -> str:
    """Refuse a path that git would read as a folder, as outside the repository, or as a pathspec."""
    if {"", ".", ".."} & set(path.split("/")) or path.startswith(":") or not path.isprintable():
        raise ValueError("it must be a path inside the repository, such as valohai.yaml or ml/valohai.yaml")
    return path


Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")
]
Url = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2048)]
WebhookSecret = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[\x20-\x7e]+$")]
YamlPath = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_path_inside)]
Networks = Annotated[list[IPvAnyNetwork], Field(max_length=200)]
Follows = Annotated[list[Glob], Field(max_length=100)]
PackageFormat = Literal["tar.gz", "tar.zst"]
Item = TypeVar("Item")


class RequestBody(BaseModel):
    """The body of a request. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NewCredentials(RequestBody):
    """The credentials of a private repository: a generated key, a pasted key, or a password or token.

    `host_keys` are lines as in known_hosts; if given, no other key of the host is accepted.
    """

    deploy_key: bool = False
    private_key: SecretStr | None = None
    user: Line | None = None
    password: SecretStr | None = None
    host_keys: Annotated[str, StringConstraints(max_length=16_384)] | None = None

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


class NewPlatform(RequestBody):
    """A platform that fetches after each push: its URL, the project's UUID, and a token."""

    url: Url
    project: Line
    token: SecretStr | None = None


class NewConnection(RequestBody):
    """`POST /connections`. If it `follows` branches, by globs, nothing runs for others.

    `force` connects a repository again to the same project: each push then runs twice.
    """

    provider: str
    url: Url
    project: Line
    name: Line | None = None
    secret: WebhookSecret | None = None
    auth: dict[str, str] = Field(default_factory=dict)
    triggers: list[dict[str, Any]] = Field(default_factory=list)
    yaml_path: YamlPath = "valohai.yaml"
    follows: Follows = Field(default_factory=list)
    networks: Networks = Field(default_factory=list)
    credentials: NewCredentials | None = None
    platform: NewPlatform | None = None
    package_format: PackageFormat = "tar.gz"
    force: bool = False


class ConnectionChange(RequestBody):
    """`PATCH /connections/{id}`: omitted fields stay; `credentials: null` deletes the credentials."""

    url: Url | None = None
    project: Line | None = None
    name: Line | None = None
    triggers: list[dict[str, Any]] | None = None
    yaml_path: YamlPath | None = None
    follows: Follows | None = None
    networks: Networks | None = None
    credentials: NewCredentials | None = None
    platform: NewPlatform | None = None
    package_format: PackageFormat | None = None


class NewSecret(RequestBody):
    """`POST /connections/{id}/rotate-secret`: without a secret, one is generated."""

    secret: WebhookSecret | None = None


class Page(BaseModel, Generic[Item]):
    """One page of a list; `next` is the cursor of the next page, null on the last page."""

    items: list[Item]
    next: str | None
