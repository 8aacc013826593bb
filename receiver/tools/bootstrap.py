"""What `receiver init` writes: a configuration with a random key, and a self-signed certificate for localhost."""

from __future__ import annotations

import ipaddress
import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from receiver.settings.declaration import declared, written
from receiver.settings.settings import Settings

_CONFIGURATION = """\
# The MetaStudio callback receiver. `receiver config` shows what is in force; docs/reference/settings.md
# explains every setting.

# The URL as registered with MetaStudio, to the letter: it is what the signature is made over.
live_event_type_callback_url = "{url}"
auth_type = "{auth_type}"
key = "{key}"

# Self-signed, for a first try on this machine. MetaStudio needs one that a public authority signed.
tls_certificate = "{certificate}"
tls_key = "{private_key}"

listen = "{listen}"
operations_listen = "{operations_listen}"
# A page for people at / of that address: what is live, and what came last.
status_page = true
journal = "{journal}"
database_url = "{database_url}"
"""


def write_configuration(path: Path, url: str, auth_type: str) -> None:
    """Write the file at `path` and the certificate under ``var/``; raises `FileExistsError` rather than overwrite."""
    certificate, private_key = Path("var/localhost.crt"), Path("var/localhost.key")
    given = {"url": url, "auth_type": auth_type, "certificate": certificate, "private_key": private_key}
    defaults = {name: written(one.default) for name, one in declared(Settings).items()}
    _write_new(path, _CONFIGURATION.format(key=secrets.token_hex(16), **given, **defaults).encode())
    if not private_key.exists() and not certificate.exists():
        private_key.parent.mkdir(parents=True, exist_ok=True)
        pem_certificate, pem_key = self_signed()
        _write_new(private_key, pem_key)
        _write_new(certificate, pem_certificate)


def self_signed() -> tuple[bytes, bytes]:
    """A certificate for localhost and the loopback addresses, for 825 days, and its key, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    addresses = [x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", "::1")]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=825))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads: every one of them is a secret, or goes with one."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
