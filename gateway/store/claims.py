"""Scheduling: which process works on which connection, and which connection comes next.

- A connection stays with the process that worked on it last, and so has its mirror, while that process lives.
  Work that has waited for a busy process for `MIRROR_AFFINITY` is open to all processes.
- Projects take turns, and so do the connections of a project: the project with the fewest workers comes
  first, then the one that was served longest ago. A storm in one project does not delay the others.
- The number of connections that are worked on at once is limited for each project and git host, across all
  processes.
- Hosts that hang do not occupy all places of a process: one place is reserved for a host that holds none, and
  another for such a host that answered its last fetch. A host that timed out recently has one place until it
  answers.

Leases carry this state, so it survives the death of a process: its leases count until they expire.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

import sqlalchemy
from sqlalchemy import Row, delete, func, select

from gateway.store import ready_queue
from gateway.store.bulk_sql import upsert_rows
from gateway.store.claim_queries import CANDIDATES, CLAIM_LOCK, GROUPS, RUNNING, TAKE, of_groups
from gateway.store.database import Lock
from gateway.store.ready_queue import times
from gateway.store.tables import processes, turns
from providers.clone_urls import host_of

MIRROR_AFFINITY = timedelta(seconds=10)
"""How long work is reserved for the process that holds its mirror."""

GONE_AFTER = timedelta(seconds=15)
"""A process without a heartbeat for this time is dead. Three are due in it: see `worker.heartbeat`."""

MAX_LEASE_AHEAD = timedelta(minutes=20)
"""No lease or heartbeat reaches further ahead; a later time was set by a wrong clock."""

# Rows of processes that died longer ago are deleted.
_FORGET_AFTER = timedelta(days=1)

# Longer than the longest delay between two tries.
_SILENT_FOR = timedelta(minutes=30)
# Limits the hosts that are known to answer: a claim may have to compare with all of them.
_MAX_ANSWERING = 1000

RESERVED = 2
"""Extra places for hosts that hold none: one for any host, one for hosts that answer."""

# The projects that a claim reads at most; where more projects wait, the next claim reads the following ones.
_MAX_PROJECTS = 256
_NEVER = datetime.min.replace(tzinfo=UTC)
# A claim reads so many more projects than it needs, because others may take the same at the same moment.
_SPARE = 4


class SilentHosts:
    """The git hosts that timed out recently and those that answered, as observed by one process."""

    def __init__(self) -> None:
        """Begin with none."""
        self._since: dict[str, datetime] = {}
        # A dict for its order: the host of the latest fetch comes last.
        self._answering: dict[str, None] = {}

    def record(self, url: str, *, answers: bool, now: datetime) -> None:
        """Record whether the host of a URL answered."""
        host = host_of(url)
        self._answering.pop(host, None)
        if answers:
            self._since.pop(host, None)
            self._answering[host] = None
            if len(self._answering) > _MAX_ANSWERING:
                del self._answering[next(iter(self._answering))]
        else:
            self._since[host] = now

    def timed_out(self, now: datetime) -> list[str]:
        """Return the hosts that timed out recently and have not answered since."""
        # A copy: `record` runs on the event loop, claims run in threads.
        return sorted(host for host, since in list(self._since.items()) if since > now - _SILENT_FOR)

    def answering(self) -> list[str]:
        """Return the hosts that answered their last fetch, at most the latest `_MAX_ANSWERING`."""
        return sorted(self._answering)


@dataclass(slots=True, eq=False)
class _Rotation:
    """The project after which the next claim reads the queue, if more projects wait than one claim reads."""

    after: str = ""


@dataclass(slots=True, eq=False)
class Expired:
    """How many leases this process has found to have expired."""

    count: int = 0

    def take(self) -> int:
        """Return the number since the last call."""
        count, self.count = self.count, 0
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The claims of one process, by its name. `per_project` and `per_host` are limits; 0 means no limit.

    Once a process holds `places` connections, it takes one more on a host where it holds none, and beyond
    that one on such a host that answers.
    """

    process: str
    per_project: int = 0
    per_host: int = 0
    places: int = 0
    silent: SilentHosts = field(default_factory=SilentHosts)
    expired: Expired = field(default_factory=Expired)
    _rotation: _Rotation = field(default_factory=_Rotation)

    def claim(
        self, conn: sqlalchemy.Connection, *, owner: str, now: datetime, until: datetime, most: int = 1
    ) -> list[str]:
        """Take the leases on the next connections, at most so many, and return their ids.

        What is in the queue is read before the lock is taken. Under the lock, the counts are read again: they
        must still be true at the commit.
        """
        self.expired.count += ready_queue.refresh(conn, now=now)
        candidates = self._candidates(conn, self._rotation, now=now, most=most)
        if not candidates:
            return []
        lock_claims(conn)
        by = {"by": owner, "until": until, "of": self.process}
        taken = self._take(conn, candidates, by, now=now, most=most)
        if taken:
            return taken
        # Others were faster. Under the lock nobody is.
        candidates = self._candidates(conn, self._rotation, now=now, most=most)
        return self._take(conn, candidates, by, now=now, most=most)

    def _take(
        self,
        conn: sqlalchemy.Connection,
        candidates: Sequence[str],
        by: Mapping[str, Any],
        *,
        now: datetime,
        most: int,
    ) -> list[str]:
        """Take the leases on those of the candidates whose turn it is, as far as the limits admit them."""
        slots = self._slots(conn, now)
        rows = conn.execute(CANDIDATES, {**times(now), "names": candidates}).all()
        project_of = {row.connection: row.project for row in _choose(slots, rows, now=now, most=most)}
        if not project_of:
            return []
        names = set(conn.execute(TAKE, {**times(now), **by, "names": list(project_of)}).scalars())
        served = sorted({project_of[name] for name in names})
        if served:
            upsert_rows(conn, turns, ("project",), [(project, now) for project in served])
        return [name for name in project_of if name in names]

    def has_work(self, conn: sqlalchemy.Connection, *, now: datetime) -> bool:
        """Return whether a claim may find something. It waits for no other transaction."""
        if ready_queue.has_changed(conn, now=now):
            return True
        # A copy: the next claim has to read the same projects as this look.
        return bool(self._candidates(conn, replace(self._rotation), now=now, most=1))

    def _candidates(
        self, conn: sqlalchemy.Connection, rotation: _Rotation, *, now: datetime, most: int
    ) -> list[str]:
        """Return queued connections that this process may take, and some more: others may be faster."""
        slots = self._slots(conn, now)
        groups = [group for group in _groups(conn, rotation) if slots.admit(group.host, group.project)]
        if not groups:
            return []
        groups.sort(key=lambda group: (slots.of_project[group.project], _turn(group.claimed_at, now)))
        values = {
            **times(now),
            "others": sorted(slots.alive - {self.process}),
            "patient": now - MIRROR_AFFINITY,
            "most": _share({group.project: slots.of_project[group.project] for group in groups}, most),
        }
        found: list[str] = []
        at_once = most + _SPARE
        for start in range(0, len(groups), at_once):
            found += of_groups(conn, groups[start : start + at_once], values)
            if len(found) >= most:
                break
        return found

    def _slots(self, conn: sqlalchemy.Connection, now: datetime) -> "_Slots":
        return _Slots(self, conn.execute(RUNNING, {**times(now), **_since(now)}), now)


