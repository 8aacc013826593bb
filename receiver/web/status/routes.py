"""The status page's routes: ``/``, ``/jobs/ID`` and ``/status.css``, for people in a browser.

Only what is asked for here is loaded: a receiver whose page nobody opens has no more in memory than without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from receiver.delivery import NotDurableError
from receiver.web.status import figures
from receiver.web.status.figures import Sources
from receiver.web.status.hosts import is_own_host
from receiver.web.status.reader import NotReadError, Reader
from receiver.web.status.texts import preferred

if TYPE_CHECKING:
    from receiver.web.status.page import Page

logger = logging.getLogger(__name__)

_REFRESH = 10  # seconds
_JOURNAL_DEADLINE = 2.0  # seconds
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; frame-ancestors 'none';"
    " base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_WRONG_HOST = "The name in the URL is none of this listener's: use its address, or add the name to status_page_hosts.\n"
_FAILED = "The page cannot be shown: the receiver's log says why.\n"
_T = TypeVar("_T")
_Answer = Callable[[Request], Awaitable[Response]]


def status_routes(sources: Sources) -> list[Route]:
    """The routes, for the operations listener."""
    site = _Site(sources)
    handlers = {"/": site.overview, "/jobs/{job_id:path}": site.job, "/status.css": site.stylesheet}
    return [Route(path, site.guarded(handler), methods=["GET"]) for path, handler in handlers.items()]


class _Site:
    def __init__(self, sources: Sources) -> None:
        host = sources.settings.operations_listen[0].lower()
        self._names = {host, *sources.settings.status_page_hosts}
        self._sources = sources
        self._reader = Reader()
        self._page: Page | None = None
        self._stylesheet = files("receiver.web.status").joinpath("templates/status.css").read_bytes()

    def guarded(self, handler: _Answer) -> _Answer:
        """The handler, with the check of the host, and with an answer and the headers whatever happens."""

        async def answer(request: Request) -> Response:
            if not is_own_host(request.scope["headers"], self._names):
                response: Response = PlainTextResponse(_WRONG_HOST, 421)
            else:
                try:
                    response = await handler(request)
                except Exception:
                    logger.exception("status page failed")
                    response = PlainTextResponse(_FAILED, 503)
            response.headers.update(_HEADERS)
            return response

        return answer

    async def overview(self, request: Request) -> Response:
        """The page at `/`. Where the database does not answer, it says so and shows the rest."""
        page, language = await self._loaded(), _language(request)
        journal, (found, problem) = await asyncio.gather(self._journal(), self._read(None, page.read_overview))
        html = await asyncio.to_thread(page.status, language, journal, found, problem, refresh=_refresh(request))
        return _html(html, language)

    async def job(self, request: Request) -> Response:
        """The page of the job whose id is the rest of the path."""
        page, language, job_id = await self._loaded(), _language(request), request.path_params["job_id"]
        history, problem = None, ""
        if "\0" not in job_id:  # which no database takes
            history, problem = await self._read(job_id, partial(page.read_job, job_id))
        if history is not None:
            html = await asyncio.to_thread(page.job, language, history, refresh=_refresh(request))
            return _html(html, language)
        if problem:
            html = await asyncio.to_thread(page.message, language, "job_not_read", refresh=_refresh(request))
            return _html(html, language, 503)
        return _html(await asyncio.to_thread(page.message, language, "not_found"), language, 404)

    async def stylesheet(self, _request: Request) -> Response:
        """The page's own stylesheet."""
        return Response(self._stylesheet, media_type="text/css")

    async def _loaded(self) -> Page:
        if self._page is None:
            self._page = await asyncio.to_thread(_load, self._sources)
        return self._page

    async def _read(self, job_id: str | None, work: Callable[[], _T]) -> tuple[_T | None, str]:
        """What was read; or None, and why not."""
        try:
            return await self._reader.read(job_id, work), ""
        except NotReadError as error:
            return None, str(error)

    async def _journal(self) -> figures.Journal:
        takes: bool | None = True
        problem = ""
        try:
            async with asyncio.timeout(_JOURNAL_DEADLINE):
                await self._sources.check_journal()
        except NotDurableError as error:
            takes, problem = False, str(error)
        except TimeoutError:
            takes = None
        return figures.journal(self._sources.metrics, problem, takes=takes)


def _load(sources: Sources) -> Page:
    # What renders the page, and what reads the database, take a moment and memory that few receivers need.
    from receiver.web.status.page import Page  # noqa: PLC0415

    return Page(sources)


def _html(text: str, language: str, status: int = 200) -> Response:
    return HTMLResponse(text, status, {"Content-Language": language, "Vary": "Accept-Language"})


def _refresh(request: Request) -> int:
    """Every how many seconds the page is to ask again; 0 where it was asked for with `?paused`."""
    return 0 if "paused" in request.query_params else _REFRESH


def _language(request: Request) -> str:
    return preferred(",".join(request.headers.getlist("accept-language")))
