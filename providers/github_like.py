"""The parts of GitHub's payloads that Gogs, Gitea and Forgejo share."""

from collections.abc import Mapping, Sequence

from providers import signatures
from providers.errors import Undecodable, Unverified
from providers.model import PullRequestAction, Repository, VerifiedRequest
from providers.normalize import repository
from providers.payload import Id, Lenient, Payload, Text, form_payload, is_form

# Gitea and Gogs list only a few commits of a push: a payload of 100 KB is large.
_MAX_FORM_BYTES = 4 * 1024 * 1024


class HubRepository(Payload):
    """A repository as all of these providers describe it."""

    id: Lenient[Id] = None
    full_name: Lenient[Text] = None
    html_url: Lenient[Text] = None
    clone_url: Lenient[Text] = None
    ssh_url: Lenient[Text] = None
    default_branch: Lenient[Text] = None


class AnyEvent(Payload):
    """The fields that are read of an event without effect."""

    action: Lenient[Text] = None
    repository: Lenient[HubRepository] = None


def described(wire: HubRepository | None) -> Repository | None:
    """Return the repository that a payload describes, or None."""
    if wire is None:
        return None
    return repository(
        id=wire.id,
        full_name=wire.full_name,
        web_url=wire.html_url,
        urls=(wire.clone_url, wire.ssh_url),
        default_branch=wire.default_branch,
    )


def verify_document(
    *,
    header: str,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    event: str,
    id: str | None,  # noqa: A002 - the field's name
) -> VerifiedRequest:
    """Check the bare hex HMAC in `header` over the JSON document, even if the document is in a form.

    Gogs and Gitea sign the document; GitHub signs the form. A form must therefore be decoded before the
    sender is verified, so this is limited to forms of plausible size with a signature. Raises `Unverified`.
    """
    content = body
    value = headers.get(header.lower())
    if value and is_form(headers):
        if len(body) > _MAX_FORM_BYTES:
            raise Unverified(
                f"a form of over {_MAX_FORM_BYTES} bytes: choose application/json in the webhook"
            )
        try:
            content = form_payload(body)
        except Undecodable as error:
            raise Unverified(f"there is nothing to verify: {error}") from None
    secret = signatures.verify_hmac_hex(header=header, value=value, prefix="", body=content, secrets=secrets)
    return VerifiedRequest(event=event, id=id, secret=secret, content=content)


def pull_request_action(action: str, *, merged: bool | None) -> PullRequestAction | None:
    """Return the action of a pull request event of Gogs or Gitea; None if it has no effect."""
    if action in {"opened", "reopened"}:
        return "opened"
    if action == "closed":
        return "merged" if merged else "closed"
    return "updated" if action == "synchronized" else None