def _groups(conn: sqlalchemy.Connection, rotation: _Rotation) -> list[Row[Any]]:
    """Return the hosts and projects that have queued connections, and when each project had its turn."""
    after = rotation.after
    rows = conn.execute(GROUPS, {"after": after, "most": _MAX_PROJECTS}).all()
    last = [row.project for row in rows if row.is_last]
    rotation.after = min(last, default="")
    if after and not last:
        rows = [*rows, *conn.execute(GROUPS, {"after": "", "most": _MAX_PROJECTS})]
    return list({(row.host, row.project): row for row in rows}.values())


def _share(running: Mapping[str, int], most: int) -> int:
    """Return how many of `most` connections one project may get, by how many of each are worked on now.

    Return one more, for the case that another process takes the first.
    """
    counts = list(running.values())
    heapify(counts)
    fewest = counts[0]
    for _ in range(most):
        heapreplace(counts, counts[0] + 1)
    return counts[0] + 2 - fewest


class _Slots:
    """What runs now, and whether more of a project or on a host may run in a process."""

    def __init__(self, claims: Claims, running: Iterable[Row[Any]], now: datetime) -> None:
        """Count what runs, by the rows of `RUNNING`."""
        self._claims = claims
        self.of_project: Counter[str] = Counter()
        self._of_host: Counter[str] = Counter()
        self._mine: Counter[str] = Counter()
        self.alive: set[str] = set()
        for row in running:
            if row.host is None:
                self.alive.add(row.process)
            elif row.project is None:
                self._of_host[row.host] += 1
            else:
                self.add(row.host, row.project, is_mine=row.process == claims.process)
        self._answering = set(claims.silent.answering())
        self._silent = set(claims.silent.timed_out(now))

    def add(self, host: str, project: str, *, is_mine: bool) -> None:
        """Count one more."""
        self.of_project[project] += 1
        self._of_host[host] += 1
        if is_mine:
            self._mine[host] += 1

    def admit(self, host: str, project: str) -> bool:
        """Return whether one more connection of a project, on a host, may be worked on here."""
        most = self._claims.per_project
        return (not most or self.of_project[project] < most) and self.admit_host(host)

    def admit_host(self, host: str) -> bool:
        """Return whether one more connection on a host may be worked on here."""
        if self._claims.per_host and self._of_host[host] >= self._claims.per_host:
            return False
        if self._mine[host]:
            return host not in self._silent and not self._is_busy
        held = self._mine.total()
        return not self._is_busy or held == self._claims.places or host in self._answering

    @property
    def _is_busy(self) -> bool:
        return 0 < self._claims.places <= self._mine.total()


