"""Supersede the pending requests of earlier commits, for triggers with `policy: latest`."""

from typing import Any

import sqlalchemy
from sqlalchemy import (
    ColumnElement,
    exists,
    or_,
    select,
    union_all,
    update,
)

from gateway.store import commit_statuses, outcomes
from gateway.store.execution_tables import executions
from gateway.store.executions import NewRequest
from gateway.store.tables import ref_updates, refs

# How many of a connection's newest requests are searched for a request of a later move.
_RECENT = 200
# An operator has decided that a republished request, or a re-run, is executed, whatever came later.
_IS_FIRST = (executions.c.redrives == 0) & executions.c.rerun_of.is_(None)


def supersede(
    conn: sqlalchemy.Connection, request: NewRequest, *, ref: str, generation: int, commit: str | None
) -> str:
    """Supersede the trigger's pending requests for earlier moves of a ref.

    Their reason names the new request and its commit. If a later move already has a request, as after
    webhooks in the wrong order, this request is the superseded one. Return the request that remains: the
    caller then stores the outcomes of the deliveries whose requests it has superseded.
    """
    later = _of_a_later_move(conn, request, ref=ref, generation=generation)
    if later is not None:
        # The commit of the later request is only in its body, which is not read here.
        reason = f"{ref} had already moved on, to the commit of request {later}"
        mine = executions.c.id == request.id, executions.c.state == "pending", _IS_FIRST
        _supersede(conn, *mine, superseded_by=later, reason=reason)
    _take_back(
        conn,
        request,
        ref=ref,
        generation=generation,
        by=later or request.id,
        reason=f"{ref} has moved on to {commit}, which has the request {request.id}",
    )
    return later or request.id


def promote(
    conn: sqlalchemy.Connection, ref_update: int, *, connection: str, ref: str, generation: int
) -> None:
    """Raise the generation of a move: its requests now supersede those of the moves before it.

    Read nothing: see `Database.write_inline`.
    """
    conn.execute(update(ref_updates).where(ref_updates.c.seq == ref_update).values(generation=generation))
    _revive(conn, ref_update)
    mine = executions.alias("mine")
    its_request = (
        select(mine.c.id)
        .where(
            mine.c.ref_update == ref_update,
            mine.c.policy == "latest",
            mine.c.trigger == executions.c.trigger,
        )
        .correlate(executions)
    )
    _supersede(
        conn,
        executions.c.connection == connection,
        executions.c.state == "pending",
        _is_of_an_earlier_move(ref, generation),
        its_request.exists(),
        superseded_by=its_request.limit(1).scalar_subquery(),
        reason=f"{ref} turned out to be at another commit",
    )
    of_the_move = select(mine.c.id).where(mine.c.ref_update == ref_update, mine.c.policy == "latest")
    outcomes.follow_requests(
        conn, or_(executions.c.superseded_by.in_(of_the_move), executions.c.ref_update == ref_update)
    )


def _revive(conn: sqlalchemy.Connection, ref_update: int) -> None:
    """Make the superseded requests of a move pending again."""
    superseded = (
        executions.c.ref_update == ref_update,
        executions.c.policy == "latest",
        executions.c.state == "superseded",
    )
    commit_statuses.touch(conn, select(executions.c.seq).where(*superseded))
    pending = {"state": "pending", "superseded_by": None, "reason": None}
    conn.execute(update(executions).where(*superseded).values(pending))


def _take_back(
    conn: sqlalchemy.Connection, request: NewRequest, *, ref: str, generation: int, by: str, reason: str
) -> None:
    _supersede(
        conn,
        executions.c.connection == request.connection,
        executions.c.trigger == request.trigger,
        executions.c.state == "pending",
        _is_of_an_earlier_move(ref, generation),
        superseded_by=by,
        reason=reason,
    )


def _supersede(conn: sqlalchemy.Connection, *where: ColumnElement[bool], **why: Any) -> None:
    """Supersede requests; the provider then shows it."""
    # First, while they still fulfil the condition.
    commit_statuses.touch(conn, select(executions.c.seq).where(*where))
    conn.execute(update(executions).where(*where).values(state="superseded", **why))


def _is_of_an_earlier_move(ref: str, generation: int) -> ColumnElement[bool]:
    """Return a condition on each pending request: these are few, while the earlier moves may be many."""
    return _IS_FIRST & exists().where(
        ref_updates.c.seq == executions.c.ref_update,
        ref_updates.c.ref == ref,
        ref_updates.c.generation < generation,
    )


def _of_a_later_move(
    conn: sqlalchemy.Connection, request: NewRequest, *, ref: str, generation: int
) -> str | None:
    """Return the trigger's request for the latest known move of a ref, if that move is later."""
    position = select(refs.c.generation, refs.c.delivery).where(
        refs.c.connection == request.connection, refs.c.ref == ref
    )
    known = conn.execute(position).one_or_none()
    if known is None or known.generation <= generation:
        return None
    # The requests that were planned last, and those of the present position, however old.
    newest = select(executions.c.seq).where(executions.c.connection == request.connection)
    recent = newest.order_by(executions.c.seq.desc()).limit(_RECENT).subquery()
    present = select(executions.c.seq).where(executions.c.delivery == known.delivery)
    later = (
        select(executions.c.id)
        .join(ref_updates, ref_updates.c.seq == executions.c.ref_update)
        .where(
            executions.c.seq.in_(union_all(select(recent.c.seq), present)),
            executions.c.connection == request.connection,
            executions.c.trigger == request.trigger,
            ref_updates.c.ref == ref,
            ref_updates.c.generation > generation,
        )
        .order_by(ref_updates.c.generation.desc())
        .limit(1)
    )
    return conn.execute(later).scalar()
