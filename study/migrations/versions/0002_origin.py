"""Points say who proposed them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Nobody knows it of the points that are there."""
    op.add_column("kdstudy_points", sa.Column("origin", sa.String(200), nullable=False, server_default=""))
