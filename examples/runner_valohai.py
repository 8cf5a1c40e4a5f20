"""A runner that starts requests on the platform, and reports what becomes of them there.

`VALOHAI_API_TOKEN=… python runner_valohai.py amqp://… [COUNT]`. It executes nothing by itself, and so takes
requests as they come: the platform queues them. Requests name a project of Pushgate; the platform's project
is the same if its name is a UUID, or else that in `VALOHAI_PROJECTS`, such as `{"churn": "0185b1a5-…"}`.
"""

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import valohai_api
from journal import Journal, Report, Request, now
from step import Unusable, log
from valohai_api import Broken, Busy, Platform, Refused

QUEUE = os.environ.get("QUEUE", "pushgate.executions")
URL = os.environ.get("VALOHAI_URL", "https://app.valohai.com")
PROJECTS = json.loads(os.environ.get("VALOHAI_PROJECTS", "{}"))

LOOK_EVERY_SECONDS = float(os.environ.get("LOOK_EVERY_SECONDS", "15"))
"""How often the state of each execution is read."""

SETTLE_SECONDS = float(os.environ.get("SETTLE_SECONDS", str(2 * valohai_api.TIMEOUT_SECONDS)))
"""How long the platform may take to show what a call has started that had no answer."""

REPORT_EVERY_SECONDS = 300
MAX_TRIES = 5
"""How often the platform may fail at one request, and how often it may fetch for its commit."""

_CLOCKS_DIFFER = timedelta(hours=1)
_MALFORMED = (LookupError, TypeError, AttributeError, ValueError)
_MAX_LOG_LINES = 20
_MAX_LOG_COLUMNS = 300
_STARTS = (
    "starts (id TEXT NOT NULL, redrive INTEGER NOT NULL, sent_at TEXT, tries INTEGER NOT NULL, found TEXT,"
    " PRIMARY KEY (id, redrive))"
)


def project_of(request: Request) -> str:
    """Return the platform's project. Raises `Unusable`."""
    name = request["project"]
    try:
        return str(uuid.UUID(PROJECTS.get(name, name)))
    except ValueError:
        raise Unusable(f"VALOHAI_PROJECTS has no project of the platform for {name}") from None


def check(request: Request) -> None:
    """Raise `Unusable` for what cannot be started on the platform."""
    try:
        valohai_api.check_kinds(request["execution"])
        valohai_api.body_of(request, project_of(request), "")
    except _MALFORMED as error:
        raise Unusable(f"this is not an execution request: {error!r}") from error


