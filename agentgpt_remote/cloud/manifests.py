"""Hosts elsewhere: manifests for Kubernetes and SkyPilot."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from agentgpt_remote.cloud.hosting import PORT
from agentgpt_remote.errors import ConfigError

SECRET_NAME, SECRET_KEY = "agentgpt-token", "token"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def kubernetes_manifest(image: str, words: Sequence[str], *, name: str = "agentgpt-host", replicas: int = 1) -> str:
    """Return a Deployment and a Service as YAML (each document is JSON, which YAML includes); they stay until deleted.

    The token is taken from the secret ``agentgpt-token``:
    ``kubectl create secret generic agentgpt-token --from-literal=token=...``.

    Args:
        image: of the host.
        words: what it is told, such as ``["serve", "CartPole-v1", "--host", "0.0.0.0"]``.
        name: of both.
        replicas: how many hosts.

    Raises:
        ConfigError: a name or a number makes no sense.
    """
    _check(name, replicas, 1.0)
    labels = {"app": name}
    probe = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 15, "timeoutSeconds": 5}
    container: dict[str, Any] = {
        "name": "host",
        "image": image,
        "args": list(words),
        "ports": [{"containerPort": PORT}],
        "env": [{"name": "AGENTGPT_TOKEN", "valueFrom": {"secretKeyRef": {"name": SECRET_NAME, "key": SECRET_KEY}}}],
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "2Gi"}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if "--connect" not in words:  # one that dials out listens nowhere
        container |= {"readinessProbe": probe, "livenessProbe": {**probe, "initialDelaySeconds": 60}}
    deployment: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"automountServiceAccountToken": False, "containers": [container]},
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"port": PORT, "targetPort": PORT}]},
    }
    return "".join(f"---\n{json.dumps(document, indent=2)}\n" for document in (deployment, service))


def skypilot_task(image: str, words: Sequence[str], *, name: str = "agentgpt-host", ttl_hours: float = 8.0) -> str:
    """Return a SkyPilot task as YAML; ``sky launch --secret AGENTGPT_TOKEN FILE`` starts it.

    Args:
        image: of the host.
        words: what it is told.
        name: of the task.
        ttl_hours: after which it ends by itself.

    Raises:
        ConfigError: a name or a number makes no sense.
    """
    _check(name, 1, ttl_hours)
    command = " ".join(f"'{word}'" for word in words)
    task = {
        "name": name,
        "resources": {
            "image_id": f"docker:{image}",
            "cpus": "1+",
            "memory": "2+",
            "use_spot": True,
            "ports": [PORT],
            "autostop": {"idle_minutes": max(1, int(ttl_hours * 60)), "down": True},
        },
        "secrets": {"AGENTGPT_TOKEN": None},
        "run": f"timeout {int(ttl_hours * 3600)} python -m agentgpt_remote {command}",
    }
    return json.dumps(task, indent=2) + "\n"


def _check(name: str, replicas: int, ttl_hours: float) -> None:
    if _LABEL.fullmatch(name) is None:
        raise ConfigError(f"name={name!r}: expected at most 63 small letters, digits and hyphens")
    if not 1 <= replicas <= 1000:
        raise ConfigError(f"replicas={replicas}: expected 1 to 1000")
    if not 0 < ttl_hours <= 24 * 365:
        raise ConfigError(f"ttl_hours={ttl_hours!r}: expected hours, more than 0")
