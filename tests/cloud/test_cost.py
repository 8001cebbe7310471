from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentgpt_remote import Hyperparameters
from agentgpt_remote.cloud.cost import (
    OVERHEAD_S,
    PRICES_VARIABLE,
    endpoint_estimate,
    hourly_price,
    price_table,
    training_estimate,
    with_endpoint_budget,
    with_training_budget,
)
from agentgpt_remote.cloud.plan import plan_deployment, plan_training
from agentgpt_remote.cloud.strict import input_shape
from agentgpt_remote.errors import ConfigError
from tests.cloud.samples import config


def test_prices_are_of_instance_types_that_there_are() -> None:
    training = set(input_shape("sagemaker", "CreateTrainingJob", "ResourceConfig.InstanceType").enum)
    serving = set(input_shape("sagemaker", "CreateEndpointConfig", "ProductionVariants.[].InstanceType").enum)
    prices = price_table()
    assert set(prices["instances"]) <= training | serving
    assert all(0.01 < price < 200 for price in prices["instances"].values())
    assert len(prices["date"]) >= 7


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize("max_usd", [0.1, 1.0, 25.0])
def test_a_job_never_costs_more_than_its_budget(spot: bool, max_usd: float) -> None:
    given = config(spot=spot, instance_count=2, max_run=5 * 24 * 3600)
    if max_usd == 0.1:
        with pytest.raises(ConfigError, match=r"--max-usd 0\.1 is not enough: 2 x ml\.m5\.xlarge"):
            with_training_budget(given, max_usd)
        return
    limited = with_training_budget(given, max_usd)
    estimate = training_estimate(limited)
    assert estimate is not None
    assert 0.9 * max_usd < estimate.at_most <= max_usd
    request = plan_training(given, Hyperparameters(env_id="CartPole-v1"), max_usd=max_usd, look=False).requests[0]
    longest = request.arguments["StoppingCondition"]
    paid_s = max(longest.values()) + OVERHEAD_S
    assert paid_s / 3600 * 2 * 0.23 <= max_usd


def test_a_budget_never_makes_a_job_longer() -> None:
    assert with_training_budget(config(max_run=600), 1000.0) == config(max_run=600)


def test_an_endpoint_expires_before_its_budget() -> None:
    limited = with_endpoint_budget(config(endpoint_instance_count=3, instance_type="ml.g5.xlarge"), 10.0)
    assert limited.expiry_hours == pytest.approx(10 / (3 * 1.408))
    estimate = endpoint_estimate(limited)
    assert estimate is not None
    assert estimate.at_most == pytest.approx(10.0)
    assert with_endpoint_budget(config(), 1e6).expiry_hours == 8
    with pytest.raises(ConfigError, match=r"--max-usd 0\.01 is not enough: the endpoint costs \$0\.23 per hour"):
        with_endpoint_budget(config(), 0.01)


def test_other_regions_are_estimated_from_above_and_say_so() -> None:
    found = hourly_price("ml.m5.xlarge", "eu-west-1")
    assert found is not None
    assert found[0] == pytest.approx(0.23 * 1.5)
    assert "eu-west-1 is not in the table" in found[1]


def test_a_price_that_is_not_known_refuses_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = config(instance_type="ml.p5.48xlarge")
    assert training_estimate(given) is None
    with pytest.raises(ConfigError, match=r"price of ml\.p5\.48xlarge is not in the table of .*AGENTGPT_PRICES"):
        with_training_budget(given, 100.0)
    own = price_table() | {"instances": {"ml.p5.48xlarge": 63.3}, "date": "mine"}
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(own))
    monkeypatch.setenv(PRICES_VARIABLE, str(path))
    estimate = training_estimate(given)
    assert estimate is not None
    assert estimate.per_hour == pytest.approx(63.3, abs=0.1)
    monkeypatch.setenv(PRICES_VARIABLE, str(tmp_path / "absent.json"))
    with pytest.raises(ConfigError, match=r"absent\.json can't be read"):
        training_estimate(given)
    (tmp_path / "odd.json").write_text('{"instances": 3}')
    monkeypatch.setenv(PRICES_VARIABLE, str(tmp_path / "odd.json"))
    with pytest.raises(ConfigError, match="expected the form of"):
        training_estimate(given)


@pytest.mark.parametrize("max_usd", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_makes_no_sense_is_refused(max_usd: float) -> None:
    with pytest.raises(ConfigError, match=r"expected dollars, more than 0|not enough"):
        with_training_budget(config(), max_usd)
    with pytest.raises(ConfigError, match="expected dollars, more than 0"):
        with_endpoint_budget(config(), max_usd)


def test_a_plan_holds_every_request() -> None:
    made = plan_deployment(config(), "policy", look=False).to_dict()
    assert [request["operation"] for request in made["requests"]] == [
        "CreateModel",
        "CreateEndpointConfig",
        "CreateSchedule",
        "CreateEndpoint",
    ]
    assert json.loads(json.dumps(made))["cost"]["at_most"] == pytest.approx(8 * 0.23)
