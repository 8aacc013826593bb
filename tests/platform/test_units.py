"""What is shipped to run `receiver reconcile` on a timer: systemd, compose and Kubernetes, as far as without them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from click.testing import CliRunner

from receiver.cli import main
from tests.helpers.locks import ROOT
from tests.helpers.pages import blocks

SYSTEMD = ROOT / "deploy/systemd"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
RECONCILE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose/reconcile.yaml").read_text())["services"][
    "reconcile"
]
KUBERNETES = ROOT / "deploy/kubernetes"
RESOURCES: list[Any] = [*yaml.safe_load_all((KUBERNETES / "reconcile.yaml").read_text())]
CONTAINER = RESOURCES[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]


def takes(command: list[str]) -> None:
    """See that the command line takes these words; it then fails for want of settings."""
    result = CliRunner().invoke(main, command, env={"RECEIVER_CONFIG": "/nonexistent"})
    assert result.exit_code == 1, result.output
    assert "/nonexistent" in result.output


def test_systemd(tmp_path: Path) -> None:
    """Systemd understands each line of both units, and judges the service's exposure as under 2.5 of 10."""
    for name in ("receiver-reconcile.service", "receiver-reconcile.timer"):
        text = (SYSTEMD / name).read_text().replace("/opt/receiver/bin/receiver", "/bin/true")
        (tmp_path / name).write_text(text)
    units = [*tmp_path.iterdir()]
    done = subprocess.run(["systemd-analyze", "verify", *units], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "receiver-reconcile" not in done.stderr
    judge = ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager"]
    judge.append(str(SYSTEMD / "receiver-reconcile.service"))
    done = subprocess.run(judge, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_systemd_runs_as_the_receiver() -> None:
    """It has the receiver's own user, folder, settings and key, and a command that is taken."""
    own, receiver = ((SYSTEMD / f"{name}.service").read_text() for name in ("receiver-reconcile", "receiver"))
    for setting in ("User", "Group", "WorkingDirectory", "StateDirectory", "Environment", "LoadCredential"):
        lines = re.findall(rf"^{setting}=.*$", own, flags=re.MULTILINE)
        assert lines == re.findall(rf"^{setting}=.*$", receiver, flags=re.MULTILINE), setting
    (command,) = re.findall(r"^ExecStart=/opt/receiver/bin/receiver (.*)$", own, flags=re.MULTILINE)
    takes(command.split())


def test_compose() -> None:
    """It is what the published schema asks for, and has the receiver's database, settings and image."""
    checker = str(Path(sys.executable).with_name("check-jsonschema"))
    file = str(ROOT / "deploy/compose/reconcile.yaml")
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", file], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    receiver = COMPOSE["services"]["receiver"]
    assert RECONCILE["environment"].items() <= receiver["environment"].items()
    assert set(RECONCILE["volumes"]) <= set(receiver["volumes"])
    assert set(RECONCILE["networks"]) <= set(receiver["networks"])
    assert set(RECONCILE["depends_on"]) <= set(COMPOSE["services"])
    assert RECONCILE["build"] == receiver["build"] | {"args": {"PLATFORM_SDK": "yes"}}
    (script,) = RECONCILE["command"]
    takes(re.findall(r"receiver (reconcile [^;]+);", script)[0].replace('"', "").split())


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_kubernetes(version: str) -> None:
    """Each resource is what Kubernetes asks for, from 1.30 to the latest."""
    for resource in RESOURCES:
        kubernetes_validate.validate(resource, version, strict=True)


def test_kubernetes_with_the_others(tmp_path: Path) -> None:
    """Once it is in the kustomization, it has the receivers' image and settings, and the command is taken."""
    folder = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, folder)
    file = folder / "kustomization.yaml"
    file.write_text(file.read_text().replace("  # - reconcile.yaml", "  - reconcile.yaml"))
    done = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True)
    made = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    pod = made["CronJob", "reconcile"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    receivers = made["StatefulSet", "receiver"]["spec"]
    (receiver,) = receivers["template"]["spec"]["containers"]
    assert pod["containers"][0]["image"] == receiver["image"]
    assert pod["containers"][0]["envFrom"][0] == receiver["envFrom"][0]
    assert pod["securityContext"].items() <= receivers["template"]["spec"]["securityContext"].items()
    assert [one for one in receiver["env"] if one["name"] != "RECEIVER_PREVIOUS_KEY"] == pod["containers"][0]["env"]
    assert pod["containers"][0]["volumeMounts"] == [
        one for one in receiver["volumeMounts"] if one["name"] == "database-url"
    ]
    assert pod["volumes"] == receivers["template"]["spec"]["volumes"]
    takes(CONTAINER["args"])
    asked = [one for one in CONTAINER["args"] if one.startswith("--metrics")]
    hosts = [f"receiver-{number}.{receivers['serviceName']}" for number in range(receivers["replicas"])]
    assert asked == [f"--metrics=http://{host}:9464/metrics" for host in hosts]


def test_the_page_names_what_is_there() -> None:
    """The page's commands name the files that are shipped."""
    systemd, compose = blocks("docs/how-to/reconcile.md", "On a timer", language="bash")
    for path in re.findall(r"deploy/[\w/.-]+", systemd.text + compose.text):
        assert path == "deploy/platform.env" or (ROOT / path).is_file(), path
    assert "receiver-reconcile.timer" in systemd.text.splitlines()[-1]
