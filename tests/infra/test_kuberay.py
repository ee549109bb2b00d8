"""The manifests: checked against the schemas of KubeRay and Kubernetes, and by Ray's autoscaler, which reads them."""

import gzip
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from jobs.arguments import build_parser, load_recipe
from pipeline.train.settings import parse_settings
from tests.running import REPOSITORY

FOLDER = REPOSITORY / "infra" / "kuberay"
SCHEMAS = REPOSITORY.parent / "shared" / "kuberay"
KUBERNETES = ("1.30", "1.37")
"""The oldest and the newest Kubernetes that the pods are checked for."""
WORKER_BYTES = 1.5e9
"""What a download worker may take (infra/README.md)."""


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def cluster() -> dict[str, Any]:
    return next(one for one in documents("cluster.yaml") if one["kind"] == "RayCluster")


def closed(schema: Any) -> Any:
    """The schema, refusing properties it does not name, as the API server's strict validation does.

    OpenAPI's int-or-string and preserve-unknown-fields are Kubernetes' extensions: https://kubernetes.io/docs
    /tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
    """
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(value) for name, value in schema.items()}
    if (
        isinstance(schema.get("properties"), dict)
        and isinstance(schema.get("type"), str)
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        found.setdefault("additionalProperties", False)
    return found


def refusals(resource: dict[str, Any]) -> list[str]:
    """What KubeRay's schema says against a resource of its own."""
    path = SCHEMAS / f"{resource['kind'].lower()}s.json.gz"
    version = resource["apiVersion"].removeprefix("ray.io/")
    schema = closed(json.loads(gzip.decompress(path.read_bytes()))["versions"][version])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(resource)]


def groups() -> Iterator[tuple[str, dict[str, Any]]]:
    spec = cluster()["spec"]
    yield "head", spec["headGroupSpec"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group


def container(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]["containers"][0]  # type: ignore[no-any-return]


def quantity(text: str) -> float:
    """Bytes, of a quantity of Kubernetes' such as 16Gi."""
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti|)", text).groups()  # type: ignore[union-attr]
    return float(number) * 1024 ** ["", "Ki", "Mi", "Gi", "Ti"].index(unit)


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.yaml")))
def test_resources_are_what_kuberay_and_kubernetes_take(name: str) -> None:
    for resource in documents(name):
        if resource["apiVersion"].startswith("ray.io/"):
            assert refusals(resource) == []
        else:
            for version in KUBERNETES:
                kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelt_field_is_refused_by_the_schema() -> None:
    wrong = cluster()
    wrong["spec"]["workerGroupSpecs"][1]["template"]["spec"]["tolerations"][2]["operater"] = "Exists"
    wrong["spec"]["authOptions"]["mode"] = "tokens"
    assert len(refusals(wrong)) == 2


@pytest.mark.parametrize("version", KUBERNETES)
def test_pods_are_what_kubernetes_takes(version: str) -> None:
    for name, group in groups():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_the_autoscaler_reads_a_gpu_group_that_starts_from_none() -> None:
    # Ray's own reading of a RayCluster, in the sidecar that KubeRay puts beside the head.
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    resource = cluster()
    resource["metadata"]["namespace"] = "default"
    types = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    bounds = {name: (one["min_workers"], one["max_workers"]) for name, one in types.items() if name != "headgroup"}
    assert bounds == {"cpu": (1, 16), "gpu": (0, 4)}
    assert {name: (one["resources"]["CPU"], one["resources"].get("GPU", 0)) for name, one in types.items()} == {
        "headgroup": (0, 0),
        "cpu": (8, 0),
        "gpu": (0, 1),
    }


