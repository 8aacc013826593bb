"""A receiver that is started on a listening socket, as systemd does it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.helpers.load import Receiver

# Makes the descriptor that is given the first one after standard error, then becomes the program that is given.
_PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


class ActivatedReceiver(Receiver):
    """A receiver on `listener`, which stays open when the receiver ends."""

    def __init__(self, folder: Path, listener: socket.socket, *, tls: bool = True) -> None:
        super().__init__(folder, tls=tls)
        self.port = listener.getsockname()[1]  # and not the one of the setting, which must not be used
        self._listener = listener

    def spawn(self) -> Self:
        """Start, and wait for nothing."""
        descriptor = self._listener.fileno()
        with self._out.open("wb") as stdout, self.log_file.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PASS, str(descriptor), sys.executable, "-m", "receiver", "serve"],
                cwd=self.folder,
                env=os.environ | self.environ,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[descriptor],
            )
        return self
