from __future__ import annotations

import json
from typing import Any

import pytest

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters


def test_round_trip_through_json() -> None:
    hosts = {"a": EnvHost(env_endpoint="ws://127.0.0.1:8000", num_agents=4)}
    before = Hyperparameters(env_hosts=hosts, max_steps=123, lr_init=1e-3)
    assert Hyperparameters.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_unknown_field_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="'max_step': did you mean 'max_steps'"):
        Hyperparameters.from_dict({"max_step": 5})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"max_steps": 0}, "max_steps=0: expected an integer of at least 1"),
        ({"max_steps": 1.5}, "max_steps=1.5: expected an integer"),
        ({"max_steps": "many"}, "max_steps='many'"),
        ({"seed": True}, "seed=True"),
        ({"gamma_init": 1.5}, "gamma_init=1.5: expected a number of at least 0 and at most 1"),
        ({"lr_init": float("nan")}, "lr_init=nan"),
        ({"lr_init": 1e-4, "lr_end": 1e-3}, "lr_end=0.001"),
        ({"lr_scheduler": "step"}, "'linear', 'cosine', 'constant'"),
        ({"env_hosts": {"a": "ws://x"}}, "expected an EnvHost"),
        ({"env_hosts": {"a": {"url": "ws://x"}}}, "env_endpoint"),
        ({"env_id": "CartPole-v1", "env_hosts": {"a": EnvHost(env_endpoint="ws://x")}}, "both set"),
        ({"use_tensorboard": 1}, "use_tensorboard=1"),
    ],
)
def test_bad_values_name_field_value_and_expectation(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Hyperparameters(**values)
    assert text in str(caught.value)


def test_dropout_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"dropout=0\.1: expected 0\. Actions are stored with their probability"):
        Hyperparameters(dropout=0.1)
    with pytest.raises(ConfigError, match=r"dropout=1\.0: expected a number of at least 0 and less than 1"):
        Hyperparameters(dropout=1.0)


def test_gpt_type_reaches_both_models() -> None:
    resolved = Hyperparameters(gpt_type="gpt2").resolve("cpu")
    assert resolved.model_config().gpt_type == resolved.critic_config().gpt_type == "gpt2"
    with pytest.raises(ConfigError, match="gpt_type='gpt3': expected one of 'llama', 'gpt2'"):
        Hyperparameters.from_dict({"gpt_type": "gpt3"})


def test_host_needs_a_url() -> None:
    with pytest.raises(ConfigError, match="env_endpoint='sim-7'"):
        EnvHost(env_endpoint="sim-7")


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_resolve_leaves_nothing_open(device: str, continuous: bool) -> None:
    resolved = Hyperparameters(env_id="X").resolve(device, continuous=continuous)
    optional = ("env_id", "wandb_project", "max_agents")
    assert None not in {name: value for name, value in resolved.to_dict().items() if name not in optional}.values()
    assert resolved.device == device
    assert (resolved.entropy_coef == 0) is continuous
    assert resolved.model_config().d_model == resolved.d_model
    assert resolved.resolve(device) == resolved


def test_resolve_keeps_what_was_set() -> None:
    resolved = Hyperparameters(env_id="X", d_model=128, lr_init=2e-3, entropy_coef=0.1).resolve("cpu")
    assert (resolved.d_model, resolved.lr_init, resolved.entropy_coef) == (128, 2e-3, 0.1)


def test_every_field_is_documented() -> None:
    documentation = Hyperparameters.__doc__ or ""
    for name in Hyperparameters().to_dict():
        assert f"        {name}: " in documentation or f"    {name}: " in documentation
