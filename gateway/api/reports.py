"""`POST /executions/{id}/status`: reports of runners, with the signed URL of a request or the token."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from pydantic import Field
from starlette.requests import Request

from gateway.api.auth import check_signature
from gateway.api.openapi import EVENT_TYPE, Operation
from gateway.api.views import ExecutionState, View
from gateway.crypto.signed_tokens import SignedTokens
from gateway.errors import Invalid, NotFound
from gateway.intake.body import BodyReader
from gateway.messages.cdevents import read_any_report
from gateway.messages.execution_status import MAX_REPORT_BYTES, ExecutionStatus, StatusEvent
from gateway.publish.execution_spans import record_runs
from gateway.publish.status_urls import subject
from gateway.store import runs
from gateway.store.database import Database
from gateway.store.runs import Outcome

log = structlog.get_logger()

_BATCH_SIZE = 500
_GATHER_SECONDS = 0.005
_bodies = BodyReader(limit=MAX_REPORT_BYTES)

Waiting = tuple[ExecutionStatus, asyncio.Future[Outcome]]


class ReportReceipt(View):
    """The answer to a report."""

    state: ExecutionState = Field(
        description="the state of the execution now: another than the reported one, if the report is a"
        " repetition or was overtaken, or if the execution has ended"
    )
    cancel_requested_at: datetime | None = Field(
        description="when an operator cancelled the execution: stop it, and report that; null if none did"
    )


class ReportWriter:
    """Records reports: those that arrive while a transaction is being written share the next one."""

    def __init__(self, database: Database, *, notify: Callable[[], None]) -> None:
        """Call `notify` after changes."""
        self._database = database
        self._notify = notify
        self._waiting: list[Waiting] = []
        self._writing: asyncio.Task[None] | None = None

    async def record(self, report: ExecutionStatus) -> Outcome:
        """Return the outcome of a report, once it is durable. Raise `StoreUnavailable`."""
        outcome = asyncio.get_running_loop().create_future()
        self._waiting.append((report, outcome))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        found: Outcome = await outcome
        return found

    async def _write(self) -> None:
        while self._waiting:
            # A transaction for each few would cost more than the wait.
            await asyncio.sleep(_GATHER_SECONDS)
            batch, self._waiting = self._waiting[:_BATCH_SIZE], self._waiting[_BATCH_SIZE:]
            try:
                await self._write_batch(batch)
            except Exception as error:  # noqa: BLE001 - each request answers it
                for _, outcome in batch:
                    if not outcome.done():
                        outcome.set_exception(error)

    async def _write_batch(self, batch: Sequence[Waiting]) -> None:
        reports = [report for report, _ in batch]
        found = await self._database.write(runs.record, reports, now=datetime.now(UTC))
        for (_, outcome), result in zip(batch, found, strict=True):
            # Done already where the client has gone.
            if not outcome.done():
                outcome.set_result(result)
        record_runs(result.ended for result in found)
        if any(result.is_change for result in found):
            self._notify()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """The endpoint for the reports of runners."""

    writer: ReportWriter
    signed_tokens: SignedTokens

    def operations(self) -> list[Operation]:
        """Return the operation."""
        return [
            Operation(
                method="POST",
                path="/executions/{id}/status",
                endpoint=self.report_status,
                query=("expires", "signature"),
                body=ExecutionStatus,
                event=StatusEvent,
                is_signed=True,
            )
        ]

    async def report_status(self, request: Request) -> ReportReceipt:
        """`POST /executions/{id}/status`: report what became of an execution request.

        With the token, or at the `status_url` of the request, which needs none. A report may be repeated, and
        may arrive late: the one with the highest `sequence` counts, and an end never changes. A CDEvent about
        the run of a task or a pipeline is a report too.
        """
        name = request.path_params["id"]
        check_signature(request, subject(name), self.signed_tokens)
        body = await _bodies.read(request.scope, request.receive)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        report = read_any_report(body, is_structured=media_type == EVENT_TYPE, execution=name)
        if report.id != name:
            raise Invalid("id: it is not the id of the execution in the URL")
        outcome = await self.writer.record(report)
        if outcome.state is None:
            log.warning("a runner reported an unknown execution", id=report.id, state=report.state)
            raise NotFound(f"no execution has the id {report.id}")
        log.info("runner reported", id=report.id, reported=report.state, state=outcome.state)
        return ReportReceipt(state=outcome.state, cancel_requested_at=outcome.cancel_requested_at)
