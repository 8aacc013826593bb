"""From a fault to the message, through the shipped configurations: real Alertmanager, blackbox exporter and proxy."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from receiver.protocol.signature import sign
from tests.helpers.authority import Authority
from tests.helpers.http_server import answering
from tests.helpers.pages import blocks
from tests.helpers.prometheus import FOLDER, scraping, uncommented
from tests.helpers.receiver import SAMPLES, free_port, running, wait_until
from tests.helpers.shell import run


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A URL, and what is posted to it."""
    posted: list[dict[str, Any]] = []

    def keep(_: str, body: bytes) -> bytes:
        posted.append(json.loads(body))
        return b""

    with answering(keep) as url:
        yield f"{url}/alerts", posted


@contextmanager
def program(folder: Path, command: list[str], ready_url: str) -> Iterator[None]:
    """A server of somebody else, from when it answers until the end of the block."""

    def answers() -> bool:
        with suppress(OSError), urllib.request.urlopen(ready_url, timeout=10):
            return True
        return False

    log = folder / f"{command[0]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        wait_until(lambda: answers() or process.poll() is not None, command[0])
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def alertmanager(folder: Path, url: str) -> Iterator[str]:
    """The address of an Alertmanager with the shipped configuration and its example of a plain webhook."""
    shipped = uncommented((FOLDER / "alertmanager.yml").read_text(), "webhook_configs:")
    file = folder / "alertmanager.yml"
    file.write_text(shipped.replace("http://127.0.0.1:8080/alerts", url))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus-alertmanager", f"--config.file={file}", f"--storage.path={folder / 'alerts'}"]
    command += [f"--web.listen-address={address}", "--cluster.listen-address="]
    with program(folder, command, f"http://{address}/-/ready"):
        yield address


def test_somebody_is_told(tmp_path: Path) -> None:
    """A quiet stream's second callback with a wrong key: the alert arrives at the webhook, with its words and link."""
    with ExitStack() as stack:
        url, posted = stack.enter_context(webhook())
        address = stack.enter_context(alertmanager(tmp_path, url))
        receiver = stack.enter_context(running(tmp_path))
        prometheus = stack.enter_context(
            scraping(tmp_path / "prometheus", receiver.operations_port, alertmanager=address)
        )
        rejected = "sum(metastudio_callbacks_rejected_total)"
        wait_until(lambda: prometheus.value(rejected) == 0, "a first scrape")
        for count in (1, 2):
            query = sign(receiver.url, "another key", time.time()).url.partition("?")[2]
            body = SAMPLES["SHOOT_SCRIPT_SWITCH"]
            assert receiver.request("POST", f"/callbacks/metastudio?{query}", body).status == 401
            wait_until(lambda count=count: prometheus.value(rejected) == count, "a scrape")  # type: ignore[misc]
        (alert,) = wait_until(lambda: posted, "the alert")[0]["alerts"]
    assert alert["status"] == "firing"
    assert alert["labels"]["alertname"] == "MetaStudioCallbacksRejected"
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["summary"] == "Callbacks to default are rejected as wrong"
    assert alert["annotations"]["runbook_url"].endswith("runbook.md#metastudiocallbacksrejected")


def test_commands_of_the_guide(tmp_path: Path) -> None:
    """The shipped file is right, and what the guide sends arrives at once as a critical alert."""
    check, add = blocks("docs/how-to/monitoring.md", "Somebody is told")
    first, reload = check.text.splitlines()
    assert reload == "systemctl reload prometheus-alertmanager"
    assert "SUCCESS" in run(first.replace("/etc/prometheus", str(FOLDER)), tmp_path, {})
    with webhook() as (url, posted), alertmanager(tmp_path, url) as address:
        run(add.text.replace("localhost:9093", address), tmp_path, {})
        (alert,) = wait_until(lambda: posted, "the alert")[0]["alerts"]
    assert alert["labels"] == {"alertname": "MetaStudioTest", "severity": "critical"}


@contextmanager
def caddy(folder: Path, port: int, authority: Authority) -> Iterator[str]:
    """The public host and port of a proxy before the receiver at `port`, with a certificate that ends in a day."""
    authority.issue(folder / "public.crt", folder / "public.key", days=1)
    host, ready = f"localhost:{free_port()}", free_port()
    (folder / "Caddyfile").write_text(
        f"""{{
            admin off
            auto_https off
        }}
        https://{host} {{
            bind 127.0.0.1
            tls {folder}/public.crt {folder}/public.key
            reverse_proxy 127.0.0.1:{port}
        }}
        http://127.0.0.1:{ready} {{
            respond 200
        }}
        """
    )
    command = ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with program(folder, command, f"http://127.0.0.1:{ready}"):
        yield host


@contextmanager
def blackbox_exporter(folder: Path, authority: Authority) -> Iterator[str]:
    """The address of an exporter with the shipped module, which trusts the test's authority beside."""
    (folder / "authority.pem").write_bytes(authority.pem)
    file = folder / "blackbox.yml"
    shipped = (FOLDER / "blackbox.yml").read_text()
    file.write_text(f"{shipped}      tls_config: {{ca_file: {folder}/authority.pem}}\n")
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus-blackbox-exporter", f"--config.file={file}", f"--web.listen-address={address}"]
    with program(folder, command, f"http://{address}/-/healthy"):
        yield address


def test_certificate_of_a_proxy(tmp_path: Path) -> None:
    """Behind a proxy the receiver knows no certificate: the probe sees that it ends, and when nothing answers."""
    authority = Authority()
    with ExitStack() as stack:
        receiver = stack.enter_context(running(tmp_path, tls=False))
        exporter = stack.enter_context(blackbox_exporter(tmp_path, authority))
        proxy = ExitStack()
        host = proxy.enter_context(caddy(tmp_path, receiver.port, authority))
        stack.enter_context(proxy)
        prometheus = stack.enter_context(
            scraping(tmp_path / "prometheus", receiver.operations_port, exporter=exporter, host=host)
        )
        of_alert = 'ALERTS{alertname="%s"}'
        wait_until(lambda: prometheus.query(of_alert % "MetaStudioCertificateEnds"), "the alert on the certificate")
        ((labels, left),) = prometheus.query("job_instance:metastudio_certificate_left_seconds:min < 1e9")
        assert labels["instance"] == f"https://{host}/healthz"
        assert left == pytest.approx(86400, abs=3600)
        assert prometheus.value('probe_success{probe="metastudio-public-url"}') == 1
        assert not prometheus.query(of_alert % "MetaStudioPublicUrlFails")
        proxy.close()
        wait_until(lambda: prometheus.query(of_alert % "MetaStudioPublicUrlFails"), "the alert on the public URL")
