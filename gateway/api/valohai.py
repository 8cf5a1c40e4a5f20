"""`POST /connections/{id}/valohai`: notifications of Valohai, whose channel has the signed URL."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from pydantic import Field
from starlette.requests import Request

from gateway.api.auth import check_signature
from gateway.api.openapi import Operation
from gateway.api.views import ExecutionState, View
from gateway.crypto.keyring import Keyring
from gateway.crypto.signed_tokens import SignedTokens
from gateway.intake.body import BodyReader
from gateway.messages.execution_status import MAX_REPORT_BYTES
from gateway.messages.valohai import ValohaiNotification, read_notification
from gateway.publish.execution_spans import record_runs
from gateway.store import valohai_runs
from gateway.store.connections import Connection
from gateway.store.database import Database

log = structlog.get_logger()

# Nobody changes the URL of a channel until something stops working.
_VALID_FOR = timedelta(days=3650)
_bodies = BodyReader(limit=MAX_REPORT_BYTES)


class NotificationReceipt(View):
    """The answer to a notification."""

    execution: str | None = Field(description="the execution that it is about; null if that cannot be told")
    state: ExecutionState | None = Field(description="the state of that execution now")
    reason: str | None = Field(description="why it is about no execution; null if it is about one")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValohaiUrls:
    """Signs the URLs that Valohai's channels have, one for each connection."""

    keyring: Keyring
    base_url: str

    def of(self, connection: Connection) -> str:
        """Return the URL of a connection, always the same."""
        token = self._tokens.issue(_subject(connection.id), now=connection.created_at)
        query = f"expires={token.expires}&signature={token.signature}"
        return f"{self.base_url}/api/v1/connections/{connection.id}/valohai?{query}"

    def check(self, request: Request, connection: str) -> None:
        """Return if a request has no signature, or a valid one. Raise `NotAllowed`."""
        check_signature(request, _subject(connection), self._tokens)

    @property
    def _tokens(self) -> SignedTokens:
        return SignedTokens(self.keyring.status_url_key(), valid=_VALID_FOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValohaiNotifications:
    """The endpoint for notifications of Valohai. Calls `notify` after a run has changed."""

    database: Database
    urls: ValohaiUrls
    notify: Callable[[], None]

    def operations(self) -> list[Operation]:
        """Return the operation."""
        return [
            Operation(
                method="POST",
                path="/connections/{id}/valohai",
                endpoint=self.take_notification,
                status=202,
                query=("expires", "signature"),
                location="/executions/{execution}",
                body=ValohaiNotification,
                is_signed=True,
            )
        ]

    async def take_notification(self, request: Request) -> NotificationReceipt:
        """`POST /connections/{id}/valohai`: take a notification of Valohai about an execution.

        With the token, or at the `valohai_url` of the connection, which needs none. The commit and the step
        say which execution it is; a notification that is about none is kept with its reason.
        """
        name = request.path_params["id"]
        self.urls.check(request, name)
        notification = read_notification(await _bodies.read(request.scope, request.receive))
        recorded = await self.database.write(valohai_runs.record, name, notification, now=datetime.now(UTC))
        record_runs([recorded.ended])
        if recorded.reason is not None:
            log.warning("a notification of Valohai was kept", connection=name, reason=recorded.reason)
        else:
            log.info("Valohai reported", id=recorded.execution, state=recorded.state)
        if recorded.is_change:
            self.notify()
        return NotificationReceipt(execution=recorded.execution, state=recorded.state, reason=recorded.reason)


def _subject(connection: str) -> str:
    """Return what the token of a connection's URL permits."""
    return f"Valohai's notifications for connection {connection}"
