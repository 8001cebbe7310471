"""Hosts in the cloud: images, tasks, manifests; by moto and by the checkers of those who read such files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentgpt_remote import EnvLauncher, RemoteEnv
from agentgpt_remote.cloud.aws import Aws
from agentgpt_remote.cloud.dockerfiles import LIBRARIES, dockerfile, pinned_requirements, write_context
from agentgpt_remote.cloud.host_config import CloudHostConfig, hourly_cost
from agentgpt_remote.cloud.hosting import find_host, host_requests, launch_host, relay_words, serve_words
from agentgpt_remote.cloud.images import ImageName, build_with_codebuild, project_request, push_image
from agentgpt_remote.cloud.listing import list_running
from agentgpt_remote.cloud.manifests import kubernetes_manifest, skypilot_task
from agentgpt_remote.cloud.rehearsal.stage import Stage
from agentgpt_remote.cloud.secret import store_certificate
from agentgpt_remote.errors import CloudError, ConfigError
from agentgpt_remote.tokens import Keyring, Role
from tests.cloud.samples import ACCOUNT, SECRET_ARN
from tests.reach.processes import SECRET, Command, free_port, start_host
from tests.support import wait_until

IMAGE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/agentgpt-env:1"
FIELDS: dict[str, Any] = {
    "image_uri": IMAGE,
    "execution_role_arn": f"arn:aws:iam::{ACCOUNT}:role/agentgpt-hosts",
    "token_secret": SECRET_ARN,
    "subnets": ["subnet-0a"],
    "security_group_ids": ["sg-0a"],
}


@pytest.fixture
def config(stage: Stage) -> CloudHostConfig:
    """A configuration whose network is there."""
    ec2 = stage.surroundings.client("ec2")
    network = ec2.describe_subnets()["Subnets"][0]
    groups = ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [network["VpcId"]]}])["SecurityGroups"]
    own = {"subnets": [network["SubnetId"]], "security_group_ids": [groups[0]["GroupId"]], "region": "us-east-1"}
    return CloudHostConfig(**FIELDS | own)


@pytest.mark.parametrize(
    ("kind", "words"), [("cpu", []), ("cuda", []), ("env", serve_words("CartPole-v1", 8)), ("env", ["relay"])]
)
def test_dockerfiles_pass_hadolint(tmp_path: Path, kind: Any, words: list[str]) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(dockerfile(kind, words))
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert hadolint is not None
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "USER 10001" in path.read_text() or "AGENTGPT_CONTAINER_USER=agentgpt" in path.read_text()


def test_images_pin_what_is_installed_here() -> None:
    cpu, env = pinned_requirements("cpu"), pinned_requirements("env", ["pygame==2.6.1", "safetensors"])
    assert all("==" in line for line in [*cpu, *env])
    assert any(line.startswith("torch==2") and "+" not in line for line in cpu)
    assert any(line.startswith("boto3==") for line in cpu)
    assert not any(line.startswith(("torch==", "boto3==", "stable", "pytest")) for line in env)
    assert "pygame==2.6.1" in env
    assert any(line.startswith("safetensors==") for line in env)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for kind, names in (("env", ()), ("cpu", ("train", "cloud", "onnx")), ("cuda", ("train", "cloud"))):
        listed = [*project["dependencies"], *(line for name in names for line in extras[name])]
        assert {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in listed} == set(LIBRARIES[kind])  # type: ignore[index]
    with pytest.raises(ConfigError, match="expected a name with or without a version"):
        pinned_requirements("env", ["!!"])


def test_a_context_serves_an_environment_of_ones_own_in_a_fresh_environment(tmp_path: Path) -> None:
    """What the env image does, without docker: its files alone, and the libraries that it lists."""
    own = tmp_path / "mine"
    own.mkdir()
    (own / "my_game.py").write_text("import gymnasium\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n")
    context = write_context(
        tmp_path / "context", "env", words=serve_words("my_game:make"), include=[own / "my_game.py"]
    )
    assert sorted(path.name for path in context.iterdir()) == [
        ".dockerignore",
        "Dockerfile",
        "requirements.txt",
        "source",
    ]
    assert not list(context.rglob("__pycache__"))
    venv.create(tmp_path / "venv", with_pip=False)
    # The libraries are linked rather than downloaded: those that are listed, of the versions that are listed.
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (site / "linked.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")
    words = ["serve", "my_game:make", "--host", "127.0.0.1", "--port", "0"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(context / "source"), "AGENTGPT_TOKEN": "of-the-test"}
    with subprocess.Popen(
        [str(tmp_path / "venv" / "bin" / "python"), "-m", "agentgpt_remote", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().partition(" at ")[2].split()[0]
        with RemoteEnv(url=url, token="of-the-test") as env:
            assert env.reset(seed=0)[0].shape == (4,)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    with pytest.raises(ConfigError, match="is not there: expected a module or a package"):
        write_context(tmp_path / "other", "env", words=["serve", "x"], include=[tmp_path / "absent.py"])
    with pytest.raises(ConfigError, match="can't be put into a Dockerfile"):
        dockerfile("env", ["serve", 'a"b'])


def test_a_host_runs_until_it_is_closed(stage: Stage, config: CloudHostConfig) -> None:
    states: list[str] = []
    host = launch_host(config, serve_words("CartPole-v1", 16), base_name="cartpole", on_status=states.append)
    assert states[-1] == "RUNNING"
    assert host.url.startswith("ws://")
    assert host.url.endswith(":8000")
    ecs = stage.surroundings.client("ecs")
    task = ecs.describe_tasks(cluster="agentgpt", tasks=[host.task_arn])["tasks"][0]
    assert task["lastStatus"] == "RUNNING"
    host.close()
    host.close()
    assert ecs.list_tasks(cluster="agentgpt", desiredStatus="RUNNING")["taskArns"] == []
    assert ecs.list_task_definitions(status="ACTIVE")["taskDefinitionArns"] == []
    with EnvLauncher.launch_on_cloud("CartPole-v1", config, num_envs=4) as launched:
        assert launched.url.startswith("ws://")
        assert len(ecs.list_tasks(cluster="agentgpt", desiredStatus="RUNNING")["taskArns"]) == 1
    assert ecs.list_tasks(cluster="agentgpt", desiredStatus="RUNNING")["taskArns"] == []


def test_a_host_is_listed_with_its_cost_and_stopped_by_name(stage: Stage, config: CloudHostConfig) -> None:
    aws, host = Aws("us-east-1"), launch_host(config, serve_words("CartPole-v1"), base_name="listed")
    [entry] = [entry for entry in list_running(aws) if entry.kind == "host"]
    assert (entry.name, entry.status, entry.machines) == (host.name, "RUNNING", "1 cores, 2 GB")
    assert entry.per_hour == pytest.approx(0.04937, abs=1e-4)
    assert entry.ends.endswith("Z")
    assert find_host(aws, "no-such-host") is None
    found = find_host(aws, host.name)
    assert found is not None
    found.close()
    assert list_running(aws) == []


def test_a_host_that_does_not_start_leaves_nothing(
    stage: Stage, config: CloudHostConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"lastStatus": "STOPPED", "stoppedReason": "CannotPullContainerError: not found"}
    monkeypatch.setattr("agentgpt_remote.cloud.hosting._describe", lambda *_: answer)
    with pytest.raises(CloudError, match="has stopped: CannotPullContainerError: not found; its log is in"):
        launch_host(config, serve_words("CartPole-v1"))
    ecs = stage.surroundings.client("ecs")
    assert ecs.list_tasks(cluster="agentgpt", desiredStatus="RUNNING")["taskArns"] == []
    assert ecs.list_task_definitions(status="ACTIVE")["taskDefinitionArns"] == []


def test_a_host_ends_by_itself_and_its_token_is_a_reference() -> None:
    config = CloudHostConfig(**FIELDS, ttl_hours=0.5, spot=False, tags={"team": "simulation"})
    definition, task = host_requests(config, serve_words("CartPole-v1"), "cartpole", "us-east-1")
    container = definition.arguments["containerDefinitions"][0]
    assert container["entryPoint"][:4] == ["timeout", "--signal=TERM", "--kill-after=30", "1800"]
    assert container["secrets"] == [{"name": "AGENTGPT_TOKEN", "valueFrom": SECRET_ARN}]
    assert task.arguments["launchType"] == "FARGATE"
    assert task.arguments["networkConfiguration"]["awsvpcConfiguration"]["assignPublicIp"] == "DISABLED"
    assert hourly_cost(config) == pytest.approx(0.04937, abs=1e-4)
    assert serve_words("CartPole-v1", connect="wss://relay.example.org") == [
        "serve",
        "CartPole-v1",
        "--connect",
        "wss://relay.example.org",
    ]


def test_a_host_that_dials_out_trusts_whom_its_launcher_trusts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTGPT_PIN", "sha256:" + 64 * "0")
    words = serve_words("CartPole-v1", connect="wss://relay:8000/lab")
    definition = host_requests(CloudHostConfig(**FIELDS), words, "cartpole", "us-east-1")[0]
    container = definition.arguments["containerDefinitions"][0]
    assert {"name": "AGENTGPT_PIN", "value": "sha256:" + 64 * "0"} in container["environment"]
    assert "--insecure" not in container["command"]


def test_a_relay_gets_its_secret_and_its_certificate_as_references() -> None:
    tls_arn = SECRET_ARN.replace("secret:", "secret:tls-")
    plain = host_requests(CloudHostConfig(**FIELDS), relay_words(), "relay", "us-east-1")[0]
    container = plain.arguments["containerDefinitions"][0]
    assert container["command"] == ["relay", "--host", "0.0.0.0", "--port", "8000", "--insecure"]
    assert container["secrets"] == [{"name": "AGENTGPT_RELAY_SECRET", "valueFrom": SECRET_ARN}]
    config = CloudHostConfig(**FIELDS, tls_secret=tls_arn, public=True)
    container = host_requests(config, relay_words(), "relay", "us-east-1")[0].arguments["containerDefinitions"][0]
    assert container["command"] == ["relay", "--host", "0.0.0.0", "--port", "8000"]
    assert {"name": "AGENTGPT_TLS_PEM", "valueFrom": tls_arn} in container["secrets"]
    assert "https://127.0.0.1:8000/health" in " ".join(container["healthCheck"]["command"])
    with pytest.raises(ConfigError, match="plaintext through the internet: set tls_secret"):
        host_requests(CloudHostConfig(**FIELDS, public=True), relay_words(), "relay", "us-east-1")


def test_a_relay_in_a_container_serves_with_the_certificate_that_it_is_given(stage: Stage) -> None:
    """What ECS starts, without ECS: the words and the variables of its container."""
    arn, pin = store_certificate(Aws("us-east-1"), "agentgpt/tls")
    pem = stage.surroundings.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"]
    variables = {"AGENTGPT_TLS_PEM": pem, "AGENTGPT_RELAY_SECRET": SECRET}
    port = free_port()
    with Command("relay", "--host", "127.0.0.1", "--port", str(port), **variables) as relay:
        assert relay.wait_for(r"--pin sha256:[0-9a-f]{64}").endswith(pin)
        room, keyring = f"wss://127.0.0.1:{port}/lab", Keyring(SECRET)
        with start_host(room, "CartPole-v1", "--pin", pin, AGENTGPT_TOKEN=keyring.make(Role.HOST, "lab")) as host:
            words = ["check", room, "--pin", pin]
            with Command(*words, AGENTGPT_TOKEN=keyring.make(Role.TRAINER, "lab")) as check:
                assert check.process.wait(60) == 0, check.output
            assert host.end(signal.SIGINT) == 0
        assert relay.end(signal.SIGTERM) == 0
        assert "PRIVATE KEY" not in relay.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_secret": "hunter2"}, "token_secret is not an ARN"),
        ({"tls_secret": "hunter2"}, "tls_secret is not an ARN"),
        ({"execution_role_arn": "me"}, "expected the ARN of an IAM role"),
        ({"subnets": []}, "needs subnets and security_group_ids"),
        ({"cpu": 300}, "expected one of 256 with 512 to 2048"),
        ({"memory_mb": 100}, "memory_mb=100"),
        ({"launch_type": "LAMBDA"}, "expected 'FARGATE' or 'EC2'"),
        ({"ttl_hours": 0}, "ttl_hours=0"),
    ],
)
def test_bad_fields_of_a_host_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        CloudHostConfig(**FIELDS | changes)
    assert "hunter2" not in str(caught.value)


def test_launch_on_cloud_refuses_what_no_image_can_hold(config: CloudHostConfig) -> None:
    with pytest.raises(ConfigError, match="can't be put into an image"):
        EnvLauncher.launch_on_cloud(lambda: None, config)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a CloudHostConfig"):
        EnvLauncher.launch_on_cloud("CartPole-v1", {})


def test_kubernetes_manifests_are_valid() -> None:
    import kubernetes_validate

    text = kubernetes_manifest(IMAGE, serve_words("CartPole-v1", 16), replicas=3)
    documents = list(yaml.safe_load_all(text))
    assert [document["kind"] for document in documents] == ["Deployment", "Service"]
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    container = documents[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][:2] == ["serve", "CartPole-v1"]
    assert container["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "agentgpt-token"
    for bad in ({"name": "Bad_Name"}, {"replicas": 0}):
        with pytest.raises(ConfigError):
            kubernetes_manifest(IMAGE, ["serve"], **bad)  # type: ignore[arg-type]


def test_skypilot_task_is_yaml_that_ends_by_itself() -> None:
    task = yaml.safe_load(skypilot_task(IMAGE, serve_words("CartPole-v1"), ttl_hours=2))
    assert task["run"].startswith("timeout 7200 python -m agentgpt_remote 'serve' 'CartPole-v1'")
    assert task["resources"]["autostop"] == {"idle_minutes": 120, "down": True}
    assert task["secrets"] == {"AGENTGPT_TOKEN": None}


class FakeDocker:
    """A ``docker`` command that records how it was called, and may fail."""

    def __init__(self, folder: Path, failing: str = "") -> None:
        folder.mkdir()
        self.log = folder / "log"
        script = folder / "docker"
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {self.log}\n[ "$1" = login ] && cat >> {self.log}.password\n'
            f'[ "$1" = "{failing}" ] && {{ echo "it broke" >&2; exit 3; }}\nexit 0\n'
        )
        script.chmod(0o755)
        self.path = str(folder)


def test_images_are_pushed_by_docker_and_the_password_is_no_argument(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = FakeDocker(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{docker.path}{os.pathsep}{os.environ['PATH']}")
    name, said = ImageName(ACCOUNT, "us-east-1", "agentgpt-pushed", "1"), []
    uri = push_image(Aws("us-east-1"), tmp_path, name, role_arn=None, folder=None, say=said.append)
    assert uri == f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/agentgpt-pushed:1"
    calls = docker.log.read_text()
    assert f"build --platform linux/amd64 --tag {uri}" in calls
    assert "login --username AWS --password-stdin" in calls
    assert f"push {uri}" in calls
    password = Path(f"{docker.log}.password").read_text()
    assert password
    assert password not in calls
    assert said == [f"docker build {uri}", f"docker push {uri}"]
    failing = FakeDocker(tmp_path / "failing", "build")
    monkeypatch.setenv("PATH", f"{failing.path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(CloudError, match=r"docker build failed \(exit code 3\):\nit broke"):
        push_image(Aws("us-east-1"), tmp_path, name, role_arn=None, folder=None, say=said.append)


def test_images_are_built_by_codebuild_where_there_is_no_docker(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentgpt_remote.cloud.images.docker_available", lambda: False)
    context = write_context(tmp_path / "context", "env", words=["serve", "CartPole-v1"])
    name, aws = ImageName(ACCOUNT, "us-east-1", "agentgpt-built", "1"), Aws("us-east-1")
    with pytest.raises(ConfigError, match="docker does not answer here, and CodeBuild needs role_arn"):
        push_image(aws, context, name, role_arn=None, folder=None, say=lambda _: None)
    role = f"arn:aws:iam::{ACCOUNT}:role/agentgpt-builds"
    uri = push_image(aws, context, name, role_arn=role, folder="s3://agentgpt-rehearsal/work", say=lambda _: None)
    assert uri == name.uri
    s3 = stage.surroundings.client("s3")
    assert (
        s3.head_object(Bucket="agentgpt-rehearsal", Key="work/images/agentgpt-built-1.zip")["ContentLength"] > 100_000
    )
    build_with_codebuild(
        aws, context, name, role_arn=role, folder="s3://agentgpt-rehearsal/work", say=lambda _: None
    )  # the project is there already
    spec = yaml.safe_load(project_request(name, role, "bucket/key").arguments["source"]["buildspec"])
    assert any("docker push" in command for command in spec["phases"]["build"]["commands"])


def test_the_host_command_ends_what_it_started(stage: Stage, config: CloudHostConfig, tmp_path: Path) -> None:
    fields = {"subnets": list(config.subnets), "security_group_ids": list(config.security_group_ids)}
    settings = [f"{key}={json.dumps(value)}" for key, value in (FIELDS | fields | {"region": "us-east-1"}).items()]
    words = ["host", "CartPole-v1", "--json", *(word for setting in settings for word in ("--host-set", setting))]
    with subprocess.Popen(
        [sys.executable, "-m", "agentgpt_remote", "cloud", *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        ecs = stage.surroundings.client("ecs")
        assert told["task"] in ecs.list_tasks(cluster="agentgpt", desiredStatus="RUNNING")["taskArns"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    wait_until(lambda: ecs.list_tasks(cluster="agentgpt", desiredStatus="RUNNING")["taskArns"] == [], 10.0)
