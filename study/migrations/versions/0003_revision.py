"""Uses of runs have a revision, so that a study is followed without reading all of it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """All that is there is of revision 0."""
    op.add_column("kdstudy_study_runs", sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
    op.create_index("ix_kdstudy_study_runs_revision", "kdstudy_study_runs", ["study", "revision"])
