"""The errors of a webhook request; the providers raise no others."""


class ProviderError(Exception):
    """A request that cannot be used; the message is for the people who set up the webhook."""


class Unverified(ProviderError):
    """The sender is not verified. Nothing in the body may be used."""


class Malformed(ProviderError):
    """The sender is verified, but the body is not what the provider documents for this event."""


class Undecodable(Malformed):
    """The sender is verified, but the body is not a JSON document."""
