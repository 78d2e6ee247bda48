"""The versions of the store's schema: made new, brought up from an older one, or refused where it is a newer one's.

The steps lie in `study/migrations`, one file each (Alembic). A new store is made whole, from the tables as they are; a
test compares it with one that took all the steps.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from study.errors import RequestError

HEAD = "0004"
VERSION_TABLE = "kdstudy_alembic_version"  # Optuna keeps its own `alembic_version` in the same database

_versions = sa.Table(VERSION_TABLE, sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


def bring_up(connection: sa.Connection, tables: sa.MetaData, where: str) -> None:
    """Make the tables, or bring them to this version, inside of the connection's transaction.

    Raises:
        RequestError: they are of a version that this kdstudy does not know; they stay as they are.
    """
    there = sa.inspect(connection).get_table_names()
    if VERSION_TABLE in there:
        found = connection.scalar(sa.select(_versions.c.version_num))
    elif "kdstudy_schema" in there:  # before Alembic, a number
        found = f"{connection.exec_driver_sql('SELECT version FROM kdstudy_schema').scalar():04d}"
    else:
        tables.create_all(connection)
        _stamp(connection, HEAD)
        return
    if found == HEAD:
        return
    if found is None or found > HEAD:
        raise RequestError(f"{where}: its schema is version {found}, this kdstudy reads {HEAD}; use the newer kdstudy")
    if VERSION_TABLE not in there:
        _stamp(connection, found)
    upgrade(connection, HEAD)


def upgrade(connection: sa.Connection, to: str) -> None:
    """Take the steps from the stored version to another."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def _stamp(connection: sa.Connection, version: str) -> None:
    _versions.create(connection)
    connection.execute(sa.insert(_versions).values(version_num=version))
