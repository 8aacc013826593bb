"""The container, built for real on a Debian 12 of its own: where buildah and mmdebstrap are installed.

With FAULT_IMAGES also the one that has the vendor's SDK.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from receiver.protocol.signature import sign
from tests.helpers.locks import PLATFORM, RUNTIME, pins
from tests.helpers.pages import blocks
from tests.helpers.platform import platform
from tests.helpers.receiver import KEY, SAMPLES, free_port, wait_until

ROOT = Path(__file__).parents[2]
URL = "https://events.example.com/callbacks/metastudio"
MACHINE = {"PATH": os.environ["PATH"], "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
IMAGES = ["", "yes"] if "FAULT_IMAGES" in os.environ else [""]  # the build argument PLATFORM_SDK
Buildah = Callable[..., str]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("buildah") or not shutil.which("mmdebstrap"),
    reason="needs root, and Debian's buildah and mmdebstrap",
)


class Image:
    """The image, its root file system mounted at `folder`."""

    def __init__(self, name: str, folder: Path, config: dict[str, Any], *, has_sdk: bool) -> None:
        self.name = name
        self.folder = folder
        self.config = config
        self.has_sdk = has_sdk

    def command(self, state: Path, *arguments: str, **environ: str) -> list[str]:
        """Run `arguments` as a container engine would: as the image's user, on a root that cannot be written.

        In a mount namespace of its own, so that nothing stays mounted; `state` is the volume.
        """
        assignments = [*self.config["Env"], *(f"{name}={value}" for name, value in environ.items())]
        mounts = """
            set -eu
            mount --bind "$1" "$1"
            mount --bind "$2" "$1/var/lib/receiver"
            mount --bind /dev "$1/dev"
            mount -t proc proc "$1/proc"
            mount -o remount,bind,ro "$1"
            root=$1; shift 2
            exec chroot --userspec=10001:10001 "$root" env --ignore-environment --chdir=/var/lib/receiver "$@"
        """
        script = ["unshare", "--mount", "bash", "-c", mounts, "bash", str(self.folder), str(state)]
        return [*script, *assignments, *arguments]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Runs buildah, which has the image localhost/base of a Debian 12; returns what it prints."""
    folder = tmp_path_factory.mktemp("images")
    storage = ["buildah", "--root", str(folder / "storage"), "--runroot", str(folder / "run")]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*storage, *arguments], cwd=ROOT, env=MACHINE, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    base = folder / "base.tar"
    make_base = ["mmdebstrap", "--quiet", "--variant=essential", "--include=python3.11-venv", "bookworm", str(base)]
    subprocess.run(make_base, check=True)
    scratch = run("from", "scratch")
    run("add", scratch, str(base), "/")
    run("commit", "--quiet", "--rm", scratch, "base")
    try:
        yield run
    finally:
        run("rm", "--all")
        run("rmi", "--all", "--force")