class Carrier(Journal):
    """A journal whose requests the platform executes."""

    def __init__(self, path: Path, platform: Platform) -> None:
        """Open the journal in this file, or create it."""
        super().__init__(path, check, _STARTS)
        self._platform = platform
        self._not_before = 0.0
        self._due: dict[str, float] = {}
        self._reported: dict[str, tuple[str, float]] = {}

    def carry(self) -> bool:
        """Start what has not been started, read the states that are due, and report.

        Return whether something remains to be done.
        """
        pending = self.pending()
        for request in pending:
            if time.monotonic() < max(self._not_before, self._due.get(request["id"], 0)):
                continue
            self._due[request["id"]] = time.monotonic() + LOOK_EVERY_SECONDS
            try:
                self._carry(request)
            except Busy as error:
                log(str(error))
                self._not_before = time.monotonic() + error.seconds
                self._due.pop(request["id"])
            except Broken as error:
                log(f"{request['id']}: {error}")
            except _MALFORMED as error:
                log(f"{request['id']}: the platform's answer is not understood: {error!r}")
        self.send_reports()
        return bool(pending)

    def _carry(self, request: Request) -> None:
        sent_at, tries, found = self._start_of(request)
        if found is not None:
            self._look(request, found)
        elif sent_at is None:
            running = self._running(request)
            if running is None:
                self._start(request, tries)
            else:
                self._started(request, running)
        elif _age(sent_at) >= SETTLE_SECONDS:
            # This program or the platform died between the call and its answer.
            since = datetime.fromisoformat(sent_at) - _CLOCKS_DIFFER
            kind, project = valohai_api.kind_of(request), project_of(request)
            started = self._platform.tagged(kind, project, _tag(request), since)
            if started is not None:
                self._started(request, started)
            elif tries >= MAX_TRIES:
                self._end(request, Report("failed", f"the platform failed {tries} times to start it"))
            else:
                self._start(request, tries)

    def _start(self, request: Request, tries: int) -> None:
        """Start a request, which has not been started. Raises `Busy`, `Broken`."""
        project = project_of(request)
        # On disk before the call: if there is no answer, the tag is looked for before the call is repeated.
        self._note(request, sent_at=now(), tries=tries + 1)
        body = valohai_api.body_of(request, project, _tag(request))
        try:
            started = self._platform.call("POST", f"{valohai_api.kind_of(request)}/", body)
        except Refused as error:
            self._note(request, sent_at=None, tries=tries + 1)
            self._refused(request, error, project, tries + 1)
        except Busy as error:
            if error.is_certain:
                self._note(request, sent_at=None, tries=tries)
            raise
        else:
            self._started(request, started)

    def _running(self, request: Request) -> Mapping[str, Any] | None:
        """Return what was started before an operator's order to start it again, if it still runs."""
        earlier = self.database.execute(
            "SELECT found FROM starts WHERE id = ? AND redrive < ? AND found IS NOT NULL"
            " ORDER BY redrive DESC LIMIT 1",
            (request["id"], request["redrive"]),
        ).fetchone()
        if earlier is None:
            return None
        try:
            whole = self._platform.call("GET", f"{valohai_api.kind_of(request)}/{earlier[0]}/")
        except Refused:
            return None
        return None if whole["status"] in valohai_api.ENDS else dict(whole)

    def _refused(self, request: Request, error: Refused, project: str, tries: int) -> None:
        """Make the platform fetch if it lacks the commit; reject everything else, with the reason."""
        if not error.is_about_commit or tries >= MAX_TRIES:
            follows = f", although it has fetched: does its project follow {request['ref']['name']}?"
            self._end(request, Report("rejected", f"{error}{follows if error.is_about_commit else ''}"))
            return
        try:
            errors = self._platform.fetch(project)
        except Refused as refused:
            errors = [str(refused)]
        if errors:
            log(f"{request['id']}: the platform cannot fetch: {'; '.join(errors)}")
            self.report(request, Report("accepted", f"the platform cannot fetch: {'; '.join(errors)}"))
        elif tries == 1:
            self._due.pop(request["id"])

    def _started(self, request: Request, started: Mapping[str, Any]) -> None:
        self._note(request, sent_at=None, tries=0, found=started["id"])
        log(f"{request['id']} is {started['urls']['display']}")
        self._tell(request, started)

    def _look(self, request: Request, found: str) -> None:
        """Read the state of what was started, and report it."""
        try:
            self._tell(request, self._platform.call("GET", f"{valohai_api.kind_of(request)}/{found}/"))
        except Refused as error:
            self._end(request, Report("failed", f"its execution is gone: {error}"))

    def _tell(self, request: Request, whole: Mapping[str, Any]) -> None:
        """Report a state that is new, or that was reported a while ago."""
        state = valohai_api.STATES.get(whole["status"], "running")
        if whole["status"] in valohai_api.ENDS:
            self._end(request, self._verdict(whole, state))
            return
        seen, at = self._reported.get(request["id"], ("", 0.0))
        if state != seen or time.monotonic() > at + REPORT_EVERY_SECONDS:
            self._reported[request["id"]] = (state, time.monotonic())
            said = f"#{whole['counter']} is {whole['status']}"
            self.report(request, Report(state, said, whole["urls"]["display"]))

    def _verdict(self, whole: Mapping[str, Any], state: str) -> Report:
        """Return the last report: with the metadata, the outputs and, of a failure, the end of the log."""
        duration, metadata = whole.get("duration"), dict(whole.get("cumulative_metadata") or {})
        took = f" after {duration:.0f} s" if isinstance(duration, int | float) else ""
        summary = [f"#{whole['counter']} is {whole['status']}{took}"]
        nodes = whole.get("nodes") or ()
        summary.append("\n".join(f"- node {node['name']} is {node['status']}" for node in nodes))
        for node in nodes:
            of_node = (node.get("execution") or {}).get("cumulative_metadata") or {}
            metadata |= {f"{node['name']}.{name}": value for name, value in of_node.items()}
        if state == "failed" and not nodes:
            summary.append("\n".join(f"    {line}" for line in self._log(whole["id"])))
        outputs = [{"name": one["name"], "url": f"datum://{one['id']}"} for one in whole.get("outputs") or ()]
        url = whole["urls"]["display"]
        return Report(state, "\n\n".join(filter(None, summary)), url, metadata, outputs)

    def _log(self, execution: str) -> list[str]:
        """Return the end of an execution's log; nothing if it cannot be read, because the verdict matters."""
        try:
            events = self._platform.call("GET", f"executions/{execution}/events/?limit=100")["events"]
        except (Refused, Broken, *_MALFORMED) as error:
            return [f"its log cannot be read: {error}"]
        lines = [str(event["message"]).rstrip()[:_MAX_LOG_COLUMNS] for event in events]
        return lines[-_MAX_LOG_LINES:]

    def _end(self, request: Request, report: Report) -> None:
        self.end(request, report)
        self._due.pop(request["id"], None)
        self._reported.pop(request["id"], None)

    def _start_of(self, request: Request) -> tuple[str | None, int, str | None]:
        """Return when the call was sent that has no answer, the tries, and what was started."""
        stored = self.database.execute(
            "SELECT sent_at, tries, found FROM starts WHERE id = ? AND redrive = ?",
            (request["id"], request["redrive"]),
        ).fetchone()
        return (None, 0, None) if stored is None else stored

    def _note(self, request: Request, *, sent_at: str | None, tries: int, found: str | None = None) -> None:
        key = (request["id"], request["redrive"])
        self.database.execute("REPLACE INTO starts VALUES (?, ?, ?, ?, ?)", (*key, sent_at, tries, found))


def _tag(request: Request) -> str:
    """Return the tag of what a request starts: an operator may order that it is started again."""
    again = f"-{request['redrive']}" if request["redrive"] else ""
    return f"pushgate-{request['id']}{again}"


def _age(moment: str) -> float:
    return (datetime.fromisoformat(now()) - datetime.fromisoformat(moment)).total_seconds()


async def main(url: str, count: int | None) -> None:
    """Carry requests to the platform; stop once `count` requests have been taken, and all have ended."""
    carrier = Carrier(Path("carrier.db"), Platform(URL, os.environ["VALOHAI_API_TOKEN"]))
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(QUEUE)
        while True:
            message = None if count == 0 else await queue.get(fail=False)
            if message is not None:
                accepted = carrier.take(message.body, message.headers)
                await (message.ack() if accepted else message.reject(requeue=False))
                count = None if count is None else count - 1
            busy = await asyncio.to_thread(carrier.carry)
            if count == 0 and not busy:
                return
            if message is None:
                await asyncio.sleep(min(1, LOOK_EVERY_SECONDS))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None))  # noqa: PLR2004
