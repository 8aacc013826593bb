"""All metrics, in one place. Labels are bounded, and every combination of them is there from the start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import product
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from receiver.protocol.events import EventType, StreamState
from receiver.protocol.platform import Finding
from receiver.protocol.signature import FORMS, REASONS
from receiver.rejections import NO_ENDPOINT

OTHER = "other"
REJECTIONS = (*REASONS, "too_large", "disconnected", "not_durable")
LISTENERS = ("public", "operations")
DROPS = ("limit", "timeout", "malformed", "handshake")
EVENT_TYPES = (*EventType, OTHER)
STATES = (*StreamState, OTHER)
PROJECTOR_ERRORS = ("connection", "schema", "refused", "journal", OTHER)

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_Labelled = TypeVar("_Labelled", bound=MetricWrapperBase)


def known(value: str | None, values: Sequence[str]) -> str:
    """The label for `value`: itself where it is one of `values`, else ``other``, so that labels stay bounded."""
    return value if value is not None and value in values else OTHER


class Metrics:
    """A registry of its own with everything that ``/metrics`` shows; `endpoints` are the configured names."""

    def __init__(self, endpoints: Iterable[str] = ("default",)) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        names = tuple(endpoints)
        self.callbacks_total = self._counter(
            "callbacks_total", "Callbacks answered.", endpoint=names, outcome=("accepted", "rejected")
        )
        self.callbacks_rejected_total = self._counter(
            "callbacks_rejected_total", "Callbacks rejected, by reason.", endpoint=names, reason=REJECTIONS
        )
        # A path that is no endpoint's may be one that was registered wrongly.
        self.callbacks_rejected_total.labels(NO_ENDPOINT, "unknown_path")
        self.callback_duration_seconds = self._histogram(
            "callback_duration_seconds", "From a callback's header to its answer.", _SECONDS
        )
        self.signature_matches_total = self._counter(
            "signature_matches_total",
            "Authentic signatures, by the form and the key that matched.",
            endpoint=names,
            form=tuple(FORMS),
            key=("current", "previous"),
        )
        self.connections = self._gauge("connections", "Connections that are open.", listener=LISTENERS)
        self.connections_dropped_total = self._counter(
            "connections_dropped_total", "Connections refused or ended early.", listener=LISTENERS, reason=DROPS
        )
        self.certificate_expiry_timestamp_seconds = self._gauge(
            "certificate_expiry_timestamp_seconds", "When the TLS certificate in use expires; NaN without one."
        )
        self.certificate_expiry_timestamp_seconds.set(float("nan"))
        self.signed_time_skew_seconds = self._gauge(
            "signed_time_skew_seconds", "This clock minus the signed time, of the latest authentic callback."
        )
        self.journal_commit_duration_seconds = self._histogram(
            "journal_commit_duration_seconds", "Duration of a journal commit, fsync included.", _SECONDS
        )
        self.journal_batch_events = self._histogram(
            "journal_batch_events", "Deliveries that shared a journal commit.", _COUNTS
        )
        self.journal_events = self._gauge("journal_events", "Deliveries in the journal, not yet in the database.")
        self.journal_bytes = self._gauge("journal_bytes", "Bytes of the journal in use.")
        self.journal_max_bytes = self._gauge("journal_max_bytes", "The setting journal_max_bytes.")
        self.journal_disk_free_bytes = self._gauge(
            "journal_disk_free_bytes", "Bytes that are free on the journal's disk, for users other than root."
        )
        self.journal_oldest_timestamp_seconds = self._gauge(
            "journal_oldest_timestamp_seconds", "When the oldest delivery in the journal came; NaN when it is empty."
        )
        self.events_total = self._counter(
            "events_total",
            "Deliveries that left the journal, by what became of them in the database.",
            endpoint=names,
            event_type=EVENT_TYPES,
            outcome=("stored", "duplicate", "quarantined"),
        )
        self.stream_transitions_total = self._counter("stream_transitions_total", "Stream states stored.", state=STATES)
        self.projector_errors_total = self._counter(
            "projector_errors_total", "Failed attempts to move deliveries to the database.", reason=PROJECTOR_ERRORS
        )
        self.projector_restarts_total = self._counter(
            "projector_restarts_total", "Times that the projector's process ended and was started again."
        )
        self.events_restored_total = self._counter(
            "events_restored_total",
            "Deliveries that had been stored, were gone after an outage, and were stored again.",
        )
        self.database_up = self._gauge("database_up", "1 if the latest use of the database succeeded, else 0.")
        self.streams = self._gauge(
            "streams", "Jobs in the database, by current stream state, without the stale ones.", state=STATES
        )
        self.streams_stale = self._gauge(
            "streams_stale", "Jobs without END whose latest event is older than stream_stale_after."
        )
        self.platform_jobs = self._gauge(
            "platform_jobs", "Jobs by what receiver reconcile found about them when it ran last.", finding=(*Finding,)
        )
        self.platform_checked_timestamp_seconds = self._gauge(
            "platform_checked_timestamp_seconds", "When receiver reconcile ran last; NaN before that."
        )
        self.platform_checked_timestamp_seconds.set(float("nan"))
        self.last_event_timestamp_seconds = self._gauge(
            "last_event_timestamp_seconds",
            "When the latest event was sent, as far as stored since the start; 0 before the first.",
            event_type=EVENT_TYPES,
        )
        Info("metastudio_build", "The receiver's version.", registry=self.registry).info(
            {"version": version("metastudio-callback-receiver")}
        )

    def _counter(self, name: str, text: str, **labels: Sequence[str]) -> Counter:
        return _preset(Counter(f"metastudio_{name}", text, tuple(labels), registry=self.registry), labels)

    def _gauge(self, name: str, text: str, **labels: Sequence[str]) -> Gauge:
        return _preset(Gauge(f"metastudio_{name}", text, tuple(labels), registry=self.registry), labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"metastudio_{name}", text, buckets=buckets, registry=self.registry)


def _preset(metric: _Labelled, labels: dict[str, Sequence[str]]) -> _Labelled:
    if labels:
        for values in product(*labels.values()):
            metric.labels(*values)
    return metric
