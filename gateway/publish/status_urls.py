"""The URL at which runners report: signed right before a request is published, and when it is shown.

A request may wait in the store for weeks, and PUBLIC_URL may change meanwhile, so no URL is stored.
"""

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gateway.crypto.signed_tokens import SignedTokens
from gateway.store.executions import OMITTED, StoredRequest

VALID_FOR = timedelta(days=30)
"""How long a status URL is valid: from when its request was published."""

# How a planned body ends: `status_url` is the last field. In bodies of earlier versions it is missing.
_PLANNED = b',"status_url":null}'
# The field before it, which is missing in bodies of earlier versions too, and stands behind the package: see
# gateway/messages/packages.py.
_RERUN_OF = b'"rerun_of":'
_PACKAGE = b'"package":'


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusUrls:
    """Signs status URLs."""

    signed_tokens: SignedTokens
    base_url: str

    def completed(self, stored: StoredRequest, *, now: datetime) -> StoredRequest:
        """Return a request whose body, if it was read, has a status URL that is valid from now on."""
        if stored.body == OMITTED:
            return stored
        token = self.signed_tokens.issue(subject(stored.id), now=now)
        query = f"expires={token.expires}&signature={token.signature}"
        url = f"{self.base_url}/api/v1/executions/{stored.id}/status?{query}"
        # Not both: the field before it may be an object.
        end = _PLANNED if stored.body.endswith(_PLANNED) else b"}"
        planned = stored.body.removesuffix(end)
        if planned.rfind(_RERUN_OF) <= planned.rfind(_PACKAGE):
            planned += b"," + _RERUN_OF + b"null"
        return replace(stored, body=planned + b',"status_url":' + json.dumps(url).encode() + b"}")


def subject(execution: str) -> str:
    """Return what the token of a status URL permits."""
    return f"status of execution {execution}"
