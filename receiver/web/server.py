"""Sockets, TLS, and uvicorn under both listeners."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

_BACKLOG = 2048


class ListenError(Exception):
    """A listener cannot be set up. The message names the setting and the remedy."""


class Server(uvicorn.Server):
    """uvicorn that leaves signals to the application, which has two of these to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def listen(setting: str, host: str, port: int) -> socket.socket:
    """A listening socket on `host` and `port`, given by `setting`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ListenError(
            f"{setting}: cannot listen on {host} port {port} ({error.strerror}): is another receiver running? stop it,"
            f" or set `{setting}` to a free address"
        ) from error


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or later, with `certificate` (PEM, the chain included) and its `key`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        problem = "do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else "are not in PEM format"
        raise ListenError(f"tls_certificate {certificate} and tls_key {key} {problem}") from error
    except OSError as error:
        raise ListenError(f"tls_certificate {certificate} or tls_key {key}: {error.strerror}") from error
    return context


def create_server(app: ASGIApp, *, tls: ssl.SSLContext | None = None, grace: int) -> Server:
    """A server for `app`, to be run with `serve(sockets=…)`; requests under way at its end get `grace` seconds."""
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        # uvicorn's own access log prints the query, and with it hwSecret.
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=grace,
        ssl_context_factory=None if tls is None else (lambda _config, _default: tls),
    )
    return Server(config)
