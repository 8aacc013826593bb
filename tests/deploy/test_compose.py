"""The compose file and what it mounts, as far as it can be shown without Docker."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from receiver.protocol.signature import sign
from receiver.settings.load import load
from tests.helpers.caddy import CADDY
from tests.helpers.receiver import KEY, SAMPLES, Process, free_port, running, wait_until

FOLDER = Path(__file__).parents[2] / "deploy"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = dict(re.findall(r"^(\w+)=(.*)$", (FOLDER / ".env.example").read_text(), flags=re.MULTILINE))


def mounts(service: str) -> dict[str, str]:
    """Where a service has which volume or path."""
    return {one.split(":")[1]: one.split(":")[0] for one in SERVICES[service].get("volumes", [])}


def environment(service: str) -> dict[str, str]:
    """A service's environment, with the example's variables filled in."""
    values = EXAMPLE | {"CALLBACK_KEY": KEY}
    given = SERVICES[service]["environment"]
    return {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: values[found[1]], str(text)) for name, text in given.items()
    }


def test_published_schema() -> None:
    """The file is what the published schema of compose files asks for."""
    checker = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [checker, "--builtin-schema", "vendor.compose-spec", str(FOLDER / "compose.yaml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_mounted_exists() -> None:
    """Each path that is mounted or built from is in the project, and each volume and network is declared and used."""
    sources = [source for service in SERVICES for source in mounts(service).values()]
    for path in [source for source in sources if source.startswith(".")]:
        assert (FOLDER / path).exists(), path
    assert {source for source in sources if not source.startswith(".")} == set(COMPOSE["volumes"])
    assert {one for service in SERVICES.values() for one in service.get("networks", [])} == set(COMPOSE["networks"])
    build = SERVICES["receiver"]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).exists()


@pytest.mark.parametrize("service", ["receiver", "migrate"])
def test_settings(service: str) -> None:
    """With the example's values filled in, the receiver takes its environment, and knows each variable of it."""
    given = environment(service)
    settings = load(None, given | {"RECEIVER_CONFIG": "/dev/null"})
    known = {*settings.__slots__, *settings.endpoints[0].__slots__, "key_file"}
    assert {name.removeprefix("RECEIVER_").lower() for name in given} <= known
    assert settings.endpoints[0].key == KEY
    assert urlsplit(settings.endpoints[0].live_event_type_callback_url).netloc == EXAMPLE["CALLBACK_HOST"]


def test_variables_are_in_the_example() -> None:
    """Each variable that the file takes is in .env.example, commented, and none is there in vain."""
    taken = set(re.findall(r"\$\{(\w+)", TEXT)) | {secret["environment"] for secret in COMPOSE["secrets"].values()}
    assert taken == set(EXAMPLE)
    for name in EXAMPLE:
        assert re.search(rf"^# .+\n(\w+=.*\n)?{name}=", (FOLDER / ".env.example").read_text(), flags=re.MULTILINE), name


def test_secrets_are_asked_for() -> None:
    """No secret has a value in the project: compose refuses to start without one."""
    for name, value in EXAMPLE.items():
        assert not value or name in ("CALLBACK_HOST", "CALLBACK_URL")
    for name in re.findall(r"\$\{(\w+)[^:\w]", TEXT):
        assert name == "PREVIOUS_CALLBACK_KEY"


def test_images_are_pinned() -> None:
    """Each image that is not built here has a version, and one image has one."""
    images = {service["image"] for service in SERVICES.values() if "build" not in service}
    assert all(re.fullmatch(r"[a-z/-]+:v?\d+\.\d+(\.\d+)?(-bookworm)?", image) for image in images)
    assert len({image.split(":")[0] for image in images}) == len(images)


def test_the_caddy_of_the_tests_is_the_one_of_the_image() -> None:
    """What the tests run of caddy's configuration is run by the version that is shipped."""
    version = subprocess.run([CADDY, "version"], check=True, capture_output=True, text=True).stdout.split()[0]
    assert SERVICES["caddy"]["image"] == f"caddy:{version.removeprefix('v')}"


