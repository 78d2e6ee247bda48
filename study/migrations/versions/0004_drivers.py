"""Drivers say who they are; the order of points does not depend on SQLite; Alembic keeps the version."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Points keep the order in which SQLite, the only database until now, has them."""
    op.add_column("kdstudy_points", sa.Column("position", sa.Integer, nullable=False, server_default="0"))
    if op.get_bind().dialect.name == "sqlite":
        op.execute("UPDATE kdstudy_points SET position = rowid")
    op.create_index("ix_kdstudy_points_position", "kdstudy_points", ["study", "position"])
    op.create_table(
        "kdstudy_drivers",
        sa.Column("study", sa.String(100), primary_key=True),
        sa.Column("who", sa.String(300), nullable=False),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
        sa.Column("about", sa.JSON, nullable=False),
    )
    op.execute("DROP TABLE IF EXISTS kdstudy_schema")
