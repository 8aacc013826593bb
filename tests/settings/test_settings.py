from __future__ import annotations

import json
from dataclasses import replace

import pytest

from receiver.protocol.signature import AuthType
from receiver.settings.declaration import shown
from receiver.settings.load import load
from receiver.settings.settings import EndpointSettings
from tests.helpers.configuration import ENDPOINTS, KEY, PREVIOUS_KEY, SECRET, write

URL = "live_event_type_callback_url"


def test_what_is_in_force_is_shown() -> None:
    """Settings are shown under their names as they would be written."""
    environ = {"RECEIVER_KEY": KEY, "RECEIVER_LISTEN": "[::]:8443", "RECEIVER_TRUSTED_PROXIES": "10.0.0.0/8"}
    settings = load(None, environ)
    expected = {
        "listen": "[::]:8443",
        "tls_certificate": "",
        "tls_key": "",
        "operations_listen": "127.0.0.1:9464",
        "journal": "var/journal.db",
        "journal_max_bytes": 1024**3,
        "database_url": "sqlite:///var/receiver.db",
        "max_body_bytes": 1024**2,
        "max_connections": 1024,
        "max_connections_per_address": 256,
        "request_timeout": 30,
        "trusted_proxies": ["10.0.0.0/8"],
    }
    assert shown(settings) | expected == shown(settings)
    assert shown(settings.endpoints[0]) == {
        "live_event_type_callback_url": "https://localhost:8443/callbacks/metastudio",
        "auth_type": "MSS_A",
        "key": "****",
        "previous_key": "",
        "signature_form": "auto",
        "timestamp_tolerance": 300,
    }


@pytest.mark.parametrize(
    "database_url",
    [
        f"postgresql+psycopg://user:{SECRET}@h/d",
        f"postgresql+psycopg://h/d?user=u&password={SECRET}",
        f"postgresql+psycopg://user:{SECRET}%40@h1:1/d?host=h2&sslpassword={SECRET}",
    ],
)
def test_no_secret_is_shown(database_url: str) -> None:
    """Keys, the database's password, a URL's own query, and the path that is the secret are masked, each being set."""
    settings = load(
        write(ENDPOINTS.replace("?room=1", f"?token={SECRET}").replace('key_file = "key"', f'key = "{KEY}"')), {}
    )
    endpoints = [shown(endpoint) for endpoint in settings.endpoints]

    assert SECRET in repr([(endpoint.keys, endpoint.live_event_type_callback_url) for endpoint in settings.endpoints])
    assert SECRET not in json.dumps([endpoints, shown(replace(settings, database_url=database_url))])
    assert [endpoint["previous_key"] for endpoint in endpoints] == ["****", "", ""]
    assert [endpoint[URL] for endpoint in endpoints] == [
        "https://h/spring",
        "https://other:8443/autumn?****",
        "https://h/****",
    ]


def test_representations_hold_no_key_and_no_password() -> None:
    """Settings that end up in a log or a traceback show neither keys nor the database's password."""
    environ = {
        "RECEIVER_KEY": KEY,
        "RECEIVER_PREVIOUS_KEY": PREVIOUS_KEY,
        "RECEIVER_DATABASE_URL": f"postgresql+psycopg://u:{SECRET}@h/d",
    }

    assert SECRET not in repr(load(None, environ))


@pytest.mark.parametrize(
    ("url", "auth_type", "public"),
    [
        ("https://h:8443/a/b", AuthType.MSS_A, "https://h:8443/a/b"),
        ("https://h", AuthType.MSS_A_HEAD, "https://h"),
        ("https://h/a?t=1&u=2", AuthType.MSS_A, "https://h/a?****"),
        ("https://h/a/b", AuthType.NONE, "https://h/****"),
        ("https://h/a?t=1", AuthType.NONE, "https://h/****?****"),
        ("https://h?t=1", AuthType.NONE, "https://h/****?****"),
        ("https://[::1]:1/回调?店=一", AuthType.MSS_A, "https://[::1]:1/回调?****"),
    ],
)
def test_the_public_url_hides_what_may_be_a_secret(url: str, auth_type: AuthType, public: str) -> None:
    """A URL for people keeps its host and path; its query, and with NONE its path, are masked."""
    assert EndpointSettings("default", url, auth_type).public_url == public
