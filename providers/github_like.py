"""What Gogs took over from GitHub, and Gitea and Forgejo from Gogs."""

from collections.abc import Mapping, Sequence

from providers import signatures
from providers.errors import Undecodable, Unverified
from providers.model import PullRequestAction, Repository, VerifiedRequest
from providers.normalize import repository
from providers.payload import Id, Lenient, Payload, Text, form_payload, is_form

# Gitea and Gogs list a few commits of a push; a payload of 100 KB is a large one.
_MAX_FORM_BYTES = 4 * 1024 * 1024


class HubRepository(Payload):
    """A repository as all of them describe it."""

    id: Lenient[Id] = None
    full_name: Lenient[Text] = None
    html_url: Lenient[Text] = None
    clone_url: Lenient[Text] = None
    ssh_url: Lenient[Text] = None
    default_branch: Lenient[Text] = None


class AnyEvent(Payload):
    """What is read of an event of no interest."""

    action: Lenient[Text] = None
    repository: Lenient[HubRepository] = None


def described(wire: HubRepository | None) -> Repository | None:
    """Return the repository that a payload describes, None where it describes none."""
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
    """Check the bare hex HMAC in `header` over the JSON document, also where a form carries it.

    So Gogs and Gitea sign; GitHub signs the form. So a form has to be decoded before anybody has proven
    anything: only one of a size that a payload has, and only where there is a signature. Raises `Unverified`.
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


def pull_request_action(told: str, *, merged: bool | None) -> PullRequestAction | None:
    """Return what Gogs and Gitea call it; None for what is of no interest."""
    if told in {"opened", "reopened"}:
        return "opened"
    if told == "closed":
        return "merged" if merged else "closed"
    return "updated" if told == "synchronized" else None
