"""The TLS certificate: which TLS is offered with it, and how a new one is used without a restart."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from cryptography import x509

from receiver.metrics import Metrics
from receiver.server.sockets import ListenError

logger = logging.getLogger(__name__)

# Mozilla's "intermediate" without the slow DHE. TLS 1.3 has good ones only.
_TLS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
# By OpenSSL's reason, which is None for a file in which it finds nothing to load.
_PROBLEMS = {"KEY_VALUES_MISMATCH": "do not belong together", None: "are not in PEM format"}


class Certificate:
    """A pair of PEM files. `context` is used for new connections; open ones keep the one that they began with."""

    def __init__(self, certificate: Path, key: Path, metrics: Metrics) -> None:
        self._certificate = certificate
        self._key = key
        self._expiry = metrics.certificate_expiry_timestamp_seconds
        self._seen = self._state()
        self.context = self._load()

    def reload_if_changed(self) -> None:
        """`reload` if the files have changed since the last time."""
        if self._state() != self._seen:
            self.reload()

    def reload(self) -> None:
        """Use what the files hold now; if that is not usable, log so and keep the old one."""
        self._seen = self._state()
        try:
            self.context = self._load()
        except ListenError as error:
            details = {"problem": str(error)}
            logger.error("certificate not reloaded, the old one stays", extra=details)  # noqa: TRY400 (in one line)
        else:
            logger.info("certificate reloaded", extra={"certificate": str(self._certificate)})

    def _load(self) -> ssl.SSLContext:
        try:
            context = tls_context(self._certificate, self._key)
            # The first one in the file is the server's own, others are its chain.
            own = x509.load_pem_x509_certificates(self._certificate.read_bytes())[0]
        except (OSError, ValueError) as error:  # as it is while somebody exchanges the files
            raise ListenError(f"tls_certificate: {self._certificate} cannot be used: {error}") from error
        self._expiry.set(own.not_valid_after_utc.timestamp())
        return context

    def _state(self) -> list[tuple[int, int, int]]:
        """What changes when the files do, or when a link leads to others, as Kubernetes does it; empty without both."""
        try:
            found = [path.stat() for path in (self._certificate, self._key)]
        except OSError:
            return []
        return [(file.st_mtime_ns, file.st_size, file.st_ino) for file in found]


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or later, only ECDHE and AEAD, with `certificate` (PEM, the chain included) and its `key`."""
    for setting, path in (("tls_certificate", certificate), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            # A word without a slash or a dot may be a secret that belongs to another setting.
            problem = f"{path}: {error.strerror}" if set("/.") & set(str(path)) else error.strerror
            raise ListenError(f"{setting}: {problem}: name a PEM file that can be read") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS_1_2)
    context.set_ecdh_curve("prime256v1")  # every client has it, and Python could only name one
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])

    def refuse_to_ask() -> str:
        raise ListenError(f"tls_key: {key} is encrypted: store it without a passphrase, readable by the receiver alone")

    try:
        context.load_cert_chain(certificate, key, password=refuse_to_ask)
    except ssl.SSLError as error:
        problem = _PROBLEMS.get(error.reason, f"cannot be used ({error.reason})")
        raise ListenError(
            f"tls_key: {key} and tls_certificate {certificate} {problem}: set the certificate, then its chain, and the"
            " private key that it was made for"
        ) from error
    return context
