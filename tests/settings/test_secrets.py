"""A secret that was given to the wrong setting, or as a setting's name, is not shown."""

from __future__ import annotations

import pytest

from receiver.server.certificate import tls_context
from receiver.server.sockets import ListenError
from receiver.settings.declaration import declared
from receiver.settings.load import SettingsError, load
from receiver.settings.settings import EndpointSettings, Settings
from tests.helpers.configuration import KEY, toml, variable, write

A_KEY = "s3cr3tOf32CharactersWithoutBlank"
PEM = f"-----BEGIN PRIVATE KEY-----\n{A_KEY}\n-----END PRIVATE KEY-----\n"
# A name for `journal` and a key are as good as any other.
ALL = sorted((declared(EndpointSettings) | declared(Settings)).keys() - {"key", "previous_key", "journal", "key_file"})


@pytest.mark.parametrize("secret", [A_KEY, PEM, f"127.0.0.1,{A_KEY}", f"MSS_A {A_KEY}"])
@pytest.mark.parametrize("setting", ALL)
def test_as_the_value_of_another_setting(setting: str, secret: str) -> None:
    """Whatever setting a key or a PEM text is given to, in the file or the environment, no message shows it."""
    places: list[tuple[str, dict[str, str]]] = [
        (toml({"key": KEY, setting: secret}), {}),
        ("", {variable(setting): secret}),
    ]
    for text, environ in places:
        with pytest.raises(SettingsError) as caught:
            load(write(text), {"RECEIVER_KEY": KEY} | environ)
        assert A_KEY not in str(caught.value)
        assert str(caught.value).startswith((setting, "tls_"))


@pytest.mark.parametrize(
    "name", [A_KEY, f"{A_KEY}=", "0123-4567", "MySecretKey", "correct_horse_battery", "HUNTERHUNTER"]
)
def test_as_the_name_of_a_setting(name: str) -> None:
    """A key that stands where a setting's name should is refused without being shown."""
    for values, environ in ((f'"{name}" = "key"', {}), ("", {f"RECEIVER_{name}": "key"})):
        with pytest.raises(SettingsError) as caught:
            load(write(values), {"RECEIVER_KEY": KEY} | environ)
        assert name[:3] not in str(caught.value)
        assert name[:2] in str(caught.value)


def test_as_the_name_of_a_file() -> None:
    """A key in place of the settings' file, or of the certificate's, is not shown as the file that is not there."""
    with pytest.raises(SettingsError) as caught:
        load(None, {"RECEIVER_KEY": KEY, "RECEIVER_CONFIG": A_KEY})
    assert A_KEY not in str(caught.value)
    settings = load(None, {"RECEIVER_KEY": KEY, "RECEIVER_TLS_CERTIFICATE": A_KEY, "RECEIVER_TLS_KEY": A_KEY})
    assert settings.tls_certificate is not None
    assert settings.tls_key is not None
    with pytest.raises(ListenError) as refused:
        tls_context(settings.tls_certificate, settings.tls_key)
    assert A_KEY not in str(refused.value)
