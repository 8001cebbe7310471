"""Bundles of random models over many spaces, and the servers that serve them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces

from agentgpt_remote.policy.bundle import save_bundle
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.policy.server import serve_policy
from tests.policy.sagemaker_stand_in import SageMakerStandIn

Open = Callable[..., GPTPolicy]

SPACES: dict[str, tuple[Space, Space]] = {
    "cartpole": (spaces.Box(-5, 5, (4,), np.float32), spaces.Discrete(2)),
    "offset": (spaces.Discrete(5, start=-2), spaces.Discrete(3, start=7)),
    "continuous": (spaces.Box(-np.inf, np.inf, (3,), np.float64), spaces.Box(-2, 2, (2,), np.float32)),
    "multi": (spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([2, 5], start=[1, -1])),
    "bits": (spaces.MultiBinary(6), spaces.MultiBinary((2, 2))),
    "images": (
        spaces.Dict({"camera": spaces.Box(0, 255, (20, 24, 3), np.uint8), "speed": spaces.Box(-1, 1, (2,))}),
        spaces.Discrete(5),
    ),
    "nested": (
        spaces.Dict(
            {"pose": spaces.Box(-1, 1, (2, 3)), "mode": spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)])}
        ),
        spaces.Dict(
            {"steer": spaces.Box(-1, 1, (1,)), "gear": spaces.Tuple([spaces.Discrete(4), spaces.MultiBinary(3)])}
        ),
    ),
}


def make_model(name: str, *, window: int = 4, seed: int = 0) -> PolicyModel:
    """Return a random model whose actions depend strongly on what it sees."""
    torch.manual_seed(seed)
    model = PolicyModel(*SPACES[name], GPTConfig(num_layers=2, d_model=32, num_heads=2, max_input_states=window))
    with torch.no_grad():
        model.head.weight.mul_(300.0)
    return model


def make_smooth_model(**options: int) -> PolicyModel:
    """Return a random model whose actions stay between the bounds, so that every difference shows."""
    model = make_model("continuous", **options)
    with torch.no_grad():
        model.head.weight.mul_(0.02)
    return model


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle per pair of spaces."""
    root = tmp_path_factory.mktemp("bundles")
    for name in SPACES:
        save_bundle(root / name, make_model(name), provenance={"source": name, "env_steps": 0})
    save_bundle(root / "smooth", make_smooth_model(), provenance={"source": "smooth"})
    return {name: root / name for name in (*SPACES, "smooth")}


@pytest.fixture(scope="session")
def served(bundles: dict[str, Path]) -> Iterator[dict[str, str]]:
    """The URL of a policy server per bundle."""
    servers = {name: serve_policy(path, port=0, block=False) for name, path in bundles.items()}
    yield {name: server.url for name, server in servers.items()}
    for server in servers.values():
        server.close()


@pytest.fixture(scope="session")
def sagemaker_stand_in() -> Iterator[SageMakerStandIn]:
    """A stand-in for SageMaker."""
    stand_in = SageMakerStandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture
def sagemaker(sagemaker_stand_in: SageMakerStandIn, monkeypatch: pytest.MonkeyPatch) -> SageMakerStandIn:
    """The stand-in, in an environment in which boto3 finds it and credentials."""
    variables = {
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": sagemaker_stand_in.url,
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return sagemaker_stand_in


@pytest.fixture(params=["folder", "onnx", "ws", "http", "sagemaker"])
def open_policy(
    request: pytest.FixtureRequest, bundles: dict[str, Path], served: dict[str, str], sagemaker: SageMakerStandIn
) -> Iterator[Open]:
    """Open a policy on a bundle by its name, from each kind of source; they are closed with the test."""
    opened: list[GPTPolicy] = []

    def open_one(name: str = "cartpole", **options: Any) -> GPTPolicy:
        sagemaker.deploy(name, served[name])
        where = {
            "folder": bundles[name],
            "onnx": bundles[name],
            "ws": served[name],
            "http": served[name].replace("ws://", "http://"),
            "sagemaker": f"sagemaker://{name}",
        }
        engine = {"engine": "onnx"} if request.param == "onnx" else {}
        opened.append(GPTPolicy(where[request.param], **engine, **options))
        return opened[-1]

    yield open_one
    for policy in opened:
        policy.close()
