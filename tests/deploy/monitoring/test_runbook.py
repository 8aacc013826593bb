from __future__ import annotations

import re
from typing import Any

import yaml

from receiver.metrics import REJECTIONS
from tests.helpers.pages import ROOT, blocks, code, headings, read, rows, section
from tests.helpers.prometheus import FOLDER, names_in
from tests.helpers.shell import run
from tests.helpers.stack import DOWN, Stack

PAGE = "docs/how-to/runbook.md"
RUNBOOK = read(PAGE)
HEADINGS = headings(PAGE)[1:]
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((ROOT / "deploy/kubernetes/kustomization.yaml").read_text())
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
    for one in RUNBOOK.split("\n## ")[1:]:
        assert [one.count(part) for part in ("**Meaning.**", "**Look at**", "**Do.**")] == [1, 1, 1], one


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
    """The tables' commands name compose files, services, a namespace, pods and units that are there."""
    table = {cells[0]: code(" ".join(cells[1:])) for cells in rows(RUNBOOK) if len(cells) == 5}
    assert list(table) == ["in a clone", "under systemd", "in Compose", "on Kubernetes"]
    for command in table["in Compose"]:
        assert arguments_of_compose(command, files=1)[-1] in ("receiver", "bash")
    pods = yaml.safe_load((ROOT / "deploy/kubernetes/statefulset.yaml").read_text())
    name, replicas = pods["metadata"]["name"], pods["spec"]["replicas"]
    known = {f"{name}-{number}" for number in range(replicas)} | {f"statefulset/{name}", "pods"}
    commands = [one for one in table["on Kubernetes"] if one.startswith("kubectl")]
    assert len(commands) == 4
    for command in commands:
        assert known & set(arguments_of_kubectl(command))
    assert {f"{name}-{number}" for number in range(replicas)} <= set(" ".join(table["on Kubernetes"]).split())
    assert (ROOT / "deploy/systemd/receiver.service").exists()


def test_each_place_of_settings() -> None:
    """Settings are where the page says that they are changed."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    assert "under `environment` in `deploy/compose.yaml`" in RUNBOOK
    assert "RECEIVER_LISTEN" in compose["services"]["receiver"]["environment"]
    assert "under `literals` in your `kustomization.yaml`" in RUNBOOK
    assert KUSTOMIZATION["configMapGenerator"][0]["literals"]
    guide = read("docs/how-to/deploy-systemd.md")
    assert "receiver.toml /etc/receiver/\n" in guide


def test_each_way_to_run_reconcile() -> None:
    """So do the commands for `receiver reconcile`."""
    table = {cells[0]: code(" ".join(cells[1:])) for cells in rows(section(PAGE, HEADINGS[-1])) if len(cells) == 3}
    assert list(table) == ["under systemd", "in Compose", "on Kubernetes"]
    assert (ROOT / "deploy/systemd/receiver-reconcile.service").exists()
    assert all("receiver-reconcile" in command for command in table["under systemd"])
    for command in table["in Compose"]:
        assert arguments_of_compose(command, files=2)[-1] == "reconcile"
    job, *_ = yaml.safe_load_all((ROOT / "deploy/kubernetes/reconcile.yaml").read_text())
    ((label, value),) = job["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"].items()
    logs, create = (arguments_of_kubectl(command) for command in table["on Kubernetes"])
    assert logs[-1] == f"{label}={value}"
    assert f"--from=cronjob/{job['metadata']['name']}" in create


def arguments_of_compose(command: str, *, files: int) -> list[str]:
    """What follows the compose files, which are there, of which the last has the service at the end."""
    words = command.split()
    assert words[:2] == ["docker", "compose"]
    named = words[2 : 2 + 2 * files]
    assert named[::2] == ["--file"] * files
    services = [name for file in named[1::2] for name in yaml.safe_load((ROOT / file).read_text())["services"]]
    assert set(words) & set(services), command
    return words[2 + 2 * files :]


def arguments_of_kubectl(command: str) -> list[str]:
    """What follows the namespace, which is that of the manifests."""
    words = command.split()
    assert words[:3] == ["kubectl", "--namespace", KUSTOMIZATION["namespace"]]
    return words[3:]


def test_each_sql_statement_works(monitored: Stack) -> None:
    """The SQL runs as it stands there, as the read-only role, and finds the lost stream and the silent job."""
    lost, silent = blocks("docs/how-to/runbook.md", language="sql")
    found: list[dict[str, Any]] = monitored.rows(lost.text)
    assert [(row["job_id"], row["state"]) for row in found] == [(DOWN.job_id, "RECONNECTING")]
    found = monitored.rows(silent.text)
    assert [(row["job_id"], row["finding"]) for row in found] == [(DOWN.job_id, "silent")]


def test_each_metric_exists(monitored: Stack) -> None:
    """The runbook names no metric that the receiver does not export."""
    assert names_in(RUNBOOK) <= monitored.receiver_metrics()
