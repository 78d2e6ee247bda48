"""Alembic's entry: the steps are taken on the connection, and in the transaction, of whoever opens the store."""

from alembic import context

from study.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    transactional_ddl=False,  # the caller's transaction is the one
)
context.run_migrations()
