"""From what the API takes to what opens a remote."""

from dataclasses import dataclass

from gateway.admin.shapes import ConnectionChange, NewConnection, NewCredentials
from gateway.errors import Invalid
from gateway.fetch.credentials import (
    Credentials,
    SshKey,
    as_json,
    make_deploy_key,
    make_login,
    read_private_key,
    take_login,
)
from gateway.fetch.urls import is_ssh
from gateway.store.connections import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A clone URL without anything secret, and what opens it."""

    url: str
    credentials: Credentials | None
    host_keys: str | None

    @property
    def deploy_key(self) -> str | None:
        """The public half, to paste at the provider."""
        return self.credentials.public if isinstance(self.credentials, SshKey) else None

    @property
    def sealable(self) -> bytes | None:
        """What has to be kept sealed, if anything."""
        return as_json(self.credentials, self.host_keys) if self.credentials or self.host_keys else None


def opening(wanted: NewConnection, *, name: str) -> Opening:
    """Return what opens a new connection; for ssh a deploy key is made where nothing is given.

    Making an RSA key takes a second. Raises `Invalid` with one sentence.
    """
    return _opening(wanted.credentials, url=wanted.url, provider=wanted.provider, name=name)


def changed_opening(old: Connection, wanted: ConnectionChange) -> Opening | None:
    """Return what opens a connection from now on; None where that stays as it is. See `opening`."""
    url = wanted.url or old.url
    if "credentials" not in wanted.model_fields_set:
        bare, pasted = take_login(url, old.provider)
        if pasted is None and is_ssh(bare) == is_ssh(old.url):
            return None
    return _opening(wanted.credentials, url=url, provider=old.provider, name=old.name)


def _opening(wanted: NewCredentials | None, *, url: str, provider: str, name: str) -> Opening:
    bare, pasted = take_login(url, provider)
    made = _credentials(wanted, pasted, is_over_ssh=is_ssh(bare), provider=provider, name=name)
    return Opening(url=bare, credentials=made, host_keys=wanted.host_keys if wanted else None)


def _credentials(
    wanted: NewCredentials | None,
    pasted: Credentials | None,
    *,
    is_over_ssh: bool,
    provider: str,
    name: str,
) -> Credentials | None:
    comment = "pushgate:" + "-".join(name.split())
    if wanted is None or not wanted.is_some:
        return make_deploy_key(provider, comment=comment) if is_over_ssh and pasted is None else pasted
    if pasted is not None:
        raise Invalid("credentials: they stand in the URL and beside it; give them once")
    if wanted.password is not None:
        if is_over_ssh:
            raise Invalid("credentials: user and password are for https; an ssh URL is opened by a key")
        return make_login(wanted.user, wanted.password.get_secret_value(), provider)
    if not is_over_ssh:
        raise Invalid("credentials: a key opens ssh URLs only; https takes user and password, or a token")
    if wanted.private_key is not None:
        return read_private_key(wanted.private_key.get_secret_value(), provider, comment=comment)
    return make_deploy_key(provider, comment=comment)
