"""The tree of errors. Every message is a sentence for people, and contains no secret."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One of the things that are wrong with a request, in a sentence that names the field, never its value.

    `path` leads to the field in the body; a `parameter` is in the path or the query of the URL.
    """

    detail: str
    path: tuple[str | int, ...] = ()
    parameter: str | None = None


class PushgateError(Exception):
    """The base class of Pushgate's errors."""


class SettingError(PushgateError):
    """A setting is unknown or wrong; the service does not start."""


class StoreUnavailable(PushgateError):
    """The store cannot be read or written at present."""


class PackageStorageUnavailable(StoreUnavailable):
    """The package storage cannot be read or written at present."""


class NotFound(PushgateError):
    """The record does not exist."""


class Invalid(PushgateError):
    """A request to the API or the command line is invalid.

    A message about a single field begins with its name and a colon, unless there are `faults`.
    """

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)

    @classmethod
    def of(cls, faults: Sequence[Fault]) -> "Invalid":
        """Return the error of one or more faults; its message is that of the first."""
        return cls(faults[0].detail, faults)


class NotAllowed(PushgateError):
    """The signature of a URL is invalid or has expired."""


class Conflict(Invalid):
    """A request conflicts with an existing record."""


class KeyInUse(Conflict):
    """The first request with an Idempotency-Key still runs."""


class KeyReused(Invalid):
    """An Idempotency-Key was used for another request."""


class Changed(PushgateError):
    """The record was changed since the client has read it."""


class FetchError(PushgateError):
    """The remote repository could not be fetched."""


class RemoteUnavailable(FetchError):
    """The remote is down, slow, or refuses us temporarily: a retry may succeed."""


class RemoteSilent(RemoteUnavailable):
    """The remote did not answer in time."""


class RemoteRefuses(RemoteUnavailable):
    """The remote answers that the repository does not exist, or denies access to it."""


class LocalFailure(FetchError):
    """This machine cannot fetch at present, for example because its disk is full."""


class Gone(FetchError):
    """The remote no longer has the object that was pushed."""


class ObjectUnusable(FetchError):
    """The object exists, but cannot be executed; a retry cannot succeed."""


class PlanError(PushgateError):
    """A commit's valohai.yaml, or a trigger, requests something impossible."""


class PublishError(PushgateError):
    """The broker has not confirmed a message."""


class BrokerUnavailable(PublishError):
    """The broker is unreachable or does not answer in time."""


class Interrupted(BrokerUnavailable):
    """The connection was lost before the confirm: it is unknown whether the broker has the message."""


class Unroutable(PublishError):
    """The broker did not accept the message: no queue is bound for it, or the queue is full."""


class Undeliverable(PublishError):
    """The broker refuses this message permanently, for example because it is too large."""


class Ambiguous(PublishError):
    """The broker refuses one of several unconfirmed messages, without naming it."""
