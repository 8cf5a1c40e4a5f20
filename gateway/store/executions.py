"""Execution requests: what was planned, and whether the broker has it. This table is the outbox."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRequest:
    """An execution request as it is kept and as the relay takes it.

    `seq` is the order in which requests were planned; `body` the JSON of the wire contract; `target` the
    name of the step or pipeline; `subject` what the request is about, for people: repository and commit.
    """

    seq: int
    id: str
    connection: str
    delivery: str
    project: str
    trigger: str
    target: str
    subject: str
    body: bytes
    planned_at: datetime
