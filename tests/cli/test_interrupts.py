"""Ctrl-C ends each command without a traceback, whatever it is doing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.receiver import KEY, Process, wait_until

# `python -m receiver`, which gets the signal while it imports the module that is named first.
INTERRUPTED = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

module = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
runpy.run_module("receiver", run_name="__main__", alter_sys=True)
"""
# For sitecustomize.py: the worker goes on when the signal has been sent.
SLOW_WORKER = """
import pathlib, sys, time
if "receiver.projector.worker" in sys.orig_argv:
    here = pathlib.Path(__file__).parent
    (here / "begun").touch()
    while not (here / "interrupted").exists():
        time.sleep(0.01)
"""
SHOWN_AS_130 = (130, -signal.SIGINT)  # the exit code, or the signal that a shell shows so


def start(command: list[str], database_url: str = "sqlite:///nowhere.db") -> subprocess.Popen[str]:
    environ = {"PATH": os.environ["PATH"], "RECEIVER_KEY": KEY, "RECEIVER_CONFIG": os.devnull}
    environ["RECEIVER_DATABASE_URL"] = database_url
    return subprocess.Popen(
        [sys.executable, *command], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    "module",
    ["receiver.cli", "click", "sqlalchemy.dialects.sqlite.base", "receiver.cli.history", "receiver.cli.status"],
)
def test_while_it_starts(module: str) -> None:
    """While modules are imported, which takes longest of a short command, it ends at once."""
    process = start(["-c", INTERRUPTED, module, "history", "--follow"])
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode in SHOWN_AS_130


def test_while_it_waits() -> None:
    """While it waits for a database that does not answer, too."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        process = start(["-m", "receiver", "history"], f"postgresql+psycopg://a:b@127.0.0.1:{port}/c")
        connection, _ = server.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=60) == ("", "")
    assert process.returncode in SHOWN_AS_130


def test_while_the_worker_of_serve_starts(tmp_path: Path) -> None:
    """`serve` ends in order where the terminal tells all of its processes, and the worker is not ready for that yet."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_WORKER)
    receiver = Process(tmp_path, tls=False)
    environ = os.environ | receiver.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "receiver", "serve"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        serve = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=file, stderr=file, process_group=0)
    wait_until(lambda: (tmp_path / "begun").exists() and "  next  " in log.read_text(), "the worker")
    os.killpg(serve.pid, signal.SIGINT)
    (tmp_path / "interrupted").touch()
    assert serve.wait(60) == 0
    assert "Traceback" not in log.read_text()


def test_where_it_is_ignored() -> None:
    """Where whoever started it has it ignored, as a shell does in the background, it goes on."""
    script = ["-c", f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{INTERRUPTED}", "click", "--help"]
    process = start(script)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "Usage: " in output
