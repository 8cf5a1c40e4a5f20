"""Verdicts as signed webhooks, to receivers of any kind: for git servers that have no API for statuses.

A receiver gets each state of a context; `gateway.provider_apis.standard_webhook` has the signature.
"""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import get_args

from gateway.provider_apis import standard_webhook
from gateway.provider_apis.operation import Operation
from gateway.provider_apis.statuses import CommitStatus, StatusMemory, StatusState
from gateway.provider_apis.webhooks import Place

EVENT = "commit.status"

_STATES: Mapping[StatusState, str] = {state: state for state in get_args(StatusState)}
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "statuses.pushgate.dev")


@dataclass(slots=True, kw_only=True)
class StatusWebhook:
    """The webhook of a connection, as an API for statuses."""

    url: str = field(repr=False)
    secret: str = field(repr=False)
    connection: str
    project: str
    clock: Callable[[], datetime]
    STATES: Mapping[StatusState, str] = field(default_factory=lambda: _STATES)
    STATUS_RIGHT: str = ""

    def set_status(self, place: Place, status: CommitStatus, memory: StatusMemory) -> Operation[StatusMemory]:
        """Send a status. A repetition has the same id, by which receivers drop it."""
        now = self.clock()
        told = [self.connection, status.commit, status.context, status.execution, status.state]
        data = {
            "connection": self.connection,
            "project": self.project,
            "repository": place.url,
            "commit": status.commit,
            "ref": status.ref,
            "pull_request": status.pull_request,
            "context": status.context,
            "state": status.state,
            "description": status.description,
            "url": status.url,
            "execution": status.execution,
            "summary": status.summary,
        }
        yield from standard_webhook.send(
            url=self.url,
            secret=self.secret,
            id=str(uuid.uuid5(_NAMESPACE, json.dumps(told))),
            body=json.dumps({"type": EVENT, "timestamp": now.isoformat(), "data": data}).encode(),
            now=now,
        )
        return memory
