from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.pages import blocks
from tests.helpers.prometheus import FOLDER, QueryError, names_in
from tests.helpers.shell import run
from tests.helpers.stack import ACCEPTED, REJECTED, Stack

CASES = sorted(Path(__file__).parent.glob("*_test.yml"))
ALERTS = re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text())


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_is_valid() -> None:
    """Prometheus's own checks find nothing wrong with the configuration and the rules that it names."""
    assert "2 rule files found" in promtool("check", "config", "--lint-fatal", FOLDER / "prometheus.yml")
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", "--lint-fatal", FOLDER / "alerts.yml")


def test_configurations_of_others_are_valid() -> None:
    """Alertmanager's and blackbox exporter's own checks find nothing wrong with their files."""
    for command in (
        ["amtool", "check-config", str(FOLDER / "alertmanager.yml")],
        ["prometheus-blackbox-exporter", "--config.check", f"--config.file={FOLDER / 'blackbox.yml'}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", CASES, ids=[file.stem for file in CASES])
def test_alerts_fire_and_stay_quiet(file: Path) -> None:
    """Each alert fires where it should, with the words that people read, and not a step before."""
    assert "SUCCESS" in promtool("test", "rules", file)


@pytest.mark.parametrize("after", [20, 60, 200, 300])
def test_time_of_the_alert_on_streams(tmp_path: Path, after: int) -> None:
    """The page's command sets it in seconds: with each time the alert fires then, and not a step before."""
    (block,) = blocks("docs/how-to/monitoring.md", "How long MetaStudio waits for a stream")
    for name in ("rules.yml", "alerts.yml"):
        shutil.copy(FOLDER / name, tmp_path)
    assert "3m20s" in block.text
    run(block.text.replace("/etc/prometheus/", "").replace("3m20s", f"{after}s"), tmp_path)
    began = 300
    series = {"database_up": "1x300", "streams": f"0x{began // 10 - 1} 1x300"}
    alert = 'ALERTS{alertname="MetaStudioStreamNotRecovered", alertstate="firing"'
    fires = {"labels": f'{alert}, job="j", severity="critical"}}', "value": 1}
    case = {
        "interval": "10s",
        "input_series": [
            {"series": f'metastudio_{name}{{job="j", instance="a", state="DISCONNECTED"}}', "values": values}
            for name, values in series.items()
        ],
        "promql_expr_test": [
            {"expr": f"{alert}}}", "eval_time": f"{began + after + 10 * step}s", "exp_samples": found}
            for step, found in ((-1, []), (1, [fires]))
        ],
    }
    tests = {"rule_files": ["rules.yml", "alerts.yml"], "evaluation_interval": "10s", "tests": [case]}
    tests["group_eval_order"] = ["metastudio-rules", "metastudio-alerts"]
    (tmp_path / "case.yml").write_text(yaml.safe_dump(tests))
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "case.yml")


def test_each_alert_has_cases() -> None:
    """No alert is without a case that fires and one that stays quiet."""
    names = re.findall(r"- name: (\w+) (fires|stays quiet) ", "".join(file.read_text() for file in CASES))
    assert set(names) == {(alert, what) for alert in ALERTS for what in ("fires", "stays quiet")}


@pytest.fixture(scope="module")
def rules(monitored: Stack) -> list[dict[str, Any]]:
    """All rules of the running Prometheus."""
    return monitored.prometheus.rules()


def test_rules_are_valid_on_the_real_thing(monitored: Stack, rules: list[dict[str, Any]]) -> None:
    """Prometheus evaluates each rule without an error, and what it names is exported by the receiver or recorded."""
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}
    known = monitored.receiver_metrics() | {rule["name"] for rule in rules}
    for rule in rules:
        assert names_in(rule["query"]) <= known, rule["name"]


def test_recorded_series_hold_what_happened(monitored: Stack, rules: list[dict[str, Any]]) -> None:
    """Each recording rule's series has what the livestreams left."""
    query = monitored.prometheus.query
    expected = {
        "job_state:metastudio_streams:max": {
            ("CONNECTING",): 0,
            ("CONNECTED",): 1,
            ("DISCONNECTED",): 0,
            ("RECONNECTING",): 1,
            ("END",): 1,
            ("other",): 0,
        },
        "job:metastudio_streams_down:sum": {(): 1},
        "job_endpoint:metastudio_callbacks:increase10m": {("default",): pytest.approx(ACCEPTED + REJECTED, rel=0.5)},
        "job_endpoint:metastudio_callbacks_accepted:increase5m": {("default",): pytest.approx(ACCEPTED, rel=0.5)},
        "job_endpoint_reason:metastudio_callbacks_rejected:increase10m": {
            ("default", "wrong"): pytest.approx(REJECTED, rel=0.5)
        },
        "instance:metastudio_signed_time_skew_seconds:abs": {(): pytest.approx(0.5, abs=30)},
        "instance:metastudio_journal_bytes:ratio": {(): pytest.approx(0, abs=0.01)},
        "job:metastudio_receivers:last7d": {(): 1},
        "job_instance:metastudio_certificate_left_seconds:min": {(): pytest.approx(825 * 86400, abs=3600)},
    }
    assert {rule["name"] for rule in rules if rule["type"] == "recording"} == expected.keys()
    for name, values in expected.items():
        found = {
            tuple(value for label, value in sorted(labels.items()) if label in ("endpoint", "reason", "state")): value
            for labels, value in query(name)
            if "reason" not in labels or value
        }
        assert found == values, name


def test_alerts_on_the_real_thing(rules: list[dict[str, Any]]) -> None:
    """The callbacks with a wrong key and the quarantined one fire; the lost stream is pending; nothing else is."""
    states = {rule["name"]: rule["state"] for rule in rules if rule["type"] == "alerting"}
    assert states.keys() == set(ALERTS)
    assert states.pop("MetaStudioStreamNotRecovered") in ("pending", "firing")
    firing = {name for name, state in states.items() if state != "inactive"}
    assert firing == {"MetaStudioCallbacksRejected", "MetaStudioQuarantineGrowing"}


def test_a_wrong_query_is_noticed(monitored: Stack) -> None:
    """A query that is not valid fails, so that those of the other tests are shown to be."""
    with pytest.raises(QueryError, match="parse error"):
        monitored.prometheus.query("sum(")
