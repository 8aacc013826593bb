"""Listening sockets: opened so that a second receiver can take over, and closed without losing a connection."""

from __future__ import annotations

import array
import contextlib
import errno
import resource
import socket

_BACKLOG = 2048
_OTHER_FILES = 128  # beside connections: the journal, the database, the log
_SO_ATTACH_FILTER = 26
# A classic BPF program over the TCP header: drop what has SYN and not ACK. Each instruction is code, jumps, operand.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # is it SYN alone?
    (0x06, 0, 0, 0),  # yes: nothing of it is let through
    (0x06, 0, 0, 0xFFFFFFFF),  # no: all of it
)


class ListenError(Exception):
    """A listener cannot be set up. The message names the setting and the remedy."""


def listen(setting: str, host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket on `host` and `port`, given by `setting`; another receiver's may be on a `shared` one too."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG, reuse_port=shared)
    except OSError as error:
        who = "another program, or another user's receiver, running?" if shared else "another receiver running?"
        raise ListenError(
            f"{setting}: cannot listen on {host} port {port} ({error.strerror}): is {who} stop it,"
            f" or set `{setting}` to a free address"
        ) from error
    listener.setblocking(False)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # which its connections inherit
    return listener


def stop_new_connections(listener: socket.socket) -> None:
    """Let no further connection begin on `listener`, while those that have begun can still be accepted.

    Closing it at once would reset connections that wait to be accepted. So their first packet is dropped instead: the
    client's kernel sends it again after a second, and then it reaches the receiver that has taken over the port.
    """
    program = array.array("Q", [code | yes << 16 | no << 24 | operand << 32 for code, yes, no, operand in _DROP_SYN])
    address, length = program.buffer_info()
    filter_ = array.array("Q", [length, address]).tobytes()  # struct sock_fprog
    with contextlib.suppress(OSError):  # a kernel without it: what then waits in the queue is accepted all the same
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)


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


def is_exhausted(error: OSError) -> bool:
    """Whether the machine has no more files or memory for a connection."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
