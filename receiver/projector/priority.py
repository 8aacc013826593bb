"""The worker's place behind the callbacks: for the processor, and where the kernel has no memory left.

Nothing here is needed for it to work. Where a kernel or a sandbox does not have it, callbacks are only slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from pathlib import Path

_NICE = 10
# With kernels from 6.12 on: who asks for more at a time has it later, so that an answer, which takes a tenth of a
# millisecond, does not wait for the rows that are stored meanwhile. The share of the processor stays the same.
_SLICE = 20_000_000  # nanoseconds
_FIRST_TO_BE_KILLED = 500  # of 1,000; the process that takes callbacks has 0
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # neither Python nor older C libraries have the system call by name


def stand_back() -> None:
    """Let this thread, and those that it starts, come after other processes."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    # Without systemd or a container the kernel compares sessions first, and the worker has one of its own (sched(7)).
    for file, value in (("autogroup", _NICE), ("oom_score_adj", _FIRST_TO_BE_KILLED)):
        with contextlib.suppress(OSError):
            Path("/proc/self", file).write_text(str(value))
    if (number := _SCHED_SETATTR.get(platform.machine())) is not None:
        # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period (sched_setattr(2)).
        attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, _NICE, 0, _SLICE, 0, 0)
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)