def test_only_caddy_is_reached_from_outside() -> None:
    """Nothing but caddy's ports is open to other machines."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.pop("caddy") == ["80:80", "443:443"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_ports_match() -> None:
    """Caddy and Prometheus look for the receiver where it listens, on a network that they share with it."""
    settings = load(None, environment("receiver") | {"RECEIVER_CONFIG": "/dev/null"})
    assert f"reverse_proxy receiver:{settings.listen[1]} " in (FOLDER / "compose/Caddyfile").read_text()
    assert f'"receiver:{settings.operations_listen[1]}"' in (FOLDER / "compose/prometheus.yml").read_text()
    for other in ("caddy", "prometheus"):
        assert set(SERVICES[other]["networks"]) & set(SERVICES["receiver"]["networks"])
    (network,) = SERVICES["caddy"]["networks"]
    (subnet,) = COMPOSE["networks"][network]["ipam"]["config"]
    assert [str(one) for one in settings.trusted_proxies] == [subnet["subnet"]]


def test_journal_is_a_volume() -> None:
    """The journal is where the image keeps its state, on a volume that stays when the container goes."""
    for name in ("receiver", "migrate"):
        (target,) = (target for target, source in mounts(name).items() if source == "journal")
        assert f"VOLUME {target}\n" in (FOLDER / "Dockerfile").read_text()


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    """Prometheus takes the files that are mounted, where they are mounted."""
    for target, source in mounts("prometheus").items():
        if target.startswith("/etc/prometheus/"):
            shutil.copy(FOLDER / source, tmp_path / Path(target).name)
    done = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


@contextmanager
def caddy(folder: Path, receiver: Process, try_duration: str = "15s") -> Iterator[Callable[[], int]]:
    """Caddy in front of the receiver, without certificates; gives what posts a callback and returns the status."""
    port = free_port()
    text = (FOLDER / "compose/Caddyfile").read_text().replace("receiver:8443", f"127.0.0.1:{receiver.port}")
    assert "lb_try_duration 15s" in text
    (folder / "Caddyfile").write_text(text.replace("lb_try_duration 15s", f"lb_try_duration {try_duration}"))
    environ = {"CALLBACK_HOST": f"http://127.0.0.1:{port}", "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    command = [CADDY, "run", "--adapter", "caddyfile", "--config", "Caddyfile"]
    with (folder / "caddy.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)

    def post() -> int:
        parts = urlsplit(sign(receiver.url, KEY, time.time()).url)
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            # In both of the places where MetaStudio may put it.
            headers = {"X-Hw-Mss-Secret": parse_qs(parts.query)["hwSecret"][0]}
            connection.request("POST", f"{parts.path}?{parts.query}", SAMPLES["SHOOT_SCRIPT_SWITCH"], headers)
            return connection.getresponse().status

    try:
        wait_until(lambda: b"serving initial configuration" in (folder / "caddy.log").read_bytes(), "caddy")
        yield post
    finally:
        process.terminate()
        process.wait(60)


def test_caddy_passes_callbacks_on(tmp_path: Path) -> None:
    """Through caddy a callback reaches the receiver."""
    with running(tmp_path, tls=False) as receiver, caddy(tmp_path, receiver) as post:
        assert post() == 200
        assert receiver.stop() == 0


def test_caddy_logs_no_secret(tmp_path: Path) -> None:
    """When the receiver stays away, what caddy logs of the callback holds no signature."""
    log = tmp_path / "caddy.log"
    receiver = Process(tmp_path, tls=False)
    with caddy(tmp_path, receiver, "0s") as post:
        assert post() == 502
        line = wait_until(lambda: [one for one in log.read_text().splitlines() if '"status":502' in one], "its log")[0]
    request = json.loads(line)["request"]
    assert request["uri"] == "/callbacks/metastudio"
    assert "headers" not in request