def test_ray_and_the_image_are_of_this_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"ray=={cluster()['spec']['rayVersion']}" in (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert {container(group)["image"] for _, group in groups()} == {f"pairmill:{project['version']}"}


def test_the_head_is_never_on_a_spot_node_and_workers_may_be() -> None:
    found = dict(groups())
    affinity = found["head"]["template"]["spec"]["affinity"]["nodeAffinity"]
    avoided = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]["matchExpressions"]
    assert {term["operator"] for term in avoided} == {"NotIn"}
    assert "tolerations" not in found["head"]["template"]["spec"]
    for name in ("cpu", "gpu"):
        pod = found[name]["template"]["spec"]
        preferred = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert {term["key"] for one in preferred for term in one["preference"]["matchExpressions"]} == {
            term["key"] for term in avoided
        }
        tolerated = {toleration["key"] for toleration in pod["tolerations"]}
        assert "cloud.google.com/gke-spot" in tolerated
        assert ("nvidia.com/gpu" in tolerated) == (name == "gpu")


def test_the_cluster_asks_for_a_token_and_no_manifest_has_a_secret() -> None:
    assert cluster()["spec"]["authOptions"] == {"mode": "token"}
    for _, group in groups():
        assert container(group)["envFrom"] == [{"secretRef": {"name": "pairmill-store", "optional": True}}]
        plain = {one["name"]: one["value"] for one in container(group)["env"]}
        assert plain == {"TMPDIR": "/scratch", "RAY_TMPDIR": "/tmp", "RAY_USAGE_STATS_ENABLED": "0"}
    written = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    assert not re.search(r"AWS_\w+ *[:=] *\S|RAY_AUTH_TOKEN|://[^/ ]*@", written)


def test_nobody_is_root() -> None:
    for _, group in groups():
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"]
        security = container(group)["securityContext"]
        assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_memory_holds_the_workers_and_the_object_store_and_disk_what_is_spilt() -> None:
    for name, group in groups():
        limits = container(group)["resources"]["limits"]
        assert container(group)["resources"]["requests"] == limits  # memory that is promised twice is no memory
        volumes = {one["name"]: one for one in group["template"]["spec"]["volumes"]}
        mounts = {one["name"]: one["mountPath"] for one in container(group)["volumeMounts"]}
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store <= quantity(volumes["shm"]["emptyDir"]["sizeLimit"])
        assert mounts["shm"] == "/dev/shm"
        workers = int(limits["cpu"]) if name == "cpu" else 0
        assert workers * WORKER_BYTES + store + 1e9 <= quantity(limits["memory"])
        assert group["rayStartParams"]["object-spilling-directory"] == mounts["scratch"]
        assert quantity(volumes["scratch"]["emptyDir"]["sizeLimit"]) < quantity(limits["ephemeral-storage"])


@pytest.mark.parametrize("name", ["build.yaml", "train.yaml"])
def test_jobs_run_on_the_cluster_and_have_no_cluster_of_their_own(name: str) -> None:
    (job,) = documents(name)
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster()["metadata"]["name"]}
    assert "rayClusterSpec" not in job["spec"]


def test_the_build_is_a_command_that_jobs_build_takes() -> None:
    (job,) = documents("build.yaml")
    python, _, module, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, module) == ("python", "jobs.build")
    flags = build_parser("test", "").parse_args(arguments)
    settings = dict(setting.split("=") for setting in flags.set)
    found = dict(groups())
    cpus, gpus = container(found["cpu"])["resources"]["limits"], container(found["gpu"])["resources"]["limits"]
    assert settings == {
        "ray.gpus": "true",
        "ray.pools.download": str(found["cpu"]["maxReplicas"] * int(cpus["cpu"])),
        "embed.decoders": gpus["cpu"],
    }
    assert flags.recipe.startswith("/recipes/")
    load_recipe("default", flags.set)


def test_the_training_is_one_that_jobs_train_takes_on_all_gpus() -> None:
    (job,) = documents("train.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs.train"]
    settings = parse_settings(
        words[words.index("--preset") + 1], [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    )
    assert settings.gpus
    assert settings.wait_minutes > 0
    assert settings.max_failures == -1  # spot nodes leave
    assert settings.workers == dict(groups())["gpu"]["maxReplicas"]
    assert words[words.index("--out") + 1].startswith("/shared/")
