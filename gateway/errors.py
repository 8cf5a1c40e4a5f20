"""What can go wrong, as one small tree. Every message is a sentence for people, and holds no secret."""


class PushgateError(Exception):
    """Anything that Pushgate itself reports."""


class SettingError(PushgateError):
    """A setting is unknown or wrong; the service does not start."""


class StoreUnavailable(PushgateError):
    """The store cannot be read or written just now."""


class PackageStorageUnavailable(StoreUnavailable):
    """The place where packages are kept cannot be read or written just now."""


class NotFound(PushgateError):
    """There is no such record."""


class Invalid(PushgateError):
    """A request to the API or the command line that cannot be carried out as it is."""


class Conflict(Invalid):
    """A request that what is there already stands against."""


class FetchError(PushgateError):
    """The remote repository could not be fetched."""


class RemoteUnavailable(FetchError):
    """The remote is down, slow, or refuses us for now: a later try can help."""


class RemoteSilent(RemoteUnavailable):
    """The remote did not answer in time."""


class RemoteRefuses(RemoteUnavailable):
    """The remote answers, and says that there is no such repository, or not for us."""


class LocalFailure(FetchError):
    """This machine cannot fetch just now, as with a full disk; the remote has no part in it."""


class Gone(FetchError):
    """The remote no longer has the object that was pushed."""


class ObjectUnusable(FetchError):
    """The object is there but is nothing that can be executed, and never will be."""


class PlanError(PushgateError):
    """A commit's valohai.yaml, or a trigger, asks for something that cannot be."""


class PublishError(PushgateError):
    """A message did not reach the broker's safe keeping."""


class BrokerUnavailable(PublishError):
    """The broker is out of reach or does not answer in time."""


class Interrupted(BrokerUnavailable):
    """The connection was lost while the message was on its way: nobody knows whether the broker has it."""


class Unroutable(PublishError):
    """The broker took no responsibility for the message: no queue is bound for it, or the queue is full."""


class Undeliverable(PublishError):
    """The broker refuses this message, and will refuse it each time: it is too large, for example."""


class Ambiguous(PublishError):
    """The broker refuses one of the messages that were on their way, and does not say which."""
