"""The tables events, quarantine and streams."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables. A migration never changes once released, so it does not borrow from the program's schema."""
    op.create_table(
        "events",
        *_identity(),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("room_id", sa.Text),
        sa.Column("job_id", sa.Text),
        sa.Column("sent_at", _TIME, nullable=False),
        sa.Column("received_at", _TIME, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("scene_script_name", sa.Text),
        sa.Column("shoot_script_sequence_no", sa.BigInteger),
        sa.Column("shoot_script_title", sa.Text),
        sa.Column("output_url", sa.Text),
        sa.Column("stream_key", sa.Text),
        sa.Column("state", sa.Text),
        sa.Column("reply_id", sa.Text),
        sa.Column("body", sa.Text, nullable=False),
        _unique("events"),
    )
    op.create_table(
        "quarantine",
        *_identity(),
        sa.Column("received_at", _TIME, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("sent_at", _TIME, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        _unique("quarantine"),
    )
    op.create_table(
        "streams",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("room_id", sa.Text),
        sa.Column("output_url", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("since", _TIME, nullable=False),
        sa.Column("received_at", _TIME, nullable=False),
    )


def _identity() -> list[sa.Column[int]]:
    # On SQLite the id is the row's own number and costs nothing. On PostgreSQL it numbers the rows without an index:
    # the one index is the unique key, which grows at its end and lets the table be partitioned by time.
    if op.get_context().dialect.name == "sqlite":
        return [sa.Column("id", sa.Integer, primary_key=True)]
    return [sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False)]


def _unique(table: str) -> sa.Constraint:
    if op.get_context().dialect.name == "sqlite":
        return sa.UniqueConstraint("sent_at", "digest", name=f"{table}_sent_at_digest")
    return sa.PrimaryKeyConstraint("sent_at", "digest", name=f"{table}_sent_at_digest")
