"""What is given to clouds and to Kubernetes: files that Ray's launcher and KubeRay take, and that open nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from test_cluster_yaml import PREPARE, commands, ray_schema

ROOT = Path(__file__).resolve().parents[1]
AWS = ROOT / "configs" / "clusters" / "aws.yaml"
KUBERAY = ROOT / "configs" / "kuberay"
DOCKERFILE = ROOT / "configs" / "docker" / "Dockerfile"
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "entrypoint", "rayClusterSpec", "runtimeEnvYAML"),
    *("shutdownAfterJobFinishes", "submissionMode", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
}
CLUSTER = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
    *("rayVersion", "workerGroupSpecs"),
}
HEAD = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKERS = {"groupName", "maxReplicas", "minReplicas", "rayStartParams", "replicas", "scaleStrategy", "template"}
AUTOSCALER = {
    *("env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext"),
    *("upscalingMode", "version", "volumeMounts"),
}
"""Fields of KubeRay's API (docs: "API Reference", ray.io/v1) since 1.6; it refuses or drops any other."""


@pytest.fixture
def aws() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(AWS.read_text())
    return loaded


def test_aws_fits_the_schema_of_ray(aws: dict[str, Any]) -> None:
    jsonschema.validate(aws, ray_schema())


def test_aws_grows_from_nothing_within_its_limits(aws: dict[str, Any]) -> None:
    kinds = {name: kind for name, kind in aws["available_node_types"].items() if name != aws["head_node_type"]}
    assert aws["head_node_type"] in aws["available_node_types"]
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in kinds.values())
    assert aws["max_workers"] == sum(kind["max_workers"] for kind in kinds.values())
    assert {kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") for kind in kinds.values()} == {
        *(None, "spot")
    }


def test_aws_opens_nothing(aws: dict[str, Any]) -> None:
    starts = [command for command in commands(aws) if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert all("0.0.0.0" not in command for command in commands(aws))
    assert "--dashboard-host=127.0.0.1" in next(command for command in starts if "--head" in command)
    assert any(command.startswith("chmod 600 ~/.ray/auth_token") for command in aws["setup_commands"])
    for kind in aws["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"]
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
        assert all(disk["Ebs"]["Encrypted"] for disk in kind["node_config"]["BlockDeviceMappings"])


@pytest.mark.slow
def test_the_launcher_of_ray_prepares_aws_and_keeps_our_commands(aws: dict[str, Any]) -> None:
    words = [sys.executable, "-c", PREPARE, str(AWS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    prepared = json.loads(done.stdout)
    assert prepared["head_start_ray_commands"] == aws["head_start_ray_commands"]
    assert prepared["available_node_types"]["spot"]["max_workers"] == 8


def manifest(kind: str) -> dict[str, dict[str, Any]]:
    """The documents of a manifest by their kind."""
    documents = yaml.safe_load_all((KUBERAY / f"{kind.lower()}.yaml").read_text())
    return {document["kind"]: document for document in documents}


def job_of(kind: str) -> dict[str, Any]:
    """The spec of the job in a manifest."""
    spec: dict[str, Any] = manifest(kind)[kind]["spec"]
    return spec if kind == "RayJob" else spec["jobTemplate"]


KINDS = pytest.mark.parametrize("kind", ["RayJob", "RayCronJob"])


def pods(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The specs of the pods of a job."""
    cluster = job["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


@KINDS
def test_kuberay_knows_every_field(kind: str) -> None:
    document, job = manifest(kind)[kind], job_of(kind)
    cluster = job["rayClusterSpec"]
    assert document["apiVersion"] == "ray.io/v1"
    assert set(job) <= JOB
    assert set(cluster) <= CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD
    assert all(set(group) <= WORKERS for group in cluster["workerGroupSpecs"])
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    if kind == "RayCronJob":
        assert set(document["spec"]) == {"schedule", "timeZone", "suspend", "jobTemplate"}
        assert len(document["spec"]["schedule"].split()) == 5


@KINDS
def test_the_token_is_wanted_and_the_cluster_grows(kind: str) -> None:
    cluster = job_of(kind)["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert cluster["rayVersion"] == locked[1]
    assert cluster["enableInTreeAutoscaling"] is True
    assert all(group["minReplicas"] < group["maxReplicas"] for group in cluster["workerGroupSpecs"])


@KINDS
def test_pods_are_nobody_and_have_time_to_drain(kind: str) -> None:
    job = job_of(kind)
    for pod in pods(job):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            given = {each["name"]: each.get("value") for each in container["env"]}
            assert float(given[DRAIN]) < pod["terminationGracePeriodSeconds"]
    stop = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    assert int(stop["RAY_JOB_STOP_WAIT_TIME_S"]) < next(pods(job))["terminationGracePeriodSeconds"]


@KINDS
def test_keys_come_from_secrets_and_run_folders_from_a_disk(kind: str) -> None:
    documents, job = manifest(kind), job_of(kind)
    for pod in pods(job):
        for container in pod["containers"]:
            for each in container["env"]:
                assert "value" not in each or not each["name"].endswith(("KEY", "TOKEN"))
                assert "value" in each or "secretKeyRef" in each["valueFrom"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= {each["name"] for each in pod["volumes"]}
    claimed = {each["name"]: each.get("persistentVolumeClaim") for each in next(pods(job))["volumes"]}
    assert claimed["runs"] == {"claimName": documents["PersistentVolumeClaim"]["metadata"]["name"]}
    assert job["backoffLimit"] > 0
    script = documents["ConfigMap"]["data"]["run.sh"]
    assert script.index("exec evocluster resume") < script.index("exec evocluster run")
    assert "--out" in script
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


@KINDS
def test_only_the_dashboard_is_open_to_other_pods(kind: str) -> None:
    policy, cluster = manifest(kind)["NetworkPolicy"]["spec"], job_of(kind)["rayClusterSpec"]
    chosen = policy["podSelector"]["matchLabels"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"] == chosen
    own, others = policy["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": chosen}}]}
    assert others["ports"] == [{"protocol": "TCP", "port": 8265}]


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_copies_what_is_there_and_what_its_context_holds() -> None:
    context = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    copied = [text.split()[:-1] for word, text in instructions() if word == "COPY" and "--from" not in text]
    sources = [source for group in copied for source in group]
    assert sources
    assert all((ROOT / source).exists() and f"!{source}" in context for source in sources)
    assert context[0] == "*"


def test_the_image_is_pinned_by_hashes_and_runs_as_nobody() -> None:
    installs = [text for word, text in instructions() if word == "RUN" and "pip install" in text]
    assert len(installs) == 2
    assert "--require-hashes --no-deps -r requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]
    assert "hatchling==" in (ROOT / "requirements.lock").read_text()
    words = [word for word, _ in instructions()]
    assert dict(instructions())["USER"] == "1000:1000"
    assert words.index("USER") > max(at for at, word in enumerate(words) if word == "RUN")
    assert all("latest" not in text and word != "ADD" for word, text in instructions())
    named = {text.split("=")[0] for word, text in instructions() if word == "ARG"}
    assert all(f"${name}" in DOCKERFILE.read_text() or f"${{{name}}}" in DOCKERFILE.read_text() for name in named)
