"""What the platform says of its jobs, and when it was asked last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create both tables; the second has one row, without a time until `receiver reconcile` has run."""
    op.create_table(
        "platform_jobs",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("room_id", sa.Text),
        sa.Column("room_name", sa.Text),
        sa.Column("state", sa.Text),
        sa.Column("start_time", _TIME),
        sa.Column("end_time", _TIME),
        sa.Column("stream_duration", sa.Double),
        sa.Column("error_code", sa.Text),
        sa.Column("error_msg", sa.Text),
        sa.Column("block_reason", sa.Text),
        sa.Column("finding", sa.Text),
        sa.Column("checked_at", _TIME, nullable=False),
    )
    platform_check = op.create_table("platform_check", sa.Column("checked_at", _TIME))
    op.bulk_insert(platform_check, [{"checked_at": None}])
