"""What can be wrong with a webhook request. Nothing else leaves this package."""


class ProviderError(Exception):
    """A request that cannot be used; the message says why, for the people who set up the webhook."""


class Unverified(ProviderError):
    """Nobody has proven to know the connection's secret. Nothing of the body may be used."""


class Malformed(ProviderError):
    """The sender is proven, but the body is not what the provider documents for this event."""


class Undecodable(Malformed):
    """The sender is proven, but the body is no JSON document at all."""
