"""The table of requests with a key: see `gateway.store.idempotency`."""

from sqlalchemy import Column, LargeBinary, Table, Text

from gateway.store.columns import Instant, metadata

# `id` is a keyed hash of the client's token and its key, `fingerprint` one of the request. `held_until` is
# null once the answer is there; `sealed` is the answer, which may contain a new secret.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("begun_at", Instant, nullable=False, index=True),
    Column("held_until", Instant),
    Column("sealed", LargeBinary),
)
