"""When each job ran. A trigger of `events` widens these ranges; here they are used, and narrowed when events go."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, select, update

from receiver.database.schema import events, jobs


def of_job(job_id: str) -> ColumnElement[bool]:
    """That an event is of this job: looked for only where the job's range is, as there is no index of events by job."""
    its = jobs.c.job_id == job_id
    first = select(jobs.c.first_sent_at).where(its).scalar_subquery()
    until = select(jobs.c.sent_until).where(its).scalar_subquery()
    return and_(events.c.job_id == job_id, events.c.sent_at >= first, events.c.sent_at <= until)


def narrow(connection: Connection, before: datetime) -> None:
    """Once events that were sent before a time are gone: remove the jobs that had no others, and move up the rest.

    A job that another receiver widens meanwhile is left as that one makes it.
    """
    late = select(events.c.job_id).where(events.c.sent_at < before, events.c.job_id.is_not(None))
    connection.execute(delete(jobs).where(jobs.c.sent_until < before, jobs.c.job_id.not_in(late)))
    begun = select(jobs.c.job_id, jobs.c.first_sent_at, jobs.c.sent_until).where(jobs.c.first_sent_at < before)
    for job_id, first, until in connection.execute(begun).all():
        left = select(events.c.sent_at).where(of_job(job_id)).order_by(events.c.sent_at).limit(1)
        oldest = connection.scalar(left)
        unchanged = and_(jobs.c.job_id == job_id, jobs.c.first_sent_at == first, jobs.c.sent_until == until)
        if oldest is None:
            connection.execute(delete(jobs).where(unchanged))
        else:
            connection.execute(update(jobs).where(unchanged).values(first_sent_at=oldest))
