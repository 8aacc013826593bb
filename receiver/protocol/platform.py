"""What the platform's API says of a job, and what may be wrong between it and the callbacks."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """The `state` of a `SmartLiveJob`, which says nothing of its stream."""

    WAITING = "WAITING"
    PROCESSING = "PROCESSING"
    SUCCEED = "SUCCEED"
    FAILED = "FAILED"
    BLOCKED = "BLOCKED"


OPEN = (JobState.WAITING, JobState.PROCESSING)
ENDED = (JobState.SUCCEED, JobState.FAILED, JobState.BLOCKED)


class Finding(StrEnum):
    """What `receiver reconcile` finds about a job."""

    END_MISSING = "end_missing"  # it ended there, and no END came
    SILENT = "silent"  # it runs there with our URL, and nothing came for a while
    REGISTERED_ELSEWHERE = "registered_elsewhere"  # its callbacks go to another URL
    DURATION_GAP = "duration_gap"  # it was connected there for longer, or shorter, than here
    UNKNOWN_THERE = "unknown_there"  # it is open here, and the platform has none such


LOST = (Finding.END_MISSING, Finding.SILENT)  # with these callbacks did not come
