"""The first schema: the tables as they were when a version was first kept."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "kdstudy_studies",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("info", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("wall_seconds", sa.Float, nullable=False),
    )
    op.create_table(
        "kdstudy_points",
        sa.Column("study", sa.String(100), sa.ForeignKey("kdstudy_studies.name"), primary_key=True),
        sa.Column("stage", sa.String(10), primary_key=True),
        sa.Column("point_id", sa.String(16), primary_key=True),
        sa.Column("pair", sa.String(200), nullable=False),
        sa.Column("method", sa.String(100), nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("trial", sa.Integer),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("value", sa.Float),
    )
    op.create_table(
        "kdstudy_runs",
        sa.Column("run_id", sa.String(16), primary_key=True),
        sa.Column("identity", sa.JSON, nullable=False),
        sa.Column("state", sa.String(10), nullable=False, index=True),
        sa.Column("owner", sa.String(100)),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("epochs", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("checkpoint", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("device", sa.String(100)),
        sa.Column("device_seconds", sa.Float, nullable=False),
        sa.Column("summary", sa.JSON),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("ended", sa.Float),
    )
    op.create_table(
        "kdstudy_study_runs",
        sa.Column("study", sa.String(100), sa.ForeignKey("kdstudy_studies.name"), primary_key=True),
        sa.Column("stage", sa.String(10), primary_key=True),
        sa.Column("point_id", sa.String(16), primary_key=True),
        sa.Column("run_id", sa.String(16), sa.ForeignKey("kdstudy_runs.run_id"), primary_key=True, index=True),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("screening", sa.Boolean, nullable=False),
        sa.Column("pruned", sa.Boolean, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "kdstudy_results",
        sa.Column("run_id", sa.String(16), sa.ForeignKey("kdstudy_runs.run_id"), primary_key=True),
        sa.Column("epoch", sa.Integer, primary_key=True),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
    )
    op.create_table(
        "kdstudy_requests",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study", sa.String(100), nullable=False, index=True),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "kdstudy_tracked",
        sa.Column("study", sa.String(100), primary_key=True),
        sa.Column("key", sa.String(300), primary_key=True),
        sa.Column("tracking_uri", sa.String(500), primary_key=True),
        sa.Column("mlflow_run_id", sa.String(64), nullable=False),
        sa.Column("cursor", sa.Integer, nullable=False),
        sa.Column("shown", sa.Text),
    )
