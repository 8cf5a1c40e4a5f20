"""Looks: what one reading of a remote's refs has found, and what it means for the connection's refs.

A move that a first look finds counts only after a second look has confirmed it: the first look may have come
between a push and its webhook, or read a replica that lags. `gateway.store.ref_history` interprets sightings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import or_, select, update

from gateway.store import accept, other_repositories, redeliveries
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.histories import Key, load_moves, lock_connections, read_histories, write_histories
from gateway.store.reconciliations import Reconciliation, postpone
from gateway.store.ref_gaps import is_order_assumed, load_gaps
from gateway.store.ref_history import RefHistory
from gateway.store.tables import deliveries, reconciliations, refs
from providers.model import RefUpdate

MAX_INTERVAL_FACTOR = 12
"""The longest delay between two reconciliations, as a multiple of the ordinary delay."""

_MAX_EASED_DELAY = timedelta(days=1)
_PART = 5000
_NONE: Mapping[str, str | None] = {}


def record(
    conn: sqlalchemy.Connection,
    reconciliation: Reconciliation,
    new: NewDelivery,
    *,
    next_at: datetime,
    look_again_at: datetime | None = None,
    agreeing: Mapping[str, str | None] = _NONE,
    default_branch: str | None = None,
) -> Receipt | None:
    """End a reconciliation: record what it found, except what deliveries have reported since it began.

    Return None if nothing is left to record. `new` has a ref update for each ref that was not at its
    known position when the reconciliation began; `agreeing` has the other refs, with their positions. A move
    that needs a second look is left to one at `look_again_at`; None means that no move needs one. `next_at`
    is when the next reconciliation is due at the earliest: it is postponed further while webhooks report
    every move. `default_branch` is None if it was not read.
    """
    look = _Look(reconciliation, new.received_at, look_again_at, default_branch)
    lock_connections(conn, [reconciliation.connection])
    moves, histories = _unreported(conn, reconciliation, new)
    sightings = look.sightings(moves, histories)
    _place(conn, look, sightings, histories)
    receipt = None
    if sightings.found:
        [receipt] = accept.record(conn, [replace(new, updates=tuple(sightings.found))])
        # What was not delivered may be more than pushes.
        redeliveries.make_due(conn, [reconciliation.connection], at=look.now)
    doubtful, has_agreed = _confirm(conn, look, agreeing)
    shown = {**agreeing, **{move.ref: move.after for move in new.updates}}
    other_repositories.relearn(conn, reconciliation.connection, shown)
    agreed = _agreed(conn, reconciliation, receipt, has_agreed=has_agreed)
    unsure = {**sightings.unsure, **doubtful}
    is_ended = not (reconciliation.asked and sightings.unsure)
    _write_outcome(conn, look, receipt, agreed=agreed, unsure=unsure, is_ended=is_ended)
    if unsure and look_again_at is not None:
        postpone(conn, reconciliation, next_at=look_again_at, asked=not is_ended)
    else:
        rare = _eased(next_at - look.now, agreed)
        postpone(conn, reconciliation, next_at=look.now + rare, asked=False)
    return receipt


@dataclass(slots=True)
class _Sightings:
    """The moves of a look, by their meaning. `unsure` are those that a second look must confirm."""

    learned: list[RefUpdate] = field(default_factory=list)
    found: list[RefUpdate] = field(default_factory=list)
    promoted: list[RefUpdate] = field(default_factory=list)
    unsure: dict[str, Sequence[str | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Look:
    """A look at `now`. A second look confirms its moves from `confirmed_from` on; None: they need none."""

    reconciliation: Reconciliation
    now: datetime
    confirmed_from: datetime | None
    default_branch: str | None

    def sightings(self, moves: Mapping[Key, RefUpdate], histories: Mapping[Key, RefHistory]) -> _Sightings:
        """Return what the moves mean.

        The first reconciliation only learns the positions of refs that no webhook has reported: they were
        not pushed.
        """
        is_first = self.reconciliation.is_first
        found = _Sightings()
        for key, history in histories.items():
            move = moves[key]
            means = history.sighting(move.after, now=self.now)
            if means == "lagging" or (is_first and history.is_awaited(now=self.now)):
                continue
            if is_first and not history.is_only_reported:
                found.learned.append(move)
                continue
            # A requested reconciliation takes a move to a new commit at once; a move back must be confirmed.
            is_new = means == "moved" and move.after is not None and not history.was_at(move.after)
            is_sure = self.reconciliation.asked and is_new
            since = None if is_sure else self.unsure_until(move.ref, move.before, move.after)
            if since is not None:
                found.unsure[move.ref] = [move.before, move.after, since.isoformat()]
            elif means == "promoted":
                found.promoted.append(move)
            else:
                found.found.append(move)
        return found

    def unsure_until(self, ref: str, before: str | None, after: str | None) -> datetime | None:
        """Return from when on a later look confirms a move; None if this look confirms it or it needs none.

        A request in the meantime does not change that time.
        """
        since = self.confirmed_from
        *seen, seen_since = self.reconciliation.seen.get(ref) or (None,)
        if since is not None and seen_since is not None and seen == [before, after]:
            since = min(since, datetime.fromisoformat(seen_since))
        return since if since is not None and self.now < since else None


def _unreported(
    conn: sqlalchemy.Connection, reconciliation: Reconciliation, new: NewDelivery
) -> tuple[dict[Key, RefUpdate], dict[Key, RefHistory]]:
    """Return the moves by their refs, and the histories of those refs that no webhook has reported since.

    The look may be older than such a webhook.
    """
    moves = {(reconciliation.connection, move.ref): move for move in new.updates}
    histories = read_histories(conn, moves)
    still = {key: history for key, history in histories.items() if history.after == moves[key].before}
    wanted = {key: history.ids_of_interest(moves[key]) for key, history in still.items()}
    load_moves(conn, wanted, still)
    return moves, still


def _place(
    conn: sqlalchemy.Connection, look: _Look, sightings: _Sightings, histories: Mapping[Key, RefHistory]
) -> None:
    """Learn unknown positions, and correct those whose order was assumed, as the remote shows them."""
    connection = look.reconciliation.connection
    for move in sightings.promoted:
        histories[connection, move.ref].promote(move.after, now=look.now)
    for move in sightings.learned:
        histories[connection, move.ref].learn(move.after)
    changed = [(connection, move.ref) for move in (*sightings.promoted, *sightings.learned)]
    write_histories(conn, {key: histories[key] for key in changed})


def _confirm(
    conn: sqlalchemy.Connection, look: _Look, agreeing: Mapping[str, str | None]
) -> tuple[dict[str, Sequence[str | None]], bool]:
    """Record the positions that the remote has shown; return those that a second look must confirm.

    A second look is needed if the order of moves was assumed: a replica that lags may show an older position.
    The flag is True if a webhook had reported one of the positions.
    """
    connection = look.reconciliation.connection
    unseen = or_(refs.c.shown.is_(None), refs.c.shown != refs.c.generation)
    columns = (refs.c.ref, refs.c.after, refs.c.delivery, refs.c.shown, refs.c.shown_id, refs.c.gaps)
    shown: list[str] = []
    doubtful: dict[str, Sequence[str | None]] = {}
    has_agreed = False
    for row in conn.execute(select(*columns).where(refs.c.connection == connection, unseen)):
        if row.ref not in agreeing or agreeing[row.ref] != row.after:
            continue
        is_assumed = is_order_assumed(load_gaps(row.gaps), shown=row.shown, shown_id=row.shown_id)
        since = look.unsure_until(row.ref, row.after, row.after) if is_assumed else None
        if since is not None:
            doubtful[row.ref] = [row.after, row.after, since.isoformat()]
            continue
        shown.append(row.ref)
        has_agreed = has_agreed or row.delivery is not None
    _mark_shown(conn, connection, shown)
    return doubtful, has_agreed


def _mark_shown(conn: sqlalchemy.Connection, connection: str, names: Sequence[str]) -> None:
    """Record that the remote has shown the known positions of these refs."""
    for start in range(0, len(names), _PART):
        conn.execute(
            update(refs)
            .where(refs.c.connection == connection, refs.c.ref.in_(names[start : start + _PART]))
            .values(shown=refs.c.generation, shown_id=refs.c.after)
        )


def _write_outcome(
    conn: sqlalchemy.Connection,
    look: _Look,
    receipt: Receipt | None,
    *,
    agreed: int,
    unsure: Mapping[str, Sequence[str | None]],
    is_ended: bool,
) -> None:
    """Record what later looks need, and the result, unless the request waits for a second look."""
    reconciliation = look.reconciliation
    values: dict[str, Any] = {"attempts": 0, "reason": None, "agreed": agreed, "seen": unsure or None}
    if look.default_branch is not None:
        values["default_branch"] = look.default_branch
    # A webhook that did not name what was pushed has arrived.
    if receipt is not None and reconciliation.asked_by is None:
        values["recovered"] = receipt.delivery
    if is_ended:
        _answer(conn, reconciliation, receipt)
        values |= {"reconciled_at": look.now, "tried_at": reconciliation.claimed_at}
        values["delivery"] = receipt.delivery if receipt else None
    conn.execute(
        update(reconciliations)
        .where(reconciliations.c.connection == reconciliation.connection)
        .values(**values)
    )


def _answer(conn: sqlalchemy.Connection, reconciliation: Reconciliation, receipt: Receipt | None) -> None:
    """Record the outcome as the reason of the delivery that requested the reconciliation."""
    if reconciliation.asked_by is None:
        return
    outcome = f"delivery {receipt.delivery} has what was found" if receipt else "nothing had moved"
    if reconciliation.is_first:
        outcome = "this was the first look, so it is unknown what has moved"
    conn.execute(
        update(deliveries)
        .where(deliveries.c.id == reconciliation.asked_by)
        .values(reason=f"all refs were compared with the remote's: {outcome}")
    )
    # Another delivery may have requested one meanwhile: its request stays.
    mine = (
        reconciliations.c.connection == reconciliation.connection,
        reconciliations.c.asked_by == reconciliation.asked_by,
    )
    conn.execute(update(reconciliations).where(*mine).values(asked_by=None))


def _agreed(
    conn: sqlalchemy.Connection, reconciliation: Reconciliation, receipt: Receipt | None, *, has_agreed: bool
) -> int:
    """Return how many consecutive looks have confirmed the reports of webhooks, and found nothing else."""
    if receipt is not None:
        return 0
    query = select(reconciliations.c.agreed).where(reconciliations.c.connection == reconciliation.connection)
    # There is no row if the connection was deleted meanwhile.
    before: int = conn.execute(query).scalar_one_or_none() or 0
    return before + 1 if has_agreed else before


def _eased(delay: timedelta, agreed: int) -> timedelta:
    """Return the delay before the next look: doubled after each look that agreed, up to a limit."""
    rare = delay * min(1 << min(agreed, 8), MAX_INTERVAL_FACTOR)
    return max(delay, min(rare, _MAX_EASED_DELAY))
