"""The systemd unit, as far as it can be shown without systemd as the first process."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.load import Receiver, ended
from tests.helpers.receiver import SAMPLES, running

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/systemd/receiver.service"
SOCKET = UNIT.with_suffix(".socket")
# What MemoryDenyWriteExecute does, by the kernel's own means (Linux 6.3); then the program that is given.
_NO_EXECUTABLE_MEMORY = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def settings(name: str) -> list[str]:
    """What the unit sets `name` to, in order."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), flags=re.MULTILINE)


def allowed_calls() -> set[str]:
    """The names of the system calls that the unit's filter lets through, by systemd's own table."""

    def members(group: str) -> set[str]:
        shown = subprocess.run(["systemd-analyze", "syscall-filter", group], check=True, capture_output=True, text=True)
        words = {line.strip() for line in shown.stdout.splitlines()[1:] if line.startswith("    ") and "#" not in line}
        return {call for word in words for call in (members(word) if word.startswith("@") else {word})}

    allowed = set[str]()
    for line in settings("SystemCallFilter"):
        words = line.removeprefix("~").split()
        named = set[str]().union(*(members(word) if word.startswith("@") else {word} for word in words))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


def test_hardened() -> None:
    """The judgement of systemd itself on the unit's exposure is under 2 of 10."""
    judge = ["systemd-analyze", "security", "--offline=true", "--threshold=19", "--no-pager", str(UNIT)]
    done = subprocess.run(judge, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("with_socket", [True, False])
def test_understood(tmp_path: Path, *, with_socket: bool) -> None:
    """Each line of the units is one that systemd understands; the service needs no socket unit."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/receiver/bin/receiver", "/bin/true"))
    units = [copy]
    if with_socket:
        units.append(tmp_path / SOCKET.name)
        units[-1].write_text(SOCKET.read_text())
    done = subprocess.run(["systemd-analyze", "verify", *units], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "receiver." not in done.stderr


def test_told_when_ready_and_when_stopping(tmp_path: Path) -> None:
    """It tells systemd that it is ready when it takes callbacks, not before, and that it stops when it begins to."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)
        with running(tmp_path, NOTIFY_SOCKET=str(address)) as receiver:
            assert manager.recv(100) == b"READY=1"
            assert receiver.post(SAMPLES["SHOOT_SCRIPT_SWITCH"]).status == 200
            assert receiver.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"


def test_abstract_socket(tmp_path: Path) -> None:
    """A socket in the abstract namespace, which older systemd uses, is told too."""
    name = f"receiver-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(60)
        with running(tmp_path, NOTIFY_SOCKET=f"@{name}"):
            assert manager.recv(100) == b"READY=1"


def test_key_as_a_credential(tmp_path: Path) -> None:
    """With the unit's environment the key comes from a credential, and the other settings from its file."""
    (tmp_path / "key").write_text("only-in-the-credential\n")
    (tmp_path / "receiver.toml").write_text('live_event_type_callback_url = "https://localhost/callbacks/metastudio"\n')
    places = {"%d": str(tmp_path), "/etc/receiver": str(tmp_path)}
    environ = dict(line.split("=", 1) for line in settings("Environment"))
    for old, new in places.items():
        environ = {name: value.replace(old, new) for name, value in environ.items()}
    shown = subprocess.run(
        [sys.executable, "-m", "receiver", "config", "--registration"],
        env=os.environ | environ,
        check=True,
        capture_output=True,
        text=True,
    )
    assert '"key": "only-in-the-credential"' in shown.stdout


def test_sandbox_lets_it_work(tmp_path: Path) -> None:
    """It starts, stores callbacks and ends with the system calls that the unit allows, and no executable memory."""
    trace = tmp_path / "calls"
    # -D: strace is a child of what it traces, and ends with it, not the other way round.
    under = ["strace", "-D", "-f", "-qq", "-o", str(trace), sys.executable, "-c", _NO_EXECUTABLE_MEMORY]
    receiver = Receiver(tmp_path, under=under)
    with ended(receiver):
        receiver.start()
        for body in SAMPLES.values():
            assert receiver.post(body).status == 200
        assert len(receiver.rows("SELECT * FROM events")) == 3
        assert receiver.stop() == 0
    calls = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), flags=re.MULTILINE))
    assert {"prctl", "fdatasync", "accept4"} <= calls
    # SQLite's fchown, and ours, are for when it is root, which the unit's user is not.
    assert calls - allowed_calls() - {"fchown", "lchown"} == set()
