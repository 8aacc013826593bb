from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from receiver.settings.declaration import declared
from receiver.settings.load import SettingsError, load
from receiver.settings.settings import EndpointSettings, Settings
from tests.helpers.configuration import KEY, SECRET, make, refused, toml, variable, write

URL, DATABASE = "live_event_type_callback_url", "database_url"
TOO_LONG = SECRET.ljust(33, "x")
REFUSED: dict[str, tuple[str, Any, str]] = {
    "URL of http": (URL, f"http://h/{SECRET}", "https://"),
    "URL without scheme": (URL, f"h.example.com/{SECRET}", "https://"),
    "URL too long": (URL, f"https://h/{SECRET}".ljust(2049, "a"), "at most 2048"),
    "URL without host": (URL, f"https:///{SECRET}", "needs a host"),
    "URL with port 0": (URL, f"https://h:0/{SECRET}", "registered"),
    "URL with a port too large": (URL, f"https://h:65536/{SECRET}", "URL"),
    "URL with a port of letters": (URL, f"https://h:https/{SECRET}", "URL"),
    "URL of half an IPv6 address": (URL, f"https://[::1/{SECRET}", "URL"),
    "URL with a user": (URL, f"https://user:{SECRET}@h/c", "no user"),
    "URL with a fragment": (URL, f"https://h/c#{SECRET}", "fragment"),
    "URL with a blank": (URL, f"https://h/a {SECRET}", "percent-encoded"),
    "URL with a line end": (URL, f"https://h/{SECRET}\n", "percent-encoded"),
    "URL with a tab": (URL, f"https://h/a\t{SECRET}", "percent-encoded"),
    "URL with a quote": (URL, f'https://h/"{SECRET}', "percent-encoded"),
    "URL with a full-width question mark": (URL, f"https://h.example.com\N{FULLWIDTH QUESTION MARK}t={SECRET}", "URL"),
    "URL with a full-width slash": (URL, f"https://h.example.com\N{FULLWIDTH SOLIDUS}{SECRET}", "URL"),
    "URL with hwSecret": (URL, f"https://h/c?hwSecret={SECRET}", "remove"),
    "URL with hwTime in other case": (URL, f"https://h/c?a={SECRET}&HWTIME=1", "remove"),
    "URL with hwSecret encoded": (URL, f"https://h/c?hw%53ecret={SECRET}", "remove"),
    "URL of the health check": (URL, "https://h/healthz", "choose another"),
    "URL of the health check, encoded": (URL, "https://h/%68ealthz", "choose another"),
    "URL empty": (URL, "", "set it"),
    "URL a number": (URL, 7, "put it in quotes"),
    "auth_type MEITUAN_DEFAULT": ("auth_type", "MEITUAN_DEFAULT", "use MSS_A"),
    "auth_type in lower case": ("auth_type", "mss_a", "MSS_A, MSS_A_HEAD, NONE"),
    "auth_type a truth value": ("auth_type", False, "put it in quotes"),
    "auth_type with a line end": ("auth_type", "MSS_A\n", "MSS_A, MSS_A_HEAD, NONE"),
    "form unknown": ("signature_form", "host", "auto, host-sorted-hex"),
    "form with a line end": ("signature_form", "auto\n", "auto, host-sorted-hex"),
    "tolerance 0": ("timestamp_tolerance", 0, "1 or more"),
    "tolerance negative": ("timestamp_tolerance", -300, "1 or more"),
    "tolerance a fraction": ("timestamp_tolerance", 0.5, "whole number"),
    "tolerance a truth value": ("timestamp_tolerance", True, "whole number"),
    "tolerance in minutes": ("timestamp_tolerance", "5 min", "whole number"),
    "tolerance in other digits": ("timestamp_tolerance", "٣٠٠", "whole number"),
    "key blank": ("key", "   ", "set it"),
    "key empty": ("key", "", "set it"),
    "key too long": ("key", TOO_LONG, "at most 32"),
    "key with NUL": ("key", f"{SECRET}\0", "write it again"),
    "key before a blank": ("key", f"{SECRET} ", "remove it"),
    "key after a blank": ("key", f" {SECRET}", "remove it"),
    "key before a line end": ("key", f"{SECRET}\n", "remove it"),
    "key a number": ("key", 12345678, "put it in quotes"),
    "previous key blank": ("previous_key", " ", "set it"),
    "previous key too long": ("previous_key", TOO_LONG, "at most 32"),
    "previous key with NUL": ("previous_key", f"{SECRET}\0", "write it again"),
    "previous key before a blank": ("previous_key", f"{SECRET}\t", "remove it"),
    "listen without a port": ("listen", "localhost", "such as 0.0.0.0:8443"),
    "listen on a port alone": ("listen", "8443", "such as 0.0.0.0:8443"),
    "listen on a number": ("listen", 8443, "put it in quotes"),
    "listen on a port too large": ("listen", "0.0.0.0:65536", "such as 0.0.0.0:8443"),
    "listen on IPv6 without brackets": ("listen", "::1:8443", "[::]:8443"),
    "operations listen": ("operations_listen", "http://localhost:9464", "host:port"),
    "certificate empty": ("tls_certificate", "", "set it"),
    "TLS key a number": ("tls_key", 1, "put it in quotes"),
    "journal a number": ("journal", 5, "put it in quotes"),
    "journal too small": ("journal_max_bytes", 2**20 - 1, "1048576 or more"),
    "journal with a unit": ("journal_max_bytes", "1 GiB", "whole number"),
    "body of nothing": ("max_body_bytes", 0, "1 or more"),
    "no connection": ("max_connections", 0, "1 or more"),
    "no connection of an address": ("max_connections_per_address", 0, "1 or more"),
    "no time": ("request_timeout", 0, "1 or more"),
    "proxy by name": ("trusted_proxies", "127.0.0.1, proxy.internal", "such as 10.0.0.0/8"),
    "proxies with a wrong mask": ("trusted_proxies", ["10.0.0.1/8"], "all bits after its prefix 0"),
    "proxies a number": ("trusted_proxies", 1, "write it as"),
    "proxies a list of numbers": ("trusted_proxies", [1], "put it in quotes"),
    "proxies everywhere": ("trusted_proxies", ["0.0.0.0/0"], "name your proxies"),
    "status page perhaps": ("status_page", "yes", "neither true nor false"),
    "status page a number": ("status_page", 1, "neither true nor false"),
    "host with a port": ("status_page_hosts", ["receiver.internal:9464"], "leave out http:// and the port"),
    "host a URL": ("status_page_hosts", "http://receiver.internal", "leave out http:// and the port"),
    "host of one word": ("status_page_hosts", [SECRET], "such as receiver.internal"),
    "hosts a list of numbers": ("status_page_hosts", [1], "put it in quotes"),
    "hosts a number": ("status_page_hosts", 1, "write it as"),
    "database of no kind": (DATABASE, SECRET, "postgresql+psycopg://"),
    "database of another kind": (DATABASE, f"mysql+pymysql://u:{SECRET}@h/d", "postgresql+psycopg://"),
    "database without its driver": (DATABASE, f"postgresql://u:{SECRET}@h/d", "begin it with postgresql+psycopg://"),
    "database with another driver": (DATABASE, f"postgresql+asyncpg://u:{SECRET}@h/d", "postgresql+psycopg://"),
    "database with a port of letters": (DATABASE, f"postgresql+psycopg://u:{SECRET}@h:p/d", "postgresql+psycopg://"),
    "database without a name": (DATABASE, f"postgresql+psycopg://u:{SECRET}@h", "end it with"),
    "database in memory": (DATABASE, "sqlite:///:memory:", "end it with"),
    "database in memory by default": (DATABASE, "sqlite://", "end it with"),
    "setting misspelt": ("previus_key", SECRET, "did you mean `previous_key`?"),
    "setting of no kind": ("webhook", SECRET, "docs/reference/settings.md lists all settings"),
    "setting in another case": ("KEY", SECRET, "did you mean `key`?"),
}


