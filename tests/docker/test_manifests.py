"""The image, compose file and Kubernetes manifests: valid by their schemas, and as strict as we say that they are."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.spec import parse_spec

DOCKER = Path(__file__).resolve().parents[2] / "docker"
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SECRET = re.compile(r"(password|secret|token|_key)", re.IGNORECASE)


def manifests() -> list[dict[str, Any]]:
    """Every Kubernetes object of the folder."""
    files = [*(DOCKER / "kubernetes" / "base").glob("*.yaml"), DOCKER / "kubernetes" / "job.yaml"]
    found = [one for file in files for one in yaml.safe_load_all(file.read_text()) if one]
    return [one for one in found if one["kind"] != "Kustomization"]


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod specs within an object."""
    if isinstance(manifest, dict):
        if "containers" in manifest:
            yield manifest
        for value in manifest.values():
            yield from pods(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from pods(value)


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["containers"], *pod.get("initContainers", [])]


PODS = [(one["metadata"]["name"], pod) for one in manifests() for pod in pods(one)]


# Compose


def compose_faults(compose: dict[str, Any]) -> list[str]:
    """What of a compose file is not as strict as it should be."""
    faults = []
    for name, service in compose["services"].items():
        limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
        image = service["image"].removeprefix("${KDSTUDY_IMAGE:-").removesuffix("}")
        for wrong, what in (
            ("healthcheck" not in service, "has no health check"),
            (not {"cpus", "memory"} <= limits.keys(), "has no limits"),
            (not re.search(r":v?\d+(\.\d+)+", image), "is not pinned"),
            (any(not port.startswith("127.0.0.1:") for port in service.get("ports", ())), "is open to the world"),
            (service.get("networks") != ["kdstudy"], "is on another network"),
            ("no-new-privileges:true" not in service.get("security_opt", ()), "may gain privileges"),
            (service.get("privileged") or service.get("cap_add"), "has privileges"),
        ):
            if wrong:
                faults.append(f"{name} {what}")
        for key, value in (service.get("environment") or {}).items():
            if SECRET.search(key) and not str(value).startswith("/run/secrets/") and key != "RAY_AUTH_MODE":
                faults.append(f"{name} has a secret in {key}")
            if re.search(r"://[^/@]*:[^/@]*@", str(value)):
                faults.append(f"{name} has a password in {key}")
        unknown = set(service.get("secrets", ())) - compose["secrets"].keys()
        faults += [f"{name} has no secret {secret}" for secret in sorted(unknown)]
    return faults


def test_the_compose_file_is_as_strict_as_we_say() -> None:
    assert compose_faults(COMPOSE) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("healthcheck"), "mlflow has no health check"),
        (lambda s: s.pop("deploy"), "mlflow has no limits"),
        (lambda s: s.update(image="mlflow:latest"), "mlflow is not pinned"),
        (lambda s: s.update(ports=["5000:5000"]), "mlflow is open to the world"),
        (lambda s: s["environment"].update(PGPASSWORD="x"), "mlflow has a secret in PGPASSWORD"),
        (lambda s: s["environment"].update(STORE="postgresql://me:x@db/k"), "mlflow has a password in STORE"),
        (lambda s: s.update(privileged=True), "mlflow has privileges"),
    ],
)
def test_what_is_less_strict_is_found(change: Any, says: str) -> None:
    changed = copy.deepcopy(COMPOSE)
    change(changed["services"]["mlflow"])
    assert says in compose_faults(changed)


def test_the_compose_file_is_valid_by_its_schema() -> None:
    valid = checked("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(DOCKER / "compose.yaml"))
    assert valid.returncode == 0, valid.stdout


def test_every_secret_of_the_compose_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    shutil.copy(DOCKER / "make-secrets", tmp_path)

    def made() -> dict[str, str]:
        subprocess.run([tmp_path / "make-secrets"], check=True, capture_output=True)
        return {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}

    once = made()
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} <= once.keys()
    assert made() == once
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert len({text for name, text in once.items() if name.endswith(("password", "token", "key"))}) == 10


