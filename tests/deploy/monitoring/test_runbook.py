from __future__ import annotations

import re
from typing import Any

import yaml

from receiver.metrics import REJECTIONS
from tests.helpers.pages import ROOT, blocks, code, headings, read, rows
from tests.helpers.prometheus import FOLDER, names_in
from tests.helpers.shell import run
from tests.helpers.stack import DOWN, Stack

PAGE = "docs/how-to/runbook.md"
RUNBOOK = read(PAGE)
HEADINGS = headings(PAGE)[1:]
ALERTS = (FOLDER / "alerts.yml").read_text()


def test_each_alert_leads_to_its_section() -> None:
    """Each alert's link leads to the heading of its name, in the same order; no section is without one."""
    alerts = re.findall(r"- alert: (\w+)", ALERTS)
    assert alerts == HEADINGS
    assert re.findall(r"runbook_url: (\S+)$", ALERTS, flags=re.MULTILINE) == [
        f"docs/how-to/runbook.md#{alert.lower()}" for alert in alerts
    ]


def test_each_section_says_what_to_do() -> None:
    """Each section says what the alert means, what to look at, and what to do."""
    for section in RUNBOOK.split("\n## ")[1:]:
        assert [section.count(part) for part in ("**Meaning.**", "**Look at**", "**Do.**")] == [1, 1, 1], section


def test_each_reason_is_explained() -> None:
    """Each reason for which MetaStudio's callbacks can be rejected is in the table."""
    table = "".join(line for line in RUNBOOK.splitlines(keepends=True) if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", table)) >= set(REJECTIONS) - {"not_durable"}


def test_each_shell_command_works(monitored: Stack) -> None:
    """Each command block runs as it stands there, on a real receiver."""
    receiver = monitored.receiver
    output = ""
    for block in blocks("docs/how-to/runbook.md", language="bash"):
        script = block.text.replace("9464", str(receiver.operations_port)).replace("8443", str(receiver.port))
        output += run(script, receiver.folder, receiver.environ)
    assert output.count('{"status":"ok"}') == 2
    assert output.count("database   up: postgresql") == 3
    assert "RECONNECTING" in output
    assert "not_json" in output
    assert output.count("0 moved to the events, 1 left") == 2
    assert "notAfter=" in output
    assert " 0 s:" in output
    assert f"{receiver.folder}/var/journal.db\n" in output


def test_each_way_to_deploy() -> None:
    """The table's commands name a compose file, a service, a namespace, pods and units that are there."""
    table = {cells[0]: code(" ".join(cells[1:])) for cells in rows(RUNBOOK) if len(cells) == 4}
    assert list(table) == ["in a clone", "under systemd", "in Compose", "on Kubernetes"]
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    for command in table["in Compose"]:
        words = command.split()
        assert words[:4] == ["docker", "compose", "--file", "deploy/compose.yaml"]
        assert "receiver" in set(words) & set(services)
    folder = ROOT / "deploy/kubernetes"
    namespace = yaml.safe_load((folder / "kustomization.yaml").read_text())["namespace"]
    pods = yaml.safe_load((folder / "statefulset.yaml").read_text())
    name, replicas = pods["metadata"]["name"], pods["spec"]["replicas"]
    known = {f"{name}-{number}" for number in range(replicas)} | {f"statefulset/{name}"}
    commands = [one for one in table["on Kubernetes"] if one.startswith("kubectl")]
    assert len(commands) == 3
    for command in commands:
        assert command.split()[:3] == ["kubectl", "--namespace", namespace]
        assert known & set(command.split())
    assert {f"{name}-{number}" for number in range(replicas)} <= set(" ".join(table["on Kubernetes"]).split())
    assert (ROOT / "deploy/systemd/receiver.service").exists()


def test_each_sql_statement_works(monitored: Stack) -> None:
    """The SQL runs as it stands there, as the read-only role, and finds the lost stream."""
    (statement,) = blocks("docs/how-to/runbook.md", language="sql")
    rows: list[dict[str, Any]] = monitored.rows(statement.text)
    assert [(row["job_id"], row["state"]) for row in rows] == [(DOWN.job_id, "RECONNECTING")]


def test_each_metric_exists(monitored: Stack) -> None:
    """The runbook names no metric that the receiver does not export."""
    assert names_in(RUNBOOK) <= monitored.receiver_metrics()
