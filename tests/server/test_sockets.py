from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from receiver.server.sockets import ListenError, allow_connections, inherited, listen


def passed(count: str = "1", process: int | None = None) -> dict[str, str]:
    """The environment of a process to which systemd passes sockets; this one, unless `process` is given."""
    return {
        "LISTEN_PID": str(process or os.getpid()),
        "LISTEN_FDS": count,
        "LISTEN_FDNAMES": "receiver.socket",
        "A": "b",
    }


def test_inherited_socket_is_used_and_set_up() -> None:
    """The socket that is passed is the one that listens; no other program that is started gets it."""
    environ = passed()
    with socket.create_server(("127.0.0.1", 0)) as given:
        own = given.dup()
        own.set_inheritable(True)
        listener = inherited(environ, own.detach())
        assert listener
        with listener:
            assert listener.getsockname() == given.getsockname()
            assert not listener.getblocking()
            assert not listener.get_inheritable()
            assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert environ == {"A": "b"}


@pytest.mark.parametrize(
    "environ", [{}, {"LISTEN_FDS": "1"}, passed(process=1), {"LISTEN_PID": "x", "LISTEN_FDS": "1"}]
)
def test_nothing_is_inherited(environ: dict[str, str]) -> None:
    """Without the variables, or with those for another process, nothing is inherited, and the variables are removed."""
    assert inherited(environ, -1) is None
    assert environ.keys() <= {"A"}


@pytest.mark.parametrize("count", ["", "0", "2", "-1", "one"])
def test_one_socket_is_needed(count: str) -> None:
    """Any number but one is refused, naming the variable and the remedy."""
    with pytest.raises(ListenError, match=r"^LISTEN_FDS: .* passed, not 1: .*receiver\.socket"):
        inherited(passed(count), -1)


UNUSABLE: dict[str, Callable[[Path], int]] = {
    "no TCP listener": lambda _: socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(),
    "datagrams": lambda _: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach(),
    "Unix": lambda folder: socket.create_server(str(folder / "socket"), family=socket.AF_UNIX).detach(),
    "a file": lambda folder: os.open(folder, os.O_RDONLY),
    "nothing": lambda _: 10**6,
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_listening_tcp_socket_is_needed(tmp_path: Path, kind: str) -> None:
    """What does not listen for TCP is refused, naming the variable and the remedy."""
    descriptor = UNUSABLE[kind](tmp_path)
    with pytest.raises(ListenError, match=r"^LISTEN_FDS: .*: (use ListenStream=PORT|start it by receiver.socket)"):
        inherited(passed(), descriptor)
    if kind == "a file":
        os.close(descriptor)


def test_a_socket_is_shared_only_if_all_say_so() -> None:
    """Several receivers can listen on one port; an operations listener has its port for itself."""
    with listen("listen", "127.0.0.1", 0, shared=True) as first:
        address = first.getsockname()
        listen("listen", *address, shared=True).close()
        with pytest.raises(
            ListenError, match=r"^operations_listen: cannot listen on 127.0.0.1 port .* to a free address"
        ):
            listen("operations_listen", *address)


def test_connections_need_files() -> None:
    """As many files may be open as connections need; a setting that the system does not allow is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        allow_connections(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 228
        with pytest.raises(ListenError, match=rf"max_connections: .* allows 228 to {hard}: .* to 100 or less"):
            allow_connections(hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
