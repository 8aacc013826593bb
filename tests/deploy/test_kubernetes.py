"""The Kubernetes manifests, against the published schemas and against each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from receiver.settings.database_url import UrlInFile
from receiver.settings.load import load
from tests.helpers.pages import read
from tests.helpers.receiver import KEY

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
RESOURCES: dict[tuple[str, str], Any] = {
    (one["kind"], one["metadata"]["name"]): one
    for file in KUSTOMIZATION["resources"]
    for one in yaml.safe_load_all((FOLDER / file).read_text())
}
STATEFUL_SET = RESOURCES["StatefulSet", "receiver"]["spec"]
PODS = {"receiver": STATEFUL_SET["template"], "migrate": RESOURCES["Job", "migrate"]["spec"]["template"]}
CONFIGURATION = dict(one.split("=", 1) for one in KUSTOMIZATION["configMapGenerator"][0]["literals"])
GUIDE = read("docs/how-to/deploy-kubernetes.md")
PROMETHEUS_OPERATOR = "monitoring.coreos.com/v1"  # whose schema is not among those of Kubernetes

every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


def container(pod: Any) -> Any:
    """The one container of a pod."""
    (only,) = pod["spec"]["containers"]
    return only


def mounts(pod: Any) -> dict[str, str]:
    """Where the pod's container has which volume."""
    return {one["name"]: one["mountPath"] for one in container(pod)["volumeMounts"]}


def secret_file(pod: Any) -> str:
    """The name of the one file of the pod's Secret."""
    (volume,) = [one["secret"] for one in pod["spec"]["volumes"]]
    (item,) = volume["items"]
    name: str = item["path"]
    return name


def labels(name: str) -> set[tuple[str, str]]:
    """The labels of a pod."""
    return set(PODS[name]["metadata"]["labels"].items())


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_published_schemas(version: str) -> None:
    """Each resource is what Kubernetes asks for, with no field that it does not know, from 1.30 to the latest."""
    for resource in RESOURCES.values():
        if resource["apiVersion"] != PROMETHEUS_OPERATOR:
            kubernetes_validate.validate(resource, version, strict=True)


def test_kustomization_is_whole() -> None:
    """Every file of the folder but one is in the kustomization, and what it replaces is there."""
    left_out = "reconcile.yaml"  # unless somebody puts it in
    assert {path.name for path in FOLDER.iterdir()} == {*KUSTOMIZATION["resources"], "kustomization.yaml", left_out}
    assert {container(pod)["image"] for pod in PODS.values()} == {one["name"] for one in KUSTOMIZATION["images"]}
    assert RESOURCES["Namespace", KUSTOMIZATION["namespace"]]
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    for pod in PODS.values():
        assert container(pod)["envFrom"] == [{"configMapRef": {"name": generated["name"]}}]


def test_kustomize_takes_it() -> None:
    """Kustomize itself makes all resources of it, in the namespace, with the image's version."""
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], check=True, capture_output=True, text=True)
    made = list(yaml.safe_load_all(done.stdout))
    assert len(made) == len(RESOURCES) + 1
    (image,) = KUSTOMIZATION["images"]
    assert done.stdout.count(f"image: {image['newName']}:{image['newTag']}\n") == len(PODS)


@every_pod
def test_admitted(pod: Any) -> None:
    """A pod meets the standard that its namespace enforces, as the image's user, and gets no other variables."""
    labels = RESOURCES["Namespace", KUSTOMIZATION["namespace"]]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    security, own = pod["spec"]["securityContext"], container(pod)["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"]["type"] == "RuntimeDefault"
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"]["drop"] == ["ALL"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in (DEPLOY / "Dockerfile").read_text()
    # Else the service named receiver gives it variables that look like settings.
    assert pod["spec"]["enableServiceLinks"] is False


@every_pod
def test_settings(pod: Any, tmp_path: Path) -> None:
    """The receiver takes the pod's environment and knows each variable of it; secrets come from the Secret alone."""
    variables = {one["name"]: one for one in container(pod)["env"]}
    file = Path(variables.pop("RECEIVER_DATABASE_URL_FILE")["value"])
    assert file == Path(mounts(pod)["database-url"]) / secret_file(pod)
    secrets = {name: one["valueFrom"]["secretKeyRef"] for name, one in variables.items()}
    assert {secret["name"] for secret in secrets.values()} == {"receiver"}
    assert not any(kind == "Secret" for kind, _ in RESOURCES)
    (tmp_path / file.name).write_text("postgresql+psycopg://a:b@c/d")
    filled = {"key": KEY, "previous-key": "the one before"}
    given = CONFIGURATION | {name: filled[secret["key"]] for name, secret in secrets.items()}
    given["RECEIVER_DATABASE_URL_FILE"] = str(tmp_path / file.name)
    settings = load(None, given | {"RECEIVER_CONFIG": "/dev/null"})
    assert settings.database_url == "postgresql+psycopg://a:b@c/d"
    known = {*settings.__slots__, *settings.endpoints[0].__slots__, "database_url_file"}
    assert {name.removeprefix("RECEIVER_").lower() for name in given} <= known


