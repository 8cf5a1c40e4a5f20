"""The bodies of requests about notification channels."""

from typing import Annotated

from pydantic import ConfigDict, Field, SecretStr, StringConstraints

from gateway.api.schemas import Line, NameInPath, RequestBody
from gateway.plan.triggers import Glob
from gateway.store.notification_channels import ChannelKind, Happening
from gateway.worker.mail import Security

# Of ASCII letters, as servers without SMTPUTF8 require.
MailAddress = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, max_length=254, pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+$"
    ),
]
_Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$")]
_SecretUrl = Annotated[SecretStr, Field(min_length=1, max_length=2048)]
_Happenings = Annotated[list[Happening], Field(min_length=1, max_length=20)]
_Names = Annotated[list[Glob], Field(max_length=100)]


class MailSettings(RequestBody):
    """The server, the sender and the recipients of mail."""

    host: _Host = Field(description="the mail server", examples=["smtp.example.com"])
    port: int = Field(default=587, ge=1, le=65535, description="its port")
    security: Security = Field(
        default="starttls",
        description="`starttls` encrypts the connection once it is open, usually on port 587; `tls`, usually"
        " on port 465, from the start",
    )
    user: Line | None = Field(default=None, description="the user there, if it wants one")
    sender: MailAddress = Field(description="the sender's address", examples=["pushgate@example.com"])
    recipients: Annotated[list[MailAddress], Field(min_length=1, max_length=50)] = Field(
        description="the recipients' addresses"
    )


class NewChannel(RequestBody):
    """A new notification channel."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "ml-team", "kind": "slack", "url": "https://hooks.slack.com/services/…"},
            ]
        }
    )

    name: NameInPath = Field(description="a unique name, without a slash")
    kind: ChannelKind = Field(
        description="`slack`, an incoming webhook of Slack or of a server that takes the same; `teams`, a"
        " workflow of Microsoft Teams; `webhook`, signed as Standard Webhooks specify; `smtp`, mail"
    )
    url: _SecretUrl | None = Field(
        default=None, description="of all kinds but `smtp`: where to post; no answer contains it"
    )
    secret: SecretStr | None = Field(
        default=None,
        description="of the kind `webhook`: the signing secret, `whsec_` and the base64 of 24 to 64 bytes. By"
        " default a new one, which only this answer contains",
    )
    mail: MailSettings | None = Field(default=None, description="of the kind `smtp`")
    password: SecretStr | None = Field(
        default=None, description="of the kind `smtp`: the password of the user; no answer contains it"
    )
    happenings: _Happenings = Field(
        default=["run-failed", "run-recovered", "webhook-silent", "remote-refuses", "dead-letters"],
        description="what to notify of; by default everything",
    )
    connections: _Names = Field(
        default=[],
        description="globs of the names of connections, as for branches: `*` does not match a slash. By"
        " default all",
    )
    projects: _Names = Field(default=[], description="globs of the platform's projects; by default all")


class ChannelChange(RequestBody):
    """Changes of a notification channel. Omitted fields stay unchanged."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"happenings": ["run-failed"]}]})

    name: NameInPath | None = Field(default=None, description="a unique name, without a slash")
    url: _SecretUrl | None = Field(default=None, description="where to post")
    secret: SecretStr | None = Field(default=None, description="the signing secret")
    mail: MailSettings | None = Field(
        default=None, description="the server, the sender and the recipients, all of them"
    )
    password: SecretStr | None = Field(default=None, description="the password of the user")
    happenings: _Happenings | None = Field(default=None, description="what to notify of")
    connections: _Names | None = Field(default=None, description="globs of the names of connections")
    projects: _Names | None = Field(default=None, description="globs of the platform's projects")
