"""TLS as clients meet it: what is offered, and a certificate that is exchanged while they are connected."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509

from tests.helpers.authority import Authority
from tests.helpers.receiver import SAMPLES, Process, running, wait_until

SAMPLE = SAMPLES["SHOOT_SCRIPT_SWITCH"]
SUITES = ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
EXPIRY = "certificate_expiry_timestamp_seconds"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(params=["ECDSA", "RSA"])
def receiver(tmp_path: Path, authority: Authority, request: pytest.FixtureRequest) -> Iterator[Process]:
    """A receiver with a certificate of either kind."""
    authority.issue(tmp_path / "tls.crt", tmp_path / "tls.key", with_rsa=request.param == "RSA")
    with running(tmp_path) as process:
        yield process


def shake_hands(receiver: Process, context: ssl.SSLContext) -> str:
    """The cipher suite that was agreed on, or nothing."""
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=60) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secured:
                suite = secured.cipher()
                return suite[0] if suite else ""
        except OSError:
            return ""


def client(version: ssl.TLSVersion, ciphers: str = "ALL:COMPLEMENTOFALL") -> ssl.SSLContext:
    """A client that speaks one version, and takes everything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_what_is_offered(receiver: Process, request: pytest.FixtureRequest) -> None:
    """TLS 1.2 with ECDHE and AEAD, TLS 1.3, and no other version, suite or curve."""
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        assert not shake_hands(receiver, client(version))
    assert shake_hands(receiver, client(ssl.TLSVersion.TLSv1_3))
    every = [one["name"] for one in client(ssl.TLSVersion.TLSv1_2).get_ciphers() if one["protocol"] != "TLSv1.3"]
    assert len(every) > 50
    agreed = {name for name in every if shake_hands(receiver, client(ssl.TLSVersion.TLSv1_2, name))}
    kind = request.node.callspec.params["receiver"]
    assert agreed == {f"ECDHE-{kind}-{suite}" for suite in SUITES}
    groups = {name: offers_group(receiver, name) for name in ("P-256", "P-384", "P-521", "X448", "ffdhe2048")}
    assert [name for name, offered in groups.items() if offered] == ["P-256"]


def offers_group(receiver: Process, name: str) -> bool:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{receiver.port}", "-groups", name]
    return subprocess.run(command, input=b"", capture_output=True, check=False).returncode == 0


def served(receiver: Process) -> int:
    """The serial number of the certificate that a new client gets."""
    context = client(ssl.TLSVersion.TLSv1_3)
    with (
        socket.create_connection(("127.0.0.1", receiver.port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        certificate = secured.getpeercert(binary_form=True)
        assert certificate
        return x509.load_der_x509_certificate(certificate).serial_number


@pytest.mark.parametrize("by", ["SIGHUP", "itself"])
def test_a_new_certificate(tmp_path: Path, authority: Authority, by: str) -> None:
    """A new certificate is used on SIGHUP, and by itself soon after; who is connected stays so."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    first = authority.issue(certificate, key, days=30)
    with running(tmp_path) as receiver, closing(receiver.connection()) as kept:
        kept.request("POST", receiver.target(), SAMPLE)
        assert kept.getresponse().read()
        before = kept.sock
        assert served(receiver) == first
        assert receiver.metric(EXPIRY) == pytest.approx(time.time() + 30 * 86400, abs=600)
        second = authority.issue(certificate, key, days=60)
        if by == "SIGHUP":
            receiver.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served(receiver) == second, "the new certificate")
        assert receiver.metric(EXPIRY) == pytest.approx(time.time() + 60 * 86400, abs=600)
        kept.request("POST", receiver.target(), SAMPLE)
        assert kept.getresponse().status == 200
        assert kept.sock is before
        assert '"certificate reloaded"' in receiver.log


def test_without_a_certificate(tmp_path: Path) -> None:
    """Without TLS the expiry is no number, and SIGHUP is nothing."""
    with running(tmp_path, tls=False) as receiver:
        receiver.process.send_signal(signal.SIGHUP)
        value = receiver.metric(EXPIRY)
        assert value != value  # noqa: PLR0124 (so NaN is told)
        assert receiver.post(SAMPLE).status == 200
