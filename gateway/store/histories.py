"""Read and write the histories of refs, which `gateway.store.ref_history` interprets."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeVar

import sqlalchemy
from sqlalchemy import text

from gateway.store import supersession
from gateway.store.bulk_sql import MAX_VALUES, select_pairs, upsert_rows
from gateway.store.ref_gaps import dump_gaps, load_gaps
from gateway.store.ref_history import RefHistory
from gateway.store.ref_moves import Recorded
from gateway.store.tables import refs

_LATEST = (
    "SELECT connection, ref, before, after, generation, delivery, shown, shown_id, gaps FROM {wanted}refs"
    " WHERE connection = first AND ref = second"
)

_MOVES = (
    "SELECT connection, ref, before, after, generation, delivery, seq, state FROM {wanted}ref_updates"
    " WHERE connection = first AND after = second"
)

# A repetition is a row too. This bounds the rows that are read for an id, however often it was delivered.
_MAX_ROWS_OF_AN_ID = 200

_LOCK = text(
    "SELECT pg_advisory_xact_lock(hashtextextended(name, 0))"
    " FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS given (name, place) ORDER BY place"
)

Key = tuple[str, str]

T = TypeVar("T")


def read_histories(conn: sqlalchemy.Connection, keys: Collection[Key]) -> dict[Key, RefHistory]:
    """Return the histories of refs by connection and ref name, without the recorded moves."""
    found = {key: RefHistory(exists=False) for key in keys}
    for part in parts(list(keys)):
        for connection, ref, *row in select_pairs(conn, _LATEST, part):
            before, after, generation, delivery, shown, shown_id, gaps = row
            found[connection, ref] = RefHistory(
                exists=True,
                before=before,
                after=after,
                generation=generation,
                delivery=delivery,
                shown=shown,
                shown_id=shown_id,
                gaps=load_gaps(gaps),
            )
    return found


def load_moves(
    conn: sqlalchemy.Connection, wanted: Mapping[Key, set[str]], histories: Mapping[Key, RefHistory]
) -> None:
    """Read the recorded moves of refs to the wanted ids into their histories."""
    moves: dict[Key, list[Recorded]] = {key: [] for key in wanted}
    repetitions: dict[Key, list[Recorded]] = {key: [] for key in wanted}
    pairs = {(connection, commit) for (connection, _), ids in wanted.items() for commit in ids}
    for part in parts(sorted(pairs)):
        rows = select_pairs(conn, _MOVES, part, most=_MAX_ROWS_OF_AN_ID)
        for connection, ref, before, after, generation, delivery, seq, state in rows:
            if after in wanted.get((connection, ref), ()):
                recorded = Recorded(
                    before=before, after=after, generation=generation, delivery=delivery, seq=seq
                )
                found = repetitions if state == "duplicate" else moves
                found[connection, ref].append(recorded)
    for key, its_ids in wanted.items():
        histories[key].load(moves[key], its_ids, repetitions[key])


def write_histories(conn: sqlalchemy.Connection, histories: Mapping[Key, RefHistory]) -> None:
    """Write the histories of refs, and the recorded moves whose generation was raised."""
    plain, whole = [], []
    for (connection, ref), history in histories.items():
        row = (connection, ref, history.before, history.after, history.generation, history.delivery)
        if history.is_rewritten:
            whole.append((*row, history.shown, history.shown_id, dump_gaps(history.gaps)))
        else:
            plain.append(row)
        raised = {move.seq: move.generation for move in history.promoted if move.seq is not None}
        # The oldest first: the requests of each supersede those of the moves before it.
        for seq, generation in sorted(raised.items(), key=lambda one: one[1]):
            supersession.promote(conn, seq, connection=connection, ref=ref, generation=generation)
    for rows in (plain, whole):
        if rows:
            upsert_rows(conn, refs, ("connection", "ref"), rows)


def lock_connections(conn: sqlalchemy.Connection, names: Iterable[str]) -> None:
    """Lock connections, so that no other transaction decides on their deliveries until this transaction ends.

    SQLite has a single writer. On PostgreSQL several processes write at once; all take the locks in the same
    order, which rules out deadlocks.
    """
    if conn.dialect.name != "sqlite":
        conn.execute(_LOCK, {"names": sorted(names)})


def parts(keys: list[T]) -> Iterator[list[T]]:
    """Return parts of a list of keys, each small enough for the bound values of one statement."""
    return (keys[start : start + MAX_VALUES // 2] for start in range(0, len(keys), MAX_VALUES // 2))