@every_pod
def test_secret_file(pod: Any) -> None:
    """The database's URL is in a file of the Secret that the image's user can read, and that is replaced in place."""
    (volume,) = [one["secret"] for one in pod["spec"]["volumes"] if one["name"] == "database-url"]
    assert (volume["secretName"], volume["defaultMode"]) == ("receiver", 0o440)
    assert pod["spec"]["securityContext"]["fsGroup"] == pod["spec"]["securityContext"]["runAsGroup"]
    (mount,) = [one for one in container(pod)["volumeMounts"] if one["name"] == "database-url"]
    assert "subPath" not in mount  # which would keep its first content
    assert "secret generic receiver" in GUIDE
    assert f"--from-literal={volume['items'][0]['key']}=" in GUIDE


def test_changed_secret(tmp_path: Path) -> None:
    """Where the kubelet replaces a mounted Secret, by links, the next connection has the new password."""
    for number, password in enumerate(("old", "new")):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}/database-url").write_text(f"postgresql+psycopg://a:{password}@c/d")
    (tmp_path / "..data").symlink_to("..0")
    file = tmp_path / "database-url"
    file.symlink_to("..data/database-url")
    environ = CONFIGURATION | {
        "RECEIVER_CONFIG": "/dev/null",
        "RECEIVER_KEY": KEY,
        "RECEIVER_DATABASE_URL_FILE": str(file),
    }
    url = load(None, environ).database_url
    assert isinstance(url, UrlInFile)
    assert url.now() == "postgresql+psycopg://a:old@c/d"
    (tmp_path / "..data_tmp").symlink_to("..1")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert url.now() == "postgresql+psycopg://a:new@c/d"


def test_ports_match() -> None:
    """Pods, probes, services, ingress, network policy and service monitor speak of the ports that it listens on."""
    settings = load(None, CONFIGURATION | {"RECEIVER_CONFIG": "/dev/null", "RECEIVER_KEY": KEY})
    receiver = container(PODS["receiver"])
    ports = {one["name"]: one["containerPort"] for one in receiver["ports"]}
    assert ports == {"callbacks": settings.listen[1], "operations": settings.operations_listen[1]}
    assert settings.operations_listen[0] == "0.0.0.0"
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert receiver[probe]["httpGet"] == {"path": path, "port": "operations"}
    for name, port in (("receiver", "callbacks"), ("receiver-operations", "operations")):
        (served,) = RESOURCES["Service", name]["spec"]["ports"]
        assert served == {"name": port, "port": ports[port], "targetPort": port}
    policy = RESOURCES["NetworkPolicy", "receiver"]["spec"]
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": "callbacks"}], [{"port": "operations"}]]
    (rule,) = RESOURCES["Ingress", "receiver"]["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": "receiver", "port": {"name": "callbacks"}}
    assert settings.endpoints[0].live_event_type_callback_url.startswith(f"https://{rule['host']}{path['path']}")


def test_selectors_match() -> None:
    """What selects pods selects the receivers, and not the migration, which only the network policy is for too."""
    budget = RESOURCES["PodDisruptionBudget", "receiver"]["spec"]
    selectors = [
        STATEFUL_SET["selector"]["matchLabels"],
        budget["selector"]["matchLabels"],
        *(RESOURCES["Service", name]["spec"]["selector"] for name in ("receiver", "receiver-operations")),
    ]
    for selector in selectors:
        assert set(selector.items()) <= labels("receiver")
        assert not set(selector.items()) <= labels("migrate")
    policy = set(RESOURCES["NetworkPolicy", "receiver"]["spec"]["podSelector"]["matchLabels"].items())
    assert policy <= labels("receiver") & labels("migrate")
    assert budget["minAvailable"] < STATEFUL_SET["replicas"]
    assert ("Service", STATEFUL_SET["serviceName"]) in RESOURCES


def test_service_monitor() -> None:
    """Prometheus scrapes each receiver once, under the job's name that the alerts look for."""
    monitor = RESOURCES["ServiceMonitor", "receiver"]
    assert monitor["apiVersion"] == PROMETHEUS_OPERATOR
    selector = set(monitor["spec"]["selector"]["matchLabels"].items())
    services = [one for (kind, _), one in RESOURCES.items() if kind == "Service"]
    (selected,) = [one for one in services if selector <= set(one["metadata"]["labels"].items())]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in selected["spec"]["ports"]}
    job = selected["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert f"job_name: {job}\n" in (DEPLOY / "compose/prometheus.yml").read_text()


def test_journal_is_a_volume() -> None:
    """The journal is where the image keeps its state, on a claim of each pod's own that has room for it."""
    assert f"VOLUME {mounts(PODS['receiver'])['journal']}\n" in (DEPLOY / "Dockerfile").read_text()
    (claim,) = STATEFUL_SET["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "journal"
    storage = re.fullmatch(r"(\d+)Gi", claim["spec"]["resources"]["requests"]["storage"])
    assert storage is not None
    limit = load(None, CONFIGURATION | {"RECEIVER_CONFIG": "/dev/null", "RECEIVER_KEY": KEY}).journal_max_bytes
    assert int(storage[1]) * 2**30 > 2 * limit  # the journal, its log, and something left
