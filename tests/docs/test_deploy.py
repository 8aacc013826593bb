"""The commands of the pages on deployment, as they stand there, on a machine of their own.

Programs that need root or a server of their own (Docker, Kubernetes, systemd) are not there: their commands are written
down, and compared with the files that they are about. All others run.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from receiver.settings.load import load
from receiver.settings.settings import Settings
from tests.helpers.pages import ROOT, Block, blocks
from tests.helpers.receiver import KEY
from tests.helpers.shell import run

SOCKET = ROOT / "deploy/systemd/receiver.socket"


class Machine:
    """A machine in `folder`: its /etc, /opt and /var/lib, and a clone of the project."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.project = folder / "project"
        self._programs = folder / "programs"
        self._log = folder / "commands"
        for path in ("etc/systemd/system", "etc/prometheus", "etc/grafana", "opt", "var/lib/receiver"):
            (self.root / path).mkdir(parents=True)
        self._programs.mkdir()
        shutil.copytree(ROOT / "deploy", self.project / "deploy")

    def without(self, *programs: str, does: str = "true") -> Machine:
        """Have the commands of these programs written down in place of run; `does` is what they do else."""
        for name in programs:
            program = self._programs / name
            program.write_text(f'#!/bin/bash\necho {name} "${{@@Q}}" >> {self._log}\n{does}\n')
            program.chmod(0o755)
        return self

    def run(self, block: Block, folder: Path | None = None) -> str:
        """Run a block, whose absolute paths are those of this machine."""
        here = re.sub(
            r"(?:^|(?<=[ =]))/(?=(?:etc|opt|usr/local|var/lib)/)", f"{self.root}/", block.text, flags=re.MULTILINE
        )
        return run(f"PATH={self._programs}:$PATH\n{here}", folder or self.project)

    @property
    def commands(self) -> list[list[str]]:
        """The commands that were written down, with paths as the page has them."""
        lines = self._log.read_text().replace(str(self.root), "").splitlines()
        return [shlex.split(line) for line in lines]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine for one test."""
    return Machine(tmp_path)


def options(command: list[str], *names: str) -> list[str]:
    """The values of some options of a command, in order."""
    found = [
        word.partition("=") if "=" in word else (word, "", after)
        for word, after in zip(command, [*command[1:], ""], strict=True)
    ]
    return [value for name, _, value in found if name in names]


def unit(text: str, name: str) -> list[str]:
    """What a systemd unit sets `name` to."""
    return re.findall(rf"^{name}=(.*)$", text, flags=re.MULTILINE)


def test_systemd(machine: Machine) -> None:
    """The receiver is installed where the unit looks for it, and finds its settings and key where the unit has them."""
    install, _, _ = blocks("docs/how-to/deploy-systemd.md")
    venv = machine.root / "opt/receiver/bin"
    pip = f"if [ $1 = -m ]; then mkdir --parents {venv}; cp $0 {venv}/pip; fi"
    machine.without("useradd", "systemctl", "editor").without("python3", does=pip)
    machine.without("install", does='/usr/bin/install "${@/--group=receiver/--verbose}"')  # there is no such group here
    (machine.root / "usr/local/bin").mkdir(parents=True)
    machine.run(install)

    service = (machine.root / "etc/systemd/system/receiver.service").read_text()
    users = [command for command in machine.commands if command[0] == "useradd"]
    assert [command[-1] for command in users] == unit(service, "User") == unit(service, "Group")
    assert options(users[0], "--home-dir") == unit(service, "WorkingDirectory")
    assert unit(service, "ExecStart") == ["/opt/receiver/bin/receiver serve"]
    assert unit(service, "LoadCredential") == ["key:/etc/receiver/key"]
    assert "--user-group" in users[0]
    assert (machine.root / "etc/receiver/receiver.toml").stat().st_mode & 0o777 == 0o640
    own_group = [command[-1] for command in machine.commands if options(command, "--group") == ["receiver"]]
    assert own_group == ["/etc/receiver/key", "/etc/receiver/"]
    key = machine.root / "etc/receiver/key"
    assert key.stat().st_mode & 0o777 == 0o640
    assert len(key.read_text().strip()) == 32
    assert (machine.root / "usr/local/bin/receiver").stat().st_mode & 0o777 == 0o755
    assert ["python3", "-m", "venv", "/opt/receiver"] in machine.commands
    locked, own = (command for command in machine.commands if command[0] == "python3" and command[1] == "install")
    assert {"--require-hashes", "--no-deps"} < set(locked)
    assert all((machine.project / file).exists() for file in options(locked, "-r"))
    assert {"--no-index", "--no-build-isolation", "."} < set(own)
    enabled(machine)


def enabled(machine: Machine) -> None:
    """Each unit that is enabled, stopped or restarted is there, after the last of them systemd read them."""
    calls = [command[1:] for command in machine.commands if command[0] == "systemctl"]
    units = {word for call in calls for word in call[1:] if not word.startswith("--")}
    assert units
    assert all((machine.root / "etc/systemd/system" / name).exists() for name in units), units
    assert calls[0] == ["daemon-reload"]


def test_restart(machine: Machine) -> None:
    """The units are installed, and the socket is started before the service."""
    install, restart, stop = blocks("docs/how-to/restart.md")
    machine.without("systemctl").run(install)
    machine.run(restart)
    machine.run(stop)
    enabled(machine)
    assert [command[1:] for command in machine.commands[-3:]] == [
        ["enable", "--now", "receiver.socket", "receiver.service"],
        ["restart", "receiver.service"],
        ["stop", "receiver.socket", "receiver.service"],
    ]
    assert unit(SOCKET.read_text(), "ListenStream")


def test_second_receiver_under_systemd(machine: Machine) -> None:
    """The second unit is understood by systemd; it has a folder of its own, and with it a journal, and another port."""
    (block,) = blocks("docs/how-to/scale-out.md", "On one machine", language="bash")
    machine.without("systemctl").run(block)
    enabled(machine)
    path = machine.root / "etc/systemd/system/receiver-2.service"
    second, first = path.read_text(), (ROOT / "deploy/systemd/receiver.service").read_text()
    assert unit(second, "StateDirectory") == ["receiver-2"]
    assert unit(second, "WorkingDirectory") == ["/var/lib/receiver-2"]
    own = set(unit(second, "Environment")) - set(unit(first, "Environment"))
    assert own == {"RECEIVER_OPERATIONS_LISTEN=127.0.0.1:9465"}
    assert unit(second, "User") == unit(first, "User")
    path.write_text(second.replace("/opt/receiver/bin/receiver", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], check=False, capture_output=True, text=True)
    assert path.name not in done.stderr


def test_compose(machine: Machine) -> None:
    """The compose file and the service that the commands name are there, and the variables are kept from others."""
    (block,) = blocks("docs/how-to/deploy-compose.md")
    machine.without("docker", "editor").run(block)
    assert (machine.project / "deploy/.env").stat().st_mode & 0o777 == 0o600
    edit, up, execute = machine.commands
    assert edit == ["editor", "deploy/.env"]
    for command in (up, execute):
        (file,) = options(command, "--file")
        services = yaml.safe_load((machine.project / file).read_text())["services"]
    assert up[4:] == ["up", "--detach", "--build"]
    assert execute[4:] == ["exec", "receiver", "receiver", "config", "--registration"]
    assert "receiver" in services


def test_container(machine: Machine) -> None:
    """The image is built from the file that is there, and run with what it needs and no more."""
    build, start = blocks("docs/how-to/deploy-container.md")
    machine.without("docker").run(build)
    machine.run(start)
    built, started = machine.commands
    dockerfile = (machine.project / options(built, "--file")[0]).read_text()
    assert started[-1] == options(built, "--tag")[0]
    ports = {port.split(":")[-1] for port in options(started, "--publish")}
    assert f"EXPOSE {' '.join(sorted(ports))}\n" in dockerfile
    assert all(port.startswith("127.0.0.1:") for port in options(started, "--publish"))
    assert f"VOLUME {options(started, '--volume')[0].split(':')[1]}\n" in dockerfile
    (assignment,) = re.findall(r"RECEIVER_OPERATIONS_LISTEN=\S+", " ".join(started))
    settings = load(None, dict([assignment.split("=")], RECEIVER_KEY=KEY, RECEIVER_CONFIG="/dev/null"))
    assert settings.operations_listen == ("0.0.0.0", 9464)
    (service,) = unit((ROOT / "deploy/systemd/receiver.service").read_text(), "TimeoutStopSec")
    assert options(started, "--stop-timeout") == [service]


def test_kubernetes(machine: Machine) -> None:
    """The Secret is in the manifests' namespace, and has the keys that the pods ask for."""
    (block,) = blocks("docs/how-to/deploy-kubernetes.md")
    folder = machine.project / "deploy/kubernetes"
    (folder / "key").write_text(KEY)
    (folder / "database-url").write_text("postgresql+psycopg://a:b@c/d")
    machine.without("kubectl").run(block, folder)
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    create, secret, apply = machine.commands
    assert create[1:] == ["create", "namespace", kustomization["namespace"]]
    assert options(secret, "--namespace") == [kustomization["namespace"]]
    assert apply[1:] == ["apply", "--kustomize", "."]
    asked = [one for file in ("statefulset.yaml", "migrate.yaml") for one in secrets(folder / file)]
    assert {one["name"] for one in asked} == {secret[secret.index("generic") + 1]}
    given = [word.removeprefix("--from-literal=") for word in secret if word.startswith("--from-literal=")]
    assert {one.partition("=")[0] for one in given} == {one["key"] for one in asked if not one.get("optional")}
    assert [one.partition("=")[2] for one in given] == [KEY, "postgresql+psycopg://a:b@c/d"]