@pytest.mark.parametrize(("setting", "value", "remedy"), REFUSED.values(), ids=REFUSED)
def test_wrong_values_in_the_file_are_refused(setting: str, value: Any, remedy: str) -> None:
    """A wrong value is refused in one line that names the setting and the remedy, and shows no secret."""
    with pytest.raises(SettingsError) as caught:
        load(write(toml({"key": KEY, setting: value})), {})

    refused(str(caught.value), setting, remedy)


SETTINGS = declared(EndpointSettings) | declared(Settings)
IN_VARIABLES = {
    name: row
    for name, row in REFUSED.items()
    if isinstance(row[1], str) and row[1] and "\0" not in row[1] and row[0] in SETTINGS
}


@pytest.mark.parametrize(("setting", "value", "remedy"), IN_VARIABLES.values(), ids=IN_VARIABLES)
def test_wrong_values_in_the_environment_are_refused(setting: str, value: str, remedy: str) -> None:
    """What is refused in the file is refused in the environment, in the same words."""
    with pytest.raises(SettingsError) as caught:
        load(None, {"RECEIVER_KEY": KEY, variable(setting): value})

    refused(str(caught.value), setting, remedy)


@pytest.mark.parametrize("setting", ["key", "previous_key", URL])
def test_bytes_that_are_no_text_are_refused_in_the_environment(setting: str) -> None:
    """A variable whose bytes are not UTF-8 could not be signed with, so it is refused at start."""
    value = ("https://h/" if setting == URL else "") + f"{SECRET}\udcff"

    with pytest.raises(SettingsError) as caught:
        load(None, {"RECEIVER_KEY": KEY, variable(setting): value})

    refused(str(caught.value), setting, "")


KEY_FILES = {
    "missing": (None, "name a file"),
    "a folder": (..., "name a file"),
    "not UTF-8": (b"\xff" + SECRET.encode(), "name a file"),
    "empty": (b"", "set it"),
    "blank": (b"\n", "set it"),
    "two lines at the end": (f"{SECRET}\n\n".encode(), "remove it"),
    "after a blank": (f" {SECRET}\n".encode(), "remove it"),
    "too long": (TOO_LONG.encode(), "at most 32"),
    "with NUL": (f"{SECRET}\0".encode(), "write it again"),
}


@pytest.mark.parametrize(("content", "remedy"), KEY_FILES.values(), ids=KEY_FILES)
def test_a_key_file_that_is_wrong_is_refused(content: Any, remedy: str) -> None:
    """A key_file is named where it cannot be read or what it holds is no key, and its content is not shown."""
    path = Path("key")
    make(path, content)

    with pytest.raises(SettingsError) as caught:
        load(None, {"RECEIVER_KEY_FILE": "key"})

    refused(str(caught.value), "key_file", remedy)


@pytest.mark.parametrize(("name", "remedy"), [("a\0b", "write it again"), ("a\nb", "name a file")])
def test_a_key_files_name_that_is_wrong_is_refused(name: str, remedy: str) -> None:
    """A name that no file can have, or that has a line end in it, is refused in one line like any other."""
    with pytest.raises(SettingsError) as caught:
        load(write(toml({"key_file": name})), {})

    refused(str(caught.value), "key_file", remedy)
