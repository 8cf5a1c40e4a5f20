"""Ids of traces and spans, derived from what the store has.

Every process of the gateway, also after a restart, derives the same ids. So none has to pass a context on to
another: a worker names the span of the request that another process has answered.
"""

import hashlib


def trace_of(delivery: str) -> str:
    """Return the id of a delivery's trace: 32 hex digits."""
    return _digest(delivery)[:32]


def span_of_delivery(delivery: str) -> str:
    """Return the id of the first span of a delivery's trace, mostly that of its request: 16 hex digits."""
    return _digest(f"delivery {delivery}")[:16]


def span_of_message(message: str, redrives: int = 0) -> str:
    """Return the id of the span that publishes a message: 16 hex digits, other ones for each redrive."""
    return _digest(f"{message} {redrives}" if redrives else message)[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
