from __future__ import annotations

from receiver.metrics import Metrics
from receiver.web.status.last_hour import LastHour


def test_what_is_older_is_not_counted() -> None:
    """After an hour what was counted before is gone, and never more than 61 minutes are kept."""
    metrics, minute = Metrics(["a", "b"]), 0.0
    last_hour = LastHour(metrics, lambda: 60 * minute)
    metrics.callbacks_total.labels("a", "accepted").inc(5)
    metrics.callbacks_total.labels("b", "rejected").inc()
    metrics.callbacks_rejected_total.labels("b", "wrong").inc()
    metrics.callbacks_rejected_total.labels("none", "unknown_path").inc(2)
    assert last_hour.figures() == (0, 5, [("none", "unknown_path", 2), ("b", "wrong", 1)])
    for _ in range(60):
        minute += 1
        last_hour.note()
    assert last_hour.figures().accepted == 5
    metrics.callbacks_total.labels("a", "accepted").inc(7)
    minute += 1
    last_hour.note()
    assert last_hour.figures() == (60, 7, [])