def secrets(manifest: Path) -> list[dict[str, Any]]:
    """The keys of Secrets that a manifest's pods take, as variables or as files."""
    pod = yaml.safe_load(manifest.read_text())["spec"]["template"]["spec"]
    variables = [one["valueFrom"]["secretKeyRef"] for one in pod["containers"][0]["env"] if "valueFrom" in one]
    mounted = [one["secret"] for one in pod["volumes"] if "secret" in one]
    return variables + [{"name": one["secretName"], "key": item["key"]} for one in mounted for item in one["items"]]


def test_prometheus(machine: Machine) -> None:
    """Prometheus takes the files where they are put, and afterwards each alert has a link that people can click."""
    install, link = blocks("docs/how-to/monitoring.md", "Prometheus")
    machine.run(install)
    machine.run(link)
    folder = machine.root / "etc/prometheus"
    links = re.findall(r"runbook_url: (\S+)", (folder / "alerts.yml").read_text())
    assert all(
        re.fullmatch(r"https://git.example.com/receiver/blob/main/docs/how-to/runbook.md#\w+", one) for one in links[1:]
    )
    assert len(links) > 10
    checked = subprocess.run(
        ["promtool", "check", "config", folder / "prometheus.yml"], check=False, capture_output=True
    )
    assert checked.returncode == 0, checked.stderr