@pytest.fixture(scope="module", params=IMAGES)
def image(request: pytest.FixtureRequest, buildah: Buildah, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image that deploy/Dockerfile makes, without the vendor's SDK or with it."""
    options = ["--format=docker", "--build-arg=BASE_IMAGE=localhost/base", f"--build-arg=PLATFORM_SDK={request.param}"]
    options += as_this_machines_pip(tmp_path_factory.mktemp("pip"))
    name = buildah("bud", "--quiet", *options, "--file=deploy/Dockerfile", ".")
    config = json.loads(buildah("inspect", "--type=image", name))["Docker"]["config"]
    return Image(name, Path(buildah("mount", buildah("from", name))), config, has_sdk=bool(request.param))


def as_this_machines_pip(folder: Path) -> list[str]:
    """Options with which pip finds in the build what it finds here."""
    shown = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    settings = dict(line.split("=", 1) for line in shown.stdout.splitlines())
    wanted = ("index-url", "extra-index-url", "find-links", "cert", "timeout", "default-timeout", "trusted-host")
    found = {name.rpartition(".")[2]: value.strip("'") for name, value in settings.items()}
    file = folder / "pip.conf"
    file.write_text("\n".join(["[global]", *(f"{name} = {found[name]}" for name in wanted if name in found)]))
    places = {Path(word.removeprefix("file://")) for value in found.values() for word in value.split("\\n")}
    places |= {Path("/etc/ssl/certs"), Path("/usr/share/ca-certificates"), Path("/usr/local/share/ca-certificates")}
    there = [place for place in places if place.is_absolute() and place.is_dir()]
    return [f"--secret=id=pip.conf,src={file}", *(f"--volume={place}:{place}:ro" for place in there)]


def test_what_the_image_says(image: Image) -> None:
    """It serves unless told otherwise, as a user with a number, and says what it opens, keeps and answers."""
    config = image.config
    assert config["Entrypoint"] == ["receiver"]
    assert config["Cmd"] == ["serve"]
    assert config["User"] == "10001:10001"
    assert set(config["ExposedPorts"]) == {"8443/tcp", "9464/tcp"}
    assert set(config["Volumes"]) == {"/var/lib/receiver"}
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert not any("KEY" in variable or "SECRET" in variable for variable in config["Env"])


def test_what_is_inside(image: Image) -> None:
    """Of Python packages it holds the wheel and what is locked, in those versions; nothing else of the build."""
    package = image.folder / "opt/receiver/lib/python3.11/site-packages"
    installed = {path.name.removesuffix(".dist-info") for path in package.glob("*.dist-info")}
    named = pins(RUNTIME) | (pins(PLATFORM) if image.has_sdk else {})
    locked = {f"{name.replace('-', '_')}-{version}" for name, (version, _) in named.items()}
    assert {name.lower() for name in installed} == {"metastudio_callback_receiver-0.1.0"} | locked
    assert (package / "receiver/migrations/versions/0001_events.py").exists()
    assert not (image.folder / "build").exists()
    assert not (image.folder / "etc/pip.conf").exists() or (image.folder / "etc/pip.conf").stat().st_size == 0
    found = subprocess.run(
        ["find", str(image.folder / "opt"), "-perm", "/022", "-not", "-type", "l"], check=True, capture_output=True
    )
    assert found.stdout == b""


def test_it_serves(image: Image, tmp_path: Path) -> None:
    """On a root that cannot be written it stores callbacks in its volume, is found healthy, and ends in order.

    In a shell beside it the runbook's commands run as they are printed there.
    """
    tmp_path.chmod(0o755)
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    os.chown(state, 10001, 10001)
    port, operations = free_port(), free_port()
    environ = {
        "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL,
        "RECEIVER_KEY": KEY,
        "RECEIVER_LISTEN": f"127.0.0.1:{port}",
        "RECEIVER_OPERATIONS_LISTEN": f"127.0.0.1:{operations}",
    }
    health = image.command(state, *image.config["Healthcheck"]["Test"][1:], **environ)
    assert subprocess.run(health, check=False, capture_output=True).returncode != 0
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = image.command(state, *image.config["Entrypoint"], *image.config["Cmd"], **environ)
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        wait_until(lambda: b"  next  " in log.read_bytes() or server.poll() is not None, "the receiver")
        assert server.poll() is None, log.read_text()
        for body in SAMPLES.values():
            parts = urlsplit(sign(URL, KEY, time.time()).url)
            request = urllib.request.Request(f"http://127.0.0.1:{port}{parts.path}?{parts.query}", body)
            with urllib.request.urlopen(request, timeout=60) as response:
                assert response.status == 200
        subprocess.run(health, check=True)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}{parts.path}", b"{}", timeout=60)
        wait_until((state / "var/journal.db.rejections.json").exists, "what was rejected")
        metrics = f"http://127.0.0.1:{operations}/metrics"
        wait_until(lambda: b"metastudio_database_up 1.0" in urllib.request.urlopen(metrics).read(), "a database")
        commands = "".join(
            block.text for block in blocks("docs/how-to/runbook.md", language="bash") if "receiver" in block.text
        )
        shell = image.command(state, "bash", "-o", "errexit", "-o", "pipefail", "-c", commands, **environ)
        done = subprocess.run(shell, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "database   up: sqlite" in done.stdout
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        with suppress(ProcessLookupError):
            server.kill()
        server.wait(60)
    with closing(sqlite3.connect(state / "var/receiver.db")) as database:
        assert database.execute("SELECT count(*) FROM events").fetchone() == (3,)
    outside = image.command(state, "touch", "/opt/receiver/changed")
    refused = subprocess.run(outside, check=False, capture_output=True, text=True)
    assert "Read-only file system" in refused.stderr


def test_commands_that_ask_the_platform(image: Image, tmp_path: Path) -> None:
    """With the SDK they ask the platform; without it they say what to install."""
    tmp_path.chmod(0o755)
    settings = {"RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL, "RECEIVER_KEY": KEY}

    def receiver(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = image.command(tmp_path, *image.config["Entrypoint"], *arguments, **settings, **environ)
        return subprocess.run(command, check=False, capture_output=True, text=True)

    assert "Usage: receiver reconcile " in receiver("reconcile", "--help").stdout
    with platform() as stub:
        done = receiver("register", "--api-endpoint", stub.url, **stub.environ)
    said = "give --apply to register this" if image.has_sdk else "the vendor's SDK is not installed here"
    assert said in done.stdout + done.stderr
    assert len(stub.requests) == image.has_sdk
