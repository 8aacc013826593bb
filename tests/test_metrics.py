from __future__ import annotations

from importlib.metadata import version
from itertools import product

import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from receiver.metrics import EVENT_TYPES, STATES, Metrics, known
from receiver.protocol.signature import FORMS

TYPES = ["SHOOT_SCRIPT_SWITCH", "RTMP_STREAM_STATE_CHANGE", "REPLY_COMMAND_FINISH", "other"]
STREAM_STATES = ["CONNECTING", "CONNECTED", "DISCONNECTED", "RECONNECTING", "END", "other"]
SIGNATURES = ["missing", "malformed", "ambiguous", "url_mismatch", "wrong", "stale"]
ENDPOINTS = ["default", "second"]
# The contract of dashboards and alerts: a family's name, type and every label with every value.
FAMILIES: dict[str, tuple[str, dict[str, list[str]]]] = {
    "callbacks": ("counter", {"endpoint": ENDPOINTS, "outcome": ["accepted", "rejected"]}),
    "callbacks_rejected": (
        "counter",
        {"endpoint": ENDPOINTS, "reason": [*SIGNATURES, "too_large", "disconnected", "not_durable"]},
    ),
    "callback_duration_seconds": ("histogram", {}),
    "signature_matches": (
        "counter",
        {"endpoint": ENDPOINTS, "form": sorted(FORMS), "key": ["current", "previous"]},
    ),
    "connections": ("gauge", {"listener": ["public", "operations"]}),
    "connections_dropped": (
        "counter",
        {"listener": ["public", "operations"], "reason": ["limit", "timeout", "malformed", "handshake"]},
    ),
    "certificate_expiry_timestamp_seconds": ("gauge", {}),
    "signed_time_skew_seconds": ("gauge", {}),
    "journal_commit_duration_seconds": ("histogram", {}),
    "journal_batch_events": ("histogram", {}),
    "journal_events": ("gauge", {}),
    "journal_bytes": ("gauge", {}),
    "journal_max_bytes": ("gauge", {}),
    "journal_disk_free_bytes": ("gauge", {}),
    "journal_oldest_timestamp_seconds": ("gauge", {}),
    "events": (
        "counter",
        {"endpoint": ENDPOINTS, "event_type": TYPES, "outcome": ["stored", "duplicate", "quarantined"]},
    ),
    "stream_transitions": ("counter", {"state": STREAM_STATES}),
    "projector_errors": ("counter", {"reason": ["connection", "schema", "refused", "journal", "other"]}),
    "projector_restarts": ("counter", {}),
    "events_restored": ("counter", {}),
    "database_up": ("gauge", {}),
    "streams_stale": ("gauge", {}),
    "streams": ("gauge", {"state": STREAM_STATES}),
    "platform_jobs": (
        "gauge",
        {"finding": ["end_missing", "silent", "registered_elsewhere", "duration_gap", "unknown_there"]},
    ),
    "platform_checked_timestamp_seconds": ("gauge", {}),
    "last_event_timestamp_seconds": ("gauge", {"event_type": TYPES}),
    "build_info": ("gauge", {"version": [version("metastudio-callback-receiver")]}),
}

# A request to a path that is no endpoint's.
BESIDE = {"callbacks_rejected": [("none", "unknown_path")]}
FIRST_VALUES = {
    "build_info": "1.0",
    "certificate_expiry_timestamp_seconds": "nan",
    "platform_checked_timestamp_seconds": "nan",
}


def exposed(metrics: Metrics) -> dict[str, Metric]:
    """What a scrape reads."""
    text = generate_latest(metrics.registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.fixture(scope="module")
def families() -> dict[str, Metric]:
    return exposed(Metrics(ENDPOINTS))


def test_names(families: dict[str, Metric]) -> None:
    """These metrics are there from the start and no others, each with its help; among them no `_created` series."""
    assert sorted(families) == sorted(f"metastudio_{name}" for name in FAMILIES)
    assert all(family.documentation.endswith(".") for family in families.values())
    assert not any(sample.name.endswith("_created") for family in families.values() for sample in family.samples)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_combination_of_labels_is_there_from_the_start(families: dict[str, Metric], name: str) -> None:
    """Each combination of label values is there before anything happened, so that a rate sees the first event."""
    family = families[f"metastudio_{name}"]
    kind, labels = FAMILIES[name]
    assert family.type == kind
    suffix = {"counter": "_total", "histogram": "_count"}.get(kind, "")
    samples = [sample for sample in family.samples if sample.name == f"metastudio_{name}{suffix}"]
    there = [tuple(sample.labels[label] for label in labels) for sample in samples]
    assert sorted(there) == sorted([*product(*labels.values()), *BESIDE.get(name, [])])
    assert all(sample.labels.keys() == labels.keys() for sample in samples)
    assert {str(sample.value) for sample in samples} == {FIRST_VALUES.get(name, "0.0")}


def test_default_endpoint() -> None:
    """Without a list of endpoints the metrics are those of the endpoint `default`."""
    samples = exposed(Metrics())["metastudio_callbacks"].samples
    assert {sample.labels["endpoint"] for sample in samples} == {"default"}


def test_registries_are_apart() -> None:
    """Two receivers in one process do not count each other's events, and nothing of the process's own is exported."""
    first, second = Metrics(), Metrics()
    first.stream_transitions_total.labels("END").inc()
    values = [
        one.registry.get_sample_value("metastudio_stream_transitions_total", {"state": "END"})
        for one in (first, second)
    ]
    assert values == [1, 0]


@pytest.mark.parametrize("value", ["connected", "CONNECTED ", "商品1", "", "CONNECT", None])
def test_what_is_not_known_is_other(value: str | None) -> None:
    """A value that is not one of the documented ones is labelled `other`."""
    assert known(value, STATES) == "other"
    assert known(value, EVENT_TYPES) == "other"


def test_what_is_known_is_itself() -> None:
    """A documented value is its own label."""
    assert [known(value, STATES) for value in STREAM_STATES] == STREAM_STATES
    assert [known(value, EVENT_TYPES) for value in TYPES] == TYPES
