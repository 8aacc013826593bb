from __future__ import annotations

import time
from pathlib import Path

import pytest

from receiver.metrics import Metrics
from receiver.server.certificate import Certificate
from receiver.server.sockets import ListenError
from tests.helpers.authority import Authority

EXPIRY = "metastudio_certificate_expiry_timestamp_seconds"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def test_a_bad_new_pair(tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """A new pair that is not one is told about once, and the old one stays until there is a good one."""
    certificate, key, metrics = tmp_path / "tls.crt", tmp_path / "tls.key", Metrics()
    authority.issue(certificate, key, days=30)
    used = Certificate(certificate, key, metrics)
    first = used.context
    used.reload_if_changed()
    assert not caplog.records

    authority.issue(certificate, tmp_path / "other.key", days=60)
    for _ in range(3):
        used.reload_if_changed()
    certificate.unlink()
    for _ in range(3):
        used.reload_if_changed()
    problems = [str(vars(record)["problem"]) for record in caplog.records]
    assert [("do not belong together" in one, "No such file" in one) for one in problems] == [
        (True, False),
        (False, True),
    ]
    assert used.context is first
    assert metrics.registry.get_sample_value(EXPIRY) == pytest.approx(time.time() + 30 * 86400, abs=600)

    authority.issue(certificate, key, days=90)
    used.reload_if_changed()
    assert used.context is not first
    assert metrics.registry.get_sample_value(EXPIRY) == pytest.approx(time.time() + 90 * 86400, abs=600)


def test_files_behind_a_link(tmp_path: Path, authority: Authority) -> None:
    """A link that is pointed to other files, as Kubernetes does it, is a change."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        authority.issue(tmp_path / name / "tls.crt", tmp_path / name / "tls.key")
    link = tmp_path / "current"
    link.symlink_to("old")
    used = Certificate(link / "tls.crt", link / "tls.key", Metrics())
    first = used.context
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").replace(link)
    used.reload_if_changed()
    assert used.context is not first


@pytest.mark.parametrize(
    ("certificate", "key", "problem"),
    [
        ("tls.crt", "other.key", "tls_key: .*other.key and tls_certificate .* do not belong together: set the"),
        ("tls.crt", "encrypted.key", "tls_key: .* is encrypted: store it without"),
        ("tls.crt", "tls.crt", "tls_key: .* are not in PEM format"),
        ("tls.crt", "missing.key", "tls_key: .*missing.key: No such file or directory: name"),
        ("", "tls.key", "tls_certificate: .*: Is a directory: name"),
        ("tls.key", "tls.key", "tls_key: .* are not in PEM format"),
        ("trusted.crt", "tls.key", "tls_certificate: .*trusted.crt cannot be used: "),
    ],
)
def test_a_pair_that_cannot_be_used(
    tmp_path: Path, authority: Authority, certificate: str, key: str, problem: str
) -> None:
    """What is wrong with the files is said with the setting and the remedy; nobody is asked for a passphrase."""
    authority.issue(tmp_path / "tls.crt", tmp_path / "tls.key")
    authority.issue(tmp_path / "other.crt", tmp_path / "other.key")
    authority.issue(tmp_path / "x.crt", tmp_path / "encrypted.key", passphrase="secret")
    # OpenSSL's own format, which nothing else reads.
    own_format = (tmp_path / "tls.crt").read_text().replace(" CERTIFICATE-", " TRUSTED CERTIFICATE-")
    (tmp_path / "trusted.crt").write_text(own_format)
    with pytest.raises(ListenError, match=problem):
        Certificate(tmp_path / certificate, tmp_path / key, Metrics())
