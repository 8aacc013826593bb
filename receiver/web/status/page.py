"""Reads the database for the status page, and renders its templates: loaded when the page is first asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import SQLAlchemyError

from receiver.database.database import Database
from receiver.database.errors import problem_of
from receiver.database.history import JobHistory, UnknownJobError
from receiver.database.migration import SchemaError
from receiver.database.overview import MOST_OF_A_JOB, Overview, job, overview, reading
from receiver.text import duration, shortened
from receiver.web.status import figures, view
from receiver.web.status.figures import Sources
from receiver.web.status.reader import DEADLINE, SHARED, NotReadError
from receiver.web.status.texts import TEXTS
from receiver.web.status.words import clock, lasting

_LONGEST_LINE = 500  # characters of what the doctor says
_T = TypeVar("_T")


class Page:
    """Makes the status page from `sources`. Its methods take time, and are not for the event loop's thread."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._database = Database(sources.settings.database_url, deadline=DEADLINE)
        self._lock = threading.Lock()
        self._callbacks_until = float("-inf")
        self._latest_callbacks: view.Callbacks
        self._templates = Environment(
            loader=PackageLoader("receiver.web.status"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "seconds": duration,
            "time": _time,
            "size": _size,
            "lasting": lasting,
            "clock": clock,
        }

    def read_overview(self) -> Overview:
        """What the database holds; raises `NotReadError`."""
        return self._read(lambda connection: overview(connection, self._now()))

    def read_job(self, job_id: str) -> JobHistory | None:
        """A job's history, or None where there is no such job; raises `NotReadError`."""
        try:
            return self._read(lambda connection: job(connection, job_id))
        except UnknownJobError:
            return None

    def status(
        self, language: str, journal: figures.Journal, found: Overview | None, problem: str, *, refresh: int
    ) -> str:
        """The page at `/`; `found` is None where the database was not read, for the `problem`."""
        sources, now = self._sources, self._now()
        is_up, since = sources.database()
        page = view.Status(
            now=now,
            journal=journal,
            database=figures.Database(is_up, datetime.fromtimestamp(since, UTC), problem),
            certificate_end=figures.certificate_end(sources.metrics),
            callbacks=self._callbacks(),
            stored=view.stored(found, now) if found is not None else None,
        )
        return self._render("status.html", language, refresh, page=page)

    def job(self, language: str, history: JobHistory, *, refresh: int) -> str:
        """The page of a job."""
        page = view.job_page(history, self._now(), MOST_OF_A_JOB)
        return self._render("job.html", language, 0 if page.is_over else refresh, page=page)

    def message(self, language: str, name: str, *, refresh: int = 0) -> str:
        """A page that says one thing: the text of this name."""
        return self._render("message.html", language, refresh, message=TEXTS[language][name])

    def _render(self, template: str, language: str, refresh: int, **context: Any) -> str:  # noqa: ANN401 (templates take any)
        texts = TEXTS[language]
        return self._templates.get_template(template).render(context, t=texts, language=language, refresh=refresh)

    def _callbacks(self) -> view.Callbacks:
        # The doctor tries hundreds of signatures for each rejection: many tabs share what it finds.
        with self._lock:
            if self._callbacks_until < time.monotonic():
                self._latest_callbacks = self._examined()
                self._callbacks_until = time.monotonic() + SHARED
            return self._latest_callbacks

    def _examined(self) -> view.Callbacks:
        counted = self._sources.last_hour.figures()
        latest = tuple(
            view.Rejected(
                datetime.fromtimestamp(one.at, UTC),
                one.endpoint,
                one.reason,
                shortened(one.client),
                tuple(shortened(line, _LONGEST_LINE) for line in self._sources.explain(one)),
            )
            for one in self._sources.rejections()
        )
        since = datetime.fromtimestamp(counted.since, UTC)
        return view.Callbacks(since, counted.accepted, tuple(counted.rejected), latest)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._sources.now(), UTC)

    def _read(self, read: Callable[[Connection], _T]) -> _T:
        try:
            self._require_file()
            with reading(self._database, DEADLINE) as connection:
                return read(connection)
        except (SchemaError, SQLAlchemyError) as error:
            raise NotReadError(str(error) if isinstance(error, SchemaError) else problem_of(error)) from error
        finally:
            self._database.close()  # no connection stays open for a page that nobody looks at

    def _require_file(self) -> None:
        url = make_url(self._sources.settings.database_url)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise SchemaError("there is no database yet")


def _time(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}"


def _size(value: int) -> str:
    return f"{value / 2**20:,.0f} MiB"
