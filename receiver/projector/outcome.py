"""What became of a batch in the database: counted by the worker, shown in the metrics of the feeder's process."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from receiver.metrics import Metrics


@dataclass
class Outcome:
    """Counts by the metrics' labels; `latest` has the latest sending time of each event type, `new` counts new rows."""

    events: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    transitions: Counter[str] = field(default_factory=Counter)
    latest: dict[str, float] = field(default_factory=dict)
    refused: int = 0
    new: int = 0

    def __iadd__(self, other: Outcome) -> Self:
        self.events += other.events
        self.transitions += other.transitions
        for event_type, at in other.latest.items():
            self.note_latest(event_type, at)
        self.refused += other.refused
        self.new += other.new
        return self

    def note_latest(self, event_type: str, at: float) -> None:
        """Note that an event of this type was sent then."""
        self.latest[event_type] = max(self.latest.get(event_type, at), at)

    def to_json(self) -> dict[str, Any]:
        """As JSON can say it."""
        return vars(self) | {"events": [[*labels, count] for labels, count in self.events.items()]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Outcome:
        """What `to_json` made JSON of."""
        events = Counter({(endpoint, kind, outcome): count for endpoint, kind, outcome, count in value["events"]})
        return cls(**value | {"events": events, "transitions": Counter(value["transitions"])})

    def count(self, metrics: Metrics) -> None:
        """Add all to the metrics."""
        for labels, count in self.events.items():
            metrics.events_total.labels(*labels).inc(count)
        for state, count in self.transitions.items():
            metrics.stream_transitions_total.labels(state).inc(count)
        metrics.projector_errors_total.labels("refused").inc(self.refused)
