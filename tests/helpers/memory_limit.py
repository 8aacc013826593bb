"""A limit on the memory of a command and all that it starts: a control group where one can be made, else an rlimit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from tests.helpers.receiver import wait_until

_GROUPS = Path("/sys/fs/cgroup")
# Of version 2 and of version 1: where a group is made, and which of its files has the limit.
_KINDS = ((_GROUPS, "memory.max"), (_GROUPS / "memory", "memory.limit_in_bytes"))


@contextmanager
def memory_limit(most_bytes: int) -> Iterator[list[str]]:
    """What to put in front of the command, which has to have ended when the block does.

    All of it together has no more than `most_bytes`, and is killed for more. Where no group can be made, each process
    by itself has no more.
    """
    for folder, file in _KINDS:
        if group := _new_group(folder, file, most_bytes):
            break
    else:
        yield ["prlimit", f"--data={most_bytes}"]
        return
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the end of all that is in the group")
        group.rmdir()


def _new_group(folder: Path, file: str, most_bytes: int) -> Path | None:
    try:
        group = Path(mkdtemp(prefix="receiver-", dir=folder))
    except OSError:
        return None
    try:
        with (group / file).open("r+") as limit:  # which is there, unless this is an ordinary folder
            limit.write(str(most_bytes))
    except OSError:
        group.rmdir()
        return None
    return group