def test_reader(machine: Machine) -> None:
    """The command is the one that reader.sql itself says, which the tests of the monitoring run."""
    (block,) = blocks("docs/how-to/monitoring.md", "A role that reads the views")
    machine.without("psql").run(block)
    assert block.text.strip() in (ROOT / "deploy/postgres/reader.sql").read_text()


def test_grafana(machine: Machine) -> None:
    """The dashboards are put where the provisioning, which is put where Grafana has it, says."""
    (block,) = blocks("docs/how-to/monitoring.md", "Grafana")
    machine.run(block)
    provisioned = machine.root / "etc/grafana/provisioning"
    (path,) = re.findall(r"path: (\S+)", (provisioned / "dashboards/metastudio.yaml").read_text())
    assert {file.name for file in (machine.root / path.lstrip("/")).iterdir()} == {"receiver.json", "streams.json"}


def read_settings(block: Block, folder: Path, **environ: str) -> Settings:
    """The settings that a block is, as the receiver reads them."""
    file = folder / "receiver.toml"
    file.write_text(block.text)
    return load(file, {"RECEIVER_KEY": KEY, **environ})


def test_settings_behind_a_proxy(tmp_path: Path) -> None:
    """The receiver takes the settings: both shipped proxies reach it with them, and it serves no TLS."""
    (block,) = blocks("docs/how-to/behind-a-proxy.md")
    settings = read_settings(block, tmp_path)
    assert settings.tls_certificate is None
    host, port = settings.listen
    for name in ("nginx.conf", "Caddyfile"):
        text = (ROOT / "deploy/proxy" / name).read_text()
        assert f"{host}:{port}" in text
        wanted = re.findall(r'"([\d.:]+)"', text.partition("trusted_proxies = [")[2].partition("]")[0])
        assert set(wanted) <= {str(network.network_address) for network in settings.trusted_proxies}


def test_settings_for_tls(tmp_path: Path) -> None:
    """The receiver takes the settings."""
    (block,) = blocks("docs/how-to/tls-certificate.md", language="toml")
    settings = read_settings(block, tmp_path)
    assert settings.tls_certificate is not None
    assert settings.tls_key is not None


def test_settings_of_several_receivers(tmp_path: Path) -> None:
    """The two receivers share the port and the database, and nothing else."""
    first, second = (read_settings(block, tmp_path) for block in blocks("docs/how-to/scale-out.md", language="toml"))
    differing = {name for name in Settings.__slots__ if getattr(first, name) != getattr(second, name)}
    assert differing == {"journal", "operations_listen"}


def test_status_page(machine: Machine, tmp_path: Path) -> None:
    """Both tunnels lead to where the operations listener is, and the settings turn the page on."""
    tunnel, forward = blocks("docs/how-to/status-page.md", "From another machine")
    machine.without("ssh", "kubectl").run(tunnel)
    machine.run(forward)
    ssh, kubectl = machine.commands
    defaults = load(None, {"RECEIVER_KEY": KEY, "RECEIVER_CONFIG": "/dev/null"})
    assert options(ssh, "-L") == ["9464:{}:{}".format(*defaults.operations_listen)]
    folder = ROOT / "deploy/kubernetes"
    stateful_set = yaml.safe_load((folder / "statefulset.yaml").read_text())
    ports = [one["containerPort"] for one in stateful_set["spec"]["template"]["spec"]["containers"][0]["ports"]]
    assert kubectl[-3:-1] == ["port-forward", f"{stateful_set['metadata']['name']}-0"]
    assert int(kubectl[-1]) in ports
    assert options(kubectl, "--namespace") == [yaml.safe_load((folder / "kustomization.yaml").read_text())["namespace"]]
    on, named = (read_settings(block, tmp_path) for block in blocks("docs/how-to/status-page.md", language="toml"))
    assert on.status_page
    assert named.status_page_hosts == ("receiver.internal.example",)
