"""Alembic's entry: migrate over the connection that the caller opened.

Where the caller has begun no transaction, each migration has one of its own.
"""

from alembic import context

from gateway.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
