"""The watch for silent runners."""

import asyncio
import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway.messages.execution_status import ExecutionStatus
from gateway.publish.reports import Hearing
from gateway.store import accept, executions, runs
from gateway.store.database import Database
from gateway.worker.silence import SilenceWatcher
from testing import records
from testing.records import NOW, A, arrival, move


def test_what_is_silent_is_given_up_only_while_reports_are_received(migrated: Path, tmp_path: Path) -> None:
    """The reports of an outage arrive after it: until they are taken in, silence proves nothing."""
    with closing(Database(f"sqlite:///{shutil.copy(migrated, tmp_path)}")) as database:
        watch_silence(database)


def watch_silence(embedded: Database) -> None:
    """Watch a run that has been silent for a day."""
    records.connection(embedded)
    day_ago = datetime.now(UTC) - timedelta(days=1)
    with embedded.writing() as conn:
        accept.record(conn, [arrival(move(None, A), id="d1")])
        executions.add(conn, [records.request("r1")], ref_update=1, now=NOW)
        running = ExecutionStatus(id="r1", state="running", at=NOW, sequence=1)
        runs.record(conn, [running], now=day_ago)
    now, changes = 0.0, list[None]()
    hearing = Hearing(lambda: now)
    watcher = SilenceWatcher(
        database=embedded, hearing=hearing, limit=timedelta(days=1), notify=lambda: changes.append(None)
    )

    def watch(seconds: float) -> bool:
        nonlocal now
        now = seconds
        return asyncio.run(watcher.watch())

    assert not watch(9999)
    hearing.begin()
    assert not watch(10_598)
    hearing.begin()
    assert not hearing.has_lasted(600)
    hearing.end()
    assert not watch(99_999)
    hearing.begin()
    assert not watch(100_598)
    assert (watch(100_599), changes) == (True, [None])
    with embedded.reading() as conn:
        assert executions.get(conn, "r1").shown_state == "lost"
    assert (watch(100_600), changes) == (False, [None])