# The image


def test_the_dockerfile_is_clean() -> None:
    clean = checked("hadolint", "--ignore", "DL3008", str(DOCKER / "Dockerfile"))
    assert clean.returncode == 0, clean.stdout


def test_the_image_is_not_roots_and_holds_all_packages() -> None:
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 1000:1000"
    sent = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [line.split() for line in lines if line.startswith("COPY") and "--" not in line]
    copied = {name for line in copies for name in line[1:-1]}
    assert sent == copied | {"docker/entry"}
    assert {"study", "trainables", "search_spaces", "analysis", "kdstudy.py"} <= sent


@pytest.mark.parametrize(
    "script", [*sorted((DOCKER / "entry").iterdir()), DOCKER / "make-secrets"], ids=lambda p: p.name
)
def test_scripts_can_be_run_and_stop_at_errors(script: Path) -> None:
    assert os.access(script, os.X_OK)
    text = script.read_text()
    if "python" in text.splitlines()[0]:
        compile(text, script.name, "exec")
    else:
        assert "set -eu" in text
        assert subprocess.run(["sh", "-n", script], check=False).returncode == 0


# Kubernetes


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[name for name, _ in PODS])
def test_pods_have_limits_no_root_and_no_secrets_in_their_environment(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in containers(pod):
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert re.search(r":\d+(\.\d+)+", container["image"]) or container["image"] == "kdstudy"
        for variable in container.get("env", ()):
            if SECRET.search(variable["name"]):
                assert variable["value"].startswith("/run/secrets/"), variable
    if name != "kdstudy":
        assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", ["postgres", "objects", "redis", "mlflow", "network", "namespace"])
def test_objects_are_valid_by_kubernetes_schemas(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for one in yaml.safe_load_all((DOCKER / "kubernetes" / "base" / f"{name}.yaml").read_text()):
        validate.validate(one, "1.34", strict=True)


def test_a_kustomization_names_all_that_is_there() -> None:
    base = DOCKER / "kubernetes" / "base"
    named = yaml.safe_load((base / "kustomization.yaml").read_text())
    assert set(named["resources"]) == {file.name for file in base.glob("*.yaml")} - {"kustomization.yaml"}
    assert (base / "postgres-init.sh").read_text() == (DOCKER / "postgres-init.sh").read_text()
    assert named["images"][0]["newTag"] == COMPOSE["services"]["head"]["image"].rpartition(":")[2].removesuffix("}")


def test_the_gpu_overlay_changes_what_is_there() -> None:
    (cluster,) = [one for one in manifests() if one["kind"] == "RayCluster"]
    for patch in yaml.safe_load((DOCKER / "kubernetes" / "gpu" / "gpu.yaml").read_text()):
        *parents, last = [part.replace("~1", "/") for part in patch["path"].strip("/").split("/")]
        there: Any = cluster
        for part in parents:
            there = there[int(part) if part.isdigit() else part]
        assert (last in there) == (patch["op"] == "replace"), patch


def test_the_clusters_ray_is_the_one_that_we_pin() -> None:
    (cluster,) = [one for one in manifests() if one["kind"] == "RayCluster"]
    constraints = (DOCKER.parent / "constraints.txt").read_text()
    assert f"ray=={cluster['spec']['rayVersion']}\n" in constraints
    assert cluster["spec"]["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"


def test_the_job_is_a_study() -> None:
    (studies,) = [one for one in manifests() if one["kind"] == "ConfigMap"]
    (job,) = [one for one in manifests() if one["kind"] == "RayJob"]
    ((name, text),) = studies["data"].items()
    assert f"/etc/studies/{name} " in job["spec"]["entrypoint"]
    assert parse_spec(yaml.safe_load(text), name).name == name.removesuffix(".yaml")


def checked(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if not (BIN / program).exists():
        pytest.skip(f"{program} is not installed")
    return subprocess.run([BIN / program, *arguments], capture_output=True, text=True, check=False)
