"""The servers that the receiver is measured against.

Run as `python -m tests.bench.servers NAME PORT [--tls=CERTIFICATE --tls=KEY] [DATABASE_URL]`.
`ceiling` is uvicorn and Starlette answering 200 after reading the body. `tutorial` is the usual way to keep a webhook:
one handler, one ORM session and one commit a request.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable

import uvicorn
from sqlalchemy import BigInteger, Integer, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Handler = Callable[[Request], Awaitable[Response]]


class Base(DeclarativeBase):
    """The tutorial's tables."""


class Event(Base):
    """The tutorial's event."""

    __tablename__ = "tutorial_events"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    event_type: Mapped[str]
    room_id: Mapped[str]
    job_id: Mapped[str]
    message: Mapped[str]


async def ceiling(request: Request) -> Response:
    """Read the body, and no more."""
    await request.body()
    return JSONResponse({"status": "accepted"})


def tutorial(database_url: str) -> Handler:
    """Parse, add, commit."""
    engine = create_engine(database_url)
    Base.metadata.create_all(engine)

    def keep(outer: dict[str, str]) -> None:
        inner = json.loads(outer["message"])
        with Session(engine) as session:
            session.add(
                Event(
                    event_type=outer["event_type"],
                    room_id=inner["room_id"],
                    job_id=inner["job_id"],
                    message=outer["message"],
                )
            )
            session.commit()

    async def handle(request: Request) -> Response:
        await run_in_threadpool(keep, await request.json())
        return JSONResponse({"status": "accepted"})

    return handle


def main(name: str, port: str, *rest: str) -> None:
    """Serve until the process is ended."""
    certificate, key = [one.removeprefix("--tls=") for one in rest if one.startswith("--tls=")] or (None, None)
    database_url = [one for one in rest if not one.startswith("--tls=")]
    handler = ceiling if name == "ceiling" else tutorial(*database_url)
    uvicorn.run(
        Starlette(routes=[Route("/callbacks/metastudio", handler, methods=["POST"])]),
        port=int(port),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
