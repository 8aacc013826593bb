from __future__ import annotations

import pytest

from receiver.settings.load import SettingsError, load
from tests.helpers.configuration import KEY, SECRET, refused

UNKNOWN = {
    "misspelt": ("RECEIVER_PREVIUS_KEY", "did you mean `RECEIVER_PREVIOUS_KEY`?"),
    "with small letters": ("RECEIVER_Key", "did you mean `RECEIVER_KEY`?"),
    "the file's, misspelt": ("RECEIVER_CONFG", "did you mean `RECEIVER_CONFIG`?"),
    "of no kind": ("RECEIVER_WEBHOOK", "docs/reference/settings.md lists all settings"),
    "a list of the file": ("RECEIVER_ENDPOINTS", "remove it"),
    "a port that is no service's": ("RECEIVER_PORT", "remove it"),
    "a name that is no container's": ("RECEIVER_NAME", "remove it"),
    "nothing behind the prefix": ("RECEIVER_", "remove it"),
}


@pytest.mark.parametrize(("variable", "remedy"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_variable_that_is_no_setting_is_refused(variable: str, remedy: str) -> None:
    """A misspelt variable would leave a default in force unseen, so it is refused as a misspelt name in the file is."""
    with pytest.raises(SettingsError) as caught:
        load(None, {"RECEIVER_KEY": KEY, variable: SECRET})

    refused(str(caught.value), variable, remedy)


def test_a_variable_with_an_odd_name_is_refused_in_one_line() -> None:
    """The environment's names may hold anything: what is odd in one is escaped."""
    with pytest.raises(SettingsError) as caught:
        load(None, {"RECEIVER_KEY": KEY, "RECEIVER_a\nb": "x"})

    refused(str(caught.value), r"'RECEIVER_a\n'… (12 characters)", "remove it")


@pytest.mark.parametrize("variable", ["RECEIVER_WEBHOOK", "receiver_key", "RECEIVERS_KEY", "MY_RECEIVER_KEY"])
def test_other_variables_do_not_count(variable: str) -> None:
    """An empty variable counts as not set, and other programs' variables are their own."""
    value = "" if variable.startswith("RECEIVER_") else "x"

    assert load(None, {"RECEIVER_KEY": KEY, variable: value}) == load(None, {"RECEIVER_KEY": KEY})


KUBERNETES = {
    "SERVICE_HOST": "10.96.0.11",
    "SERVICE_PORT": "8443",
    "SERVICE_PORT_CALLBACKS": "8443",
    "PORT": "tcp://10.96.0.11:8443",
    "PORT_8443_TCP": "tcp://10.96.0.11:8443",
    "PORT_8443_TCP_PROTO": "tcp",
    "PORT_8443_TCP_PORT": "8443",
    "PORT_8443_TCP_ADDR": "10.96.0.11",
    "PORT_53_UDP": "udp://10.96.0.11:53",
}
DOCKER = {"NAME": "/web/receiver", "PORT_9464_TCP_START": "tcp://172.17.0.2:9464", "ENV_PYTHON_VERSION": "3.11.9"}


@pytest.mark.parametrize("service", ["RECEIVER", "RECEIVER_OPERATIONS"])
@pytest.mark.parametrize(("name", "value"), (KUBERNETES | DOCKER).items())
def test_what_kubernetes_and_docker_set_for_a_service_is_passed_over(service: str, name: str, value: str) -> None:
    """A Service or a linked container that is called receiver, or receiver-something, does not stop a start."""
    environ = {"RECEIVER_KEY": KEY, f"{service}_{name}": value}

    assert load(None, environ) == load(None, {"RECEIVER_KEY": KEY})
