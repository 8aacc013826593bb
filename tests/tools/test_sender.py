"""The sender of `receiver send` and `receiver simulate`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from receiver.settings.settings import EndpointSettings
from receiver.tools.sender import Sender
from tests.helpers.receiver import KEY


class _Closing(BaseHTTPRequestHandler):
    """Answers 200, and closes a connection that it has said to keep."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def closing_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Closing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_closed_connection(closing_server: str) -> None:
    """What comes to a connection that was kept, and that the server has closed meanwhile, is posted over a new one."""
    with closing(Sender(EndpointSettings("default", key=KEY), to=closing_server)) as sender:
        assert [sender.post(b"{}", 0).status for _ in range(3)] == [200] * 3
