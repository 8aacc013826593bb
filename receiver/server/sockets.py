"""The listening sockets: opened here, or inherited from systemd, and the open files that connections need."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import MutableMapping

_BACKLOG = 4096
# Bytes of each connection, in the kernel and in one read: much more than a callback has. Over TLS what is read at once
# is in memory three times, and its place is kept for as long as the connection.
_RECEIVE_BUFFER = 2**14
_OTHER_FILES = 128  # beside connections: the journal, the database, the log


class ListenError(Exception):
    """A listener cannot be set up. The message names the setting and the remedy."""


def listen(setting: str, host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket on `host` and `port`, given by `setting`; other receivers can listen on a `shared` one too."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG, reuse_port=shared)
    except OSError as error:
        who = "another program, or another user's receiver, running?" if shared else "another receiver running?"
        raise ListenError(
            f"{setting}: cannot listen on {host} port {port} ({error.strerror}): is {who} stop it,"
            f" or set `{setting}` to a free address"
        ) from error
    return _prepared(listener)


def inherited(environ: MutableMapping[str, str] = os.environ, first_descriptor: int = 3) -> socket.socket | None:
    """The listening socket that systemd has opened for this process, if it has (socket activation).

    Source: sd_listen_fds(3). The variables are removed, so that no child process takes them for its own.
    """
    process, count, _ = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if process != str(os.getpid()):  # not set, or for a parent of ours
        return None
    if count != "1":
        raise ListenError(
            f"LISTEN_FDS: {count or 'no'} sockets are passed, not 1: let receiver.socket have one Listen…= line"
        )
    try:
        listener = socket.socket(fileno=first_descriptor)
    except OSError as error:
        raise ListenError(
            f"LISTEN_FDS: what is passed is no socket ({error.strerror}): start it by receiver.socket"
        ) from error
    if (
        listener.family not in (socket.AF_INET, socket.AF_INET6)
        or listener.type != socket.SOCK_STREAM
        or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        listener.close()
        raise ListenError("LISTEN_FDS: the socket passed does not listen for TCP: use ListenStream=PORT and Accept=no")
    listener.set_inheritable(False)
    return _prepared(listener)


def _prepared(listener: socket.socket) -> socket.socket:
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)  # which its connections inherit
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # likewise
    return listener


def allow_connections(most: int) -> None:
    """Raise this process's limit of open files so that `most` connections fit; raises `ListenError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = most + _OTHER_FILES
    if soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError) as error:  # over the hard limit, or in a sandbox
        raise ListenError(
            f"max_connections: {most} connections need {needed} open files, and the system allows {soft} to {hard}:"
            f" raise that (ulimit -n, LimitNOFILE=), or set `max_connections` to {max(1, soft - _OTHER_FILES)} or less"
        ) from error
