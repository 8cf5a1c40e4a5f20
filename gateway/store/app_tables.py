"""The table of the GitHub Apps that are being made for sources: see `gateway.store.source_apps`."""

from sqlalchemy import Column, ForeignKey, Integer, LargeBinary, Table, Text

from gateway.store.columns import Instant, metadata

source_apps = Table(
    "source_apps",
    metadata,
    Column("source", ForeignKey("sources.connection"), primary_key=True),
    Column("round", Integer, nullable=False),
    Column("due_at", Instant, index=True),
    Column("attempts", Integer, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("sealed", LargeBinary),
    Column("reason", Text),
)
