"""From the credentials of an API request to the access to a remote."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from gateway.api.schemas import ConnectionChange, NewConnection, NewCredentials
from gateway.errors import Invalid
from gateway.fetch.credentials import (
    Credentials,
    Login,
    SshKey,
    as_json,
    from_json,
    make_deploy_key,
    make_login,
    read_private_key,
    take_login,
)
from gateway.fetch.host_keys import read_host_keys
from gateway.fetch.urls import is_ssh, known_as, target
from gateway.store.connections import Connection

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAccess:
    """A clone URL without secrets, and the credentials for it."""

    url: str
    credentials: Credentials | None
    host_keys: str | None
    warnings: Sequence[str] = ()

    @property
    def deploy_key(self) -> str | None:
        """The public key, to paste at the provider."""
        return self.credentials.public if isinstance(self.credentials, SshKey) else None

    @property
    def sealable(self) -> bytes | None:
        """What must be stored encrypted, or None."""
        return as_json(self.credentials, self.host_keys) if self.credentials or self.host_keys else None


def remote_access(wanted: NewConnection, *, name: str) -> RemoteAccess:
    """Return the access for a new connection; for ssh a deploy key is generated where none is given.

    Generating an RSA key takes a second. Raises `Invalid` with one sentence.
    """
    bare, pasted = take_login(wanted.url, wanted.provider)
    given = _given(wanted.credentials, pasted, url=bare, provider=wanted.provider, name=name)
    if given is None and is_ssh(bare):
        given = make_deploy_key(wanted.provider, comment=_comment(name))
    host_keys, warnings = _host_keys(wanted.credentials, None, url=bare)
    return RemoteAccess(url=bare, credentials=given, host_keys=host_keys, warnings=warnings)


def changed_access(old: Connection, kept: bytes | None, wanted: ConnectionChange) -> RemoteAccess | None:
    """Return the access of a changed connection, or None where it stays unchanged.

    `kept` is the stored `RemoteAccess.sealable`. Omitted fields stay unchanged, host keys included; but a
    password is sent only to the host that it was given for. See `remote_access`.
    """
    old_credentials, old_host_keys = from_json(kept)
    bare, pasted = take_login(wanted.url or old.url, old.provider)
    is_named = "credentials" in wanted.model_fields_set
    is_forgotten = is_named and wanted.credentials is None
    given = _given(wanted.credentials, pasted, url=bare, provider=old.provider, name=old.name)
    stays = given is None and not is_forgotten and is_ssh(bare) == is_ssh(old.url)
    if stays and isinstance(old_credentials, Login) and target(bare) != target(old.url):
        raise Invalid("url: the stored password is for another host; give credentials, or null to delete it")
    if stays and not is_named:
        return None
    credentials = old_credentials if stays else given
    if credentials is None and is_ssh(bare):
        credentials = make_deploy_key(old.provider, comment=_comment(old.name))
    before = None if is_forgotten else old_host_keys
    host_keys, warnings = _host_keys(wanted.credentials, before, url=bare)
    return RemoteAccess(url=bare, credentials=credentials, host_keys=host_keys, warnings=warnings)


def _host_keys(
    wanted: NewCredentials | None, before: str | None, *, url: str
) -> tuple[str | None, list[str]]:
    if not is_ssh(url):
        if wanted is not None and wanted.host_keys:
            raise Invalid("host_keys: only ssh URLs have host keys; https uses certificates")
        return None, []
    if wanted is None or "host_keys" not in wanted.model_fields_set:
        return before, []
    if not wanted.host_keys:
        return None, []
    taken, unreadable = read_host_keys(wanted.host_keys, known_as=known_as(url))
    warnings = [
        f"host_keys: line {number} is ignored: it contains no key that ssh supports" for number in unreadable
    ]
    for warning in warnings:
        log.warning(warning, url=url)
    return taken, warnings


def _given(
    wanted: NewCredentials | None, pasted: Login | None, *, url: str, provider: str, name: str
) -> Credentials | None:
    if wanted is None or not wanted.is_some:
        return pasted
    if pasted is not None:
        raise Invalid("credentials: give them either in the URL or in `credentials`, not both")
    if wanted.password is not None:
        if is_ssh(url):
            raise Invalid("credentials: user and password are for https; an ssh URL requires a key")
        return make_login(wanted.user, wanted.password.get_secret_value(), provider)
    if not is_ssh(url):
        raise Invalid("credentials: a key is for ssh URLs; https requires user and password, or a token")
    if wanted.private_key is not None:
        return read_private_key(wanted.private_key.get_secret_value(), provider, comment=_comment(name))
    return make_deploy_key(provider, comment=_comment(name))


def _comment(name: str) -> str:
    return "pushgate:" + "-".join(name.split())
