"""The settings, each declared once. Names are the vendor's where it has any.

Everything else is derived from the fields below: how the file and the environment are read, what `receiver config`
shows, which names are unknown, and the table in docs/reference/settings.md.
"""
# ruff: noqa: RUF009 (setting() makes a field, as dataclasses.field() does)

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from receiver.addresses import Network
from receiver.protocol.events import EventType
from receiver.protocol.signature import AUTO, AuthType, Verifier
from receiver.settings import database_url as urls
from receiver.settings import parsers
from receiver.settings.declaration import setting

DEFAULT_URL = "https://localhost:8443/callbacks/metastudio"
SHORTEST_KEY = 16  # characters; shorter ones are warned about
_MASK = "****"


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """One registration: the vendor's ``live_event_callback_config``, and how to check it."""

    name: str
    live_event_type_callback_url: str = setting(
        parsers.callback_url, DEFAULT_URL, "The URL, exactly as registered.", mask=lambda endpoint: endpoint.public_url
    )
    auth_type: AuthType = setting(
        parsers.auth_type, AuthType.MSS_A, "How callbacks are signed: `MSS_A`, `MSS_A_HEAD` or `NONE`."
    )
    key: str = setting(
        parsers.key,
        "",
        "The registered key, of up to 32 characters; needed unless `auth_type` is `NONE`.",
        mask=lambda endpoint: _MASK if endpoint.key else "",
        file=(parsers.key_in_file, "A file that holds the key alone, in place of `key`."),
    )
    previous_key: str = setting(
        parsers.key_or_none,
        "",
        "The key before this one, accepted too while the key is changed.",
        mask=lambda endpoint: _MASK if endpoint.previous_key else "",
    )
    signature_form: str = setting(
        parsers.signature_form, AUTO, "The name of the one signature form to accept, or `auto` for all."
    )
    timestamp_tolerance: float = setting(
        parsers.number, 300, "Seconds that the signed time may differ from the clock, either way."
    )

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys to accept, the current one first."""
        return tuple(key for key in (self.key, self.previous_key) if key)

    @property
    def has_short_key(self) -> bool:
        """Whether a key is so short that it might be guessed."""
        return any(len(key) < SHORTEST_KEY for key in self.keys)

    def verifier(self) -> Verifier:
        """The check of this endpoint's signatures."""
        return Verifier(
            self.live_event_type_callback_url,
            self.auth_type,
            self.keys,
            form=self.signature_form,
            tolerance=self.timestamp_tolerance,
        )

    @property
    def registration(self) -> dict[str, Any]:
        """The vendor's ``live_event_callback_config``, with the key in it."""
        config: dict[str, Any] = {
            "live_event_type_callback_url": self.live_event_type_callback_url,
            "auth_type": self.auth_type,
            "callback_event_type": list(EventType),
        }
        return config | ({"key": self.key} if self.key else {})

    @property
    def public_url(self) -> str:
        """The URL without what may be a secret in it: its query and, where it is the only secret, its path."""
        parts = urlsplit(self.live_event_type_callback_url)
        path = f"/{_MASK}" if self.auth_type is AuthType.NONE else parts.path
        return urlunsplit(parts._replace(path=path, query=_MASK if parts.query else ""))


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Addresses are (host, port), sizes are in bytes, times in seconds."""

    endpoints: tuple[EndpointSettings, ...]
    listen: tuple[str, int] = setting(parsers.address, ("0.0.0.0", 8443), "Host and port that callbacks come to.")  # noqa: S104 (they come from outside)
    tls_certificate: Path | None = setting(
        parsers.path, None, "A PEM file with the certificate and its chain; without one, plain HTTP is served."
    )
    tls_key: Path | None = setting(parsers.path, None, "A PEM file with the certificate's private key.")
    operations_listen: tuple[str, int] = setting(
        parsers.address, ("127.0.0.1", 9464), "Host and port of `/metrics`, `/healthz`, `/readyz` and the status page."
    )
    status_page: bool = setting(
        parsers.switch,
        False,
        "Whether there is a page for people at `/` there: `true` or `false`. `receiver init` writes `true`.",
    )
    status_page_hosts: tuple[str, ...] = setting(
        parsers.host_names,
        (),
        'Names of that listener in a browser, beside `localhost` and addresses, such as `["receiver.internal"]`.',
    )
    journal: Path = setting(parsers.path, Path("var/journal.db"), "The journal's file, on a local disk.")
    journal_max_bytes: int = setting(
        partial(parsers.number, least=2**20),
        2**30,
        "Bytes, at least 1048576, that the journal may take before callbacks are answered 503.",
    )
    journal_keep: int = setting(
        partial(parsers.number, least=0),
        600,
        "Seconds that stored events stay in the journal, to be offered again after a database outage; 0 is none.",
    )
    database_url: str = setting(
        urls.database_url,
        "sqlite:///var/receiver.db",
        "The database, as `sqlite:///PATH` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`.",
        mask=lambda settings: urls.public(settings.database_url),
        file=(
            urls.database_url_in_file,
            "A file that holds the URL alone, in place of `database_url`; it is read anew for each connection.",
        ),
    )
    stream_stale_after: int = setting(
        parsers.number, 43200, "Seconds without an event after which a job that never sent END counts as stale."
    )
    max_body_bytes: int = setting(parsers.number, 2**20, "Bytes of the largest body that is accepted.")
    max_connections: int = setting(
        parsers.number, 1024, "The most connections at once; for one more, the least useful one is closed."
    )
    max_connections_per_address: int = setting(
        parsers.number, 256, "The most connections from one address that has had no callback accepted yet."
    )
    request_timeout: int = setting(
        parsers.number,
        30,
        "Seconds for a whole request, and for an idle connection; a third of it for TLS and the header.",
    )
    trusted_proxies: tuple[Network, ...] = setting(
        parsers.networks, (), 'Addresses and networks of proxies that say who the client is, such as `["127.0.0.1"]`.'
    )
