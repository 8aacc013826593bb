"""The operations listener: ``/metrics``, ``/healthz`` (the process lives), ``/readyz`` (the journal takes writes).

Also the status page, where it is to be there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from receiver.delivery import NotDurableError
from receiver.web.callbacks import HEALTH_PATH, health


def operations_app(
    registry: CollectorRegistry, check_journal: Callable[[], Awaitable[None]], more: Sequence[BaseRoute] = ()
) -> ASGIApp:
    """The ASGI application, with `more` routes.

    `check_journal` raises `NotDurableError` where a delivery would not be taken.
    """

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def readyz(_request: Request) -> Response:
        try:
            await check_journal()
        except NotDurableError as error:
            return JSONResponse({"status": "unavailable", "problem": str(error)}, status_code=503)
        return JSONResponse({"status": "ok"})

    routes = [Route("/metrics", metrics), Route(HEALTH_PATH, health), Route("/readyz", readyz), *more]
    return Router(routes, redirect_slashes=False)
