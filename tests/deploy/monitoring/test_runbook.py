from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from receiver.cli import main
from receiver.metrics import REJECTIONS
from tests.helpers.prometheus import FOLDER, names_in
from tests.helpers.stack import DOWN, Stack

RUNBOOK = (Path(__file__).parents[3] / "deploy/RUNBOOK.md").read_text()
HEADINGS = re.findall(r"^## (.+)$", RUNBOOK, flags=re.MULTILINE)
COMMANDS = sorted(set(re.findall(r"(?:^|`)(receiver [a-z][^`\n]*)", RUNBOOK, flags=re.MULTILINE)))
ALERTS = (FOLDER / "alerts.yml").read_text()


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", RUNBOOK, flags=re.DOTALL | re.MULTILINE)
    return found


def test_each_alert_leads_to_its_section() -> None:
    """Each alert's link leads to the heading of its name, in the same order; no section is without one."""
    alerts = re.findall(r"- alert: (\w+)", ALERTS)
    assert alerts == HEADINGS
    assert re.findall(r"runbook_url: (\S+)$", ALERTS, flags=re.MULTILINE) == [
        f"deploy/RUNBOOK.md#{alert.lower()}" for alert in alerts
    ]


def test_links_lead_to_headings() -> None:
    """Each link within the runbook leads to one of its headings."""
    assert {anchor for _, anchor in re.findall(r"\[(\w+)\]\(#(\w+)\)", RUNBOOK)} <= {one.lower() for one in HEADINGS}


def test_each_section_says_what_to_do() -> None:
    """Each section says what the alert means, what to look at, and what to do."""
    for section in RUNBOOK.split("\n## ")[1:]:
        assert [section.count(part) for part in ("**Meaning.**", "**Look at**", "**Do.**")] == [1, 1, 1], section


def test_each_reason_is_explained() -> None:
    """Each reason for which MetaStudio's callbacks can be rejected is in the table."""
    table = "".join(line for line in RUNBOOK.splitlines(keepends=True) if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", table)) >= set(REJECTIONS) - {"not_durable"}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_exists(command: str) -> None:
    """Each command that the runbook names exists, with its options."""
    words = [word for word in command.split()[1:] if not word.isupper()]
    options = [word for word in words if word.startswith("--")]
    result = CliRunner().invoke(main, [*(word for word in words if word.isalpha()), "--help"])
    assert result.exit_code == 0, result.output
    assert all(option in result.output for option in options)


def test_each_shell_command_works(monitored: Stack) -> None:
    """Each command block runs as it stands there, on a real receiver."""
    receiver = monitored.receiver
    environ = os.environ | receiver.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    output = ""
    for block in blocks("bash"):
        script = block.replace("9464", str(receiver.operations_port)).replace("8443", str(receiver.port))
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=receiver.folder, env=environ, check=True, capture_output=True, text=True)
        output += done.stdout
    assert output.count('{"status":"ok"}') == 3
    assert "metastudio_database_up 1.0" in output
    assert "RECONNECTING" in output
    assert "not_json" in output
    assert "notAfter=" in output


def test_each_sql_statement_works(monitored: Stack) -> None:
    """The SQL runs as it stands there, as the read-only role, and finds the lost stream."""
    (statement,) = blocks("sql")
    rows: list[dict[str, Any]] = monitored.rows(statement)
    assert [(row["job_id"], row["state"]) for row in rows] == [(DOWN.job_id, "RECONNECTING")]


def test_each_metric_exists(monitored: Stack) -> None:
    """The runbook names no metric that the receiver does not export."""
    assert names_in(RUNBOOK) <= monitored.receiver_metrics()
