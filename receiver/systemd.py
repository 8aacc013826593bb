"""Messages to systemd: the service is ready, or stopping (`Type=notify`)."""

from __future__ import annotations

import os
import socket

READY, STOPPING = "READY=1", "STOPPING=1"


def notify(state: str) -> None:
    """Send `state` to the socket that NOTIFY_SOCKET names; does nothing where there is none, as without systemd.

    Source: sd_notify(3). A name that begins with @ is in the abstract namespace.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            manager.send(state.encode())
