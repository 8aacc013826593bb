"""The sender of `receiver send` and `receiver simulate`."""

from __future__ import annotations

from contextlib import closing

from receiver.settings.settings import EndpointSettings
from receiver.tools.sender import Sender
from tests.helpers.http_server import answering
from tests.helpers.receiver import KEY


def test_closed_connection() -> None:
    """What comes to a connection that was kept, and that the server has closed meanwhile, is posted over a new one."""
    with (
        answering(lambda *_: b"", keeps=False) as url,
        closing(Sender(EndpointSettings("default", key=KEY), to=url)) as sender,
    ):
        assert [sender.post(b"{}", 0).status for _ in range(3)] == [200] * 3
