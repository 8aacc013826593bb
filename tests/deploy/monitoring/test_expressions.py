"""Each PromQL expression of the dashboards, as Grafana sends it, to a real Prometheus after the livestreams."""

from __future__ import annotations

import re
from typing import Any

import pytest

from receiver.metrics import DROPS, LISTENERS
from receiver.protocol.platform import Finding
from tests.helpers.grafana import PROMETHEUS, expand_promql, queries
from tests.helpers.stack import Stack

JOB = "metastudio-receiver"
PROMQL = {(query.dashboard, query.name): query for query in queries() if query.data_source == PROMETHEUS}


def between(least: float, most: float) -> Any:
    """Any number from one to the other."""
    return pytest.approx((least + most) / 2, abs=(most - least) / 2)


RATE = between(1e-9, 1e9)
SOME_TIME = between(0, 3600)


# What each expression gives, by its legend. The receiver's own address is `here`.
EXPECTED: dict[tuple[str, str], dict[str, Any]] = {
    ("receiver", "Receivers up A"): {"up": 1},
    ("receiver", "Database A"): {"database": 1},
    ("receiver", "Alerts A"): {"firing": between(2, 3)},
    ("receiver", "Waiting in the journal A"): {"waiting": 0},
    ("receiver", "Oldest in the journal A"): {"oldest": 0},
    ("receiver", "Journal used A"): {"used": between(0, 0.01)},
    ("receiver", "Clock skew A"): {"skew": between(0, 300)},
    ("receiver", "Certificate ends in A"): {"left": pytest.approx(825 * 86400, abs=3600)},
    ("receiver", "Callbacks a second A"): {"accepted": RATE, "rejected": RATE},
    ("receiver", "Rejected a second, by reason A"): {"default wrong": RATE},
    ("receiver", "Time to answer A"): {"median": between(0, 5)},
    ("receiver", "Time to answer B"): {"99 %": between(0, 5)},
    ("receiver", "Signatures that matched, a second A"): {"host-sorted-hex, current key": RATE},
    ("receiver", "Clock skew, by receiver A"): {"here": between(-1, 300)},
    ("receiver", "Since the latest event, by type A"): {
        "SHOOT_SCRIPT_SWITCH": SOME_TIME,
        "RTMP_STREAM_STATE_CHANGE": SOME_TIME,
        "REPLY_COMMAND_FINISH": SOME_TIME,
    },
    ("receiver", "Open connections A"): {"public": between(0, 50), "operations": between(1, 50)},
    ("receiver", "Connections dropped a second, by reason A"): {
        f"{listener} {reason}": 0 for listener in LISTENERS for reason in DROPS
    },
    ("receiver", "Time to commit A"): {"median": between(0, 5)},
    ("receiver", "Time to commit B"): {"99 %": between(0, 5)},
    ("receiver", "Callbacks that share a commit A"): {"here": between(1, 8)},
    ("receiver", "Size of the journal A"): {"here used": 0},  # nothing waits, and what is kept does not count
    ("receiver", "Size of the journal B"): {"here limit": 2**30},
    ("receiver", "Stored a second, by outcome A"): {"stored": RATE, "duplicate": RATE, "quarantined": RATE},
    ("receiver", "Stored a second, by outcome B"): {"restored after an outage": 0},
    ("receiver", "Stored a second, by event type A"): {
        "SHOOT_SCRIPT_SWITCH": RATE,
        "RTMP_STREAM_STATE_CHANGE": RATE,
        "REPLY_COMMAND_FINISH": RATE,
        "other": 0,
    },
    ("receiver", "Database, by receiver A"): {"here": 1},
    ("receiver", "Failed attempts a second, by reason A"): dict.fromkeys(
        ("connection", "schema", "refused", "journal", "other"), 0
    ),
    ("receiver", "Failed attempts a second, by reason B"): {"projector restarted": 0},
    ("receiver", "Versions A"): {"here": 1},
    ("receiver", "Jobs, by what is wrong A"): {str(finding): 0 for finding in Finding},
    ("receiver", "Since MetaStudio was asked A"): {},  # nobody did
    ("receiver", "annotation Alerts"): {
        "MetaStudioCallbacksRejected": 1,
        "MetaStudioQuarantineGrowing": 1,
    },
    ("streams", "Jobs by state, over time A"): {
        f"{JOB} {state}": count
        for state, count in {
            "CONNECTING": 0,
            "CONNECTED": 1,
            "DISCONNECTED": 0,
            "RECONNECTING": 1,
            "other": 0,
        }.items()
    },
    ("streams", "Jobs by state, over time B"): {f"{JOB} stale": 0},
    ("streams", "State changes a minute A"): {
        **dict.fromkeys(("CONNECTING", "CONNECTED", "DISCONNECTED", "RECONNECTING", "END"), RATE),
        "other": 0,
    },
}


def drawn(legend: str, labels: dict[str, str]) -> str:
    """A series's name in the legend."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels[match[1]], legend)


def test_each_expression_is_checked() -> None:
    """No expression of a dashboard is without expected data."""
    variables = {key for key in PROMQL if key[1].startswith("variable ")}
    assert PROMQL.keys() - variables == EXPECTED.keys()


@pytest.mark.parametrize("key", EXPECTED, ids=" ".join)
def test_expressions_give_what_happened(monitored: Stack, key: tuple[str, str]) -> None:
    """The real Prometheus takes the expression, and each series that is drawn has what the livestreams left."""
    instance = f"127.0.0.1:{monitored.receiver.operations_port}"
    expression = expand_promql(PROMQL[key], {"job": JOB, "instance": ".+"})
    legend = PROMQL[key].legend or "{{alertname}}"
    found = {
        drawn(legend, labels).replace(instance, "here"): value
        for labels, value in monitored.prometheus.query(expression, at=monitored.seen_at)
    }
    if key == ("receiver", "annotation Alerts"):
        found.pop("MetaStudioStreamNotRecovered", None)  # fires a minute later
    assert found == EXPECTED[key]


@pytest.mark.parametrize("key", [key for key in PROMQL if key[1].startswith("variable ")], ids=" ".join)
def test_prometheus_variables(monitored: Stack, key: tuple[str, str]) -> None:
    """The variables offer the receiver's own job and address."""
    expected = {"variable job": JOB, "variable instance": f"127.0.0.1:{monitored.receiver.operations_port}"}
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", expand_promql(PROMQL[key], {"job": JOB}))
    assert match is not None
    assert monitored.prometheus.get(f"label/{match[2]}/values", **{"match[]": match[1]}) == [expected[key[1]]]