def _turn(claimed_at: datetime | None, now: datetime) -> datetime:
    """Return when a project last had its turn; a project without one comes first. Ignore a time to come."""
    return claimed_at if claimed_at is not None and claimed_at <= now else _NEVER


def _due(row: Row[Any]) -> tuple[datetime, str]:
    return row.due_at, row.connection


def _choose(slots: _Slots, rows: Sequence[Row[Any]], *, now: datetime, most: int) -> list[Row[Any]]:
    """Choose as if one were claimed after the other, each with the counts that the one before has left."""
    waiting: defaultdict[tuple[str, str], list[Row[Any]]] = defaultdict(list)
    turn_of = {}
    for row in sorted(rows, key=_due, reverse=True):
        if row.host is not None:
            waiting[row.host, row.project].append(row)
            turn_of[row.project] = _turn(row.claimed_at, now)

    def rank(host: str, project: str) -> tuple[int, datetime, datetime, str]:
        return (slots.of_project[project], turn_of[project], *_due(waiting[host, project][-1]))

    heads = [(rank(*group), group) for group in waiting]
    heapify(heads)
    chosen: list[Row[Any]] = []
    while heads and len(chosen) < most:
        # With each choice, ranks only grow and fewer groups are admitted.
        ranked, group = heappop(heads)
        if not slots.admit(*group):
            continue
        if rank(*group) == ranked:
            chosen.append(waiting[group].pop())
            slots.add(*group, is_mine=True)
            turn_of[group[1]] = now
        if waiting[group]:
            heappush(heads, (rank(*group), group))
    return chosen


def lock_claims(conn: sqlalchemy.Connection) -> None:
    """Let nobody else claim until this transaction ends, as on SQLite, where there is one writer.

    Do not wait for the disk under the lock: if the server dies, a claim may be forgotten that was made just
    before. Another worker may then take the connection, and the first one notices when it records something.
    """
    if conn.dialect.name != "sqlite":
        conn.execute(CLAIM_LOCK, {"key": Lock.CLAIM.value})


def alive(conn: sqlalchemy.Connection, *, now: datetime) -> list[str]:
    """Return the names of the live worker processes, by their heartbeats."""
    live = select(processes.c.name).where(processes.c.seen_at > now - GONE_AFTER).order_by(processes.c.name)
    return list(conn.execute(live).scalars())


def last_heartbeat(conn: sqlalchemy.Connection) -> datetime | None:
    """Return when a worker process, live or dead, was last seen; None if none was for long."""
    seen: datetime | None = conn.execute(select(func.max(processes.c.seen_at))).scalar()
    return seen


def full_hosts(conn: sqlalchemy.Connection, *, per_host: int, now: datetime) -> list[str]:
    """Return the git hosts on which as many fetches and reconciliations run as may run, or more."""
    running = Counter(row.host for row in conn.execute(RUNNING, {**times(now), **_since(now)}))
    return sorted(host for host, count in running.items() if host is not None and count >= per_host)


def _since(now: datetime) -> dict[str, datetime]:
    """Return the times between which a heartbeat counts."""
    return {"alive_since": now - GONE_AFTER, "ahead": now + MAX_LEASE_AHEAD}


def beat(conn: sqlalchemy.Connection, process: str, *, now: datetime) -> None:
    """Record a heartbeat of this process, and delete processes that died long ago."""
    upsert_rows(conn, processes, ("name",), [(process, now)])
    conn.execute(delete(processes).where(processes.c.seen_at < now - _FORGET_AFTER))


def leave(conn: sqlalchemy.Connection, process: str) -> None:
    """Record that this process ends, which opens its connections to all processes."""
    conn.execute(delete(processes).where(processes.c.name == process))
