"""What the cloud costs: a dated table of prices, and the most that a request can cost."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from agentgpt_remote.cloud.config import MIN_EXPIRY_H, SageMakerConfig
from agentgpt_remote.cloud.requests import longest_s
from agentgpt_remote.errors import ConfigError

PRICES_VARIABLE = "AGENTGPT_PRICES"
# Paid for beside max_run: the image's download, the end after SIGTERM and the upload.
OVERHEAD_S = 720
_HOURS_PER_MONTH = 730
_LEAST_RUN_S = 60


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What something costs, in US dollars.

    Attributes:
        per_hour: while it runs.
        at_most: until it ends by itself.
        hours: until then.
        notes: where the prices come from, and what they leave out.
    """

    per_hour: float
    at_most: float
    hours: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return f"${self.per_hour:.3f} per hour, at most ${self.at_most:.2f} in {self.hours:.2f} hours"


@functools.cache
def _load(path: str | None) -> dict[str, Any]:
    try:
        text = (
            (resources.files("agentgpt_remote.cloud") / "prices.json").read_text(encoding="utf-8")
            if path is None
            else Path(path).read_text(encoding="utf-8")
        )
        prices: dict[str, Any] = json.loads(text)
        if not isinstance(prices["instances"], dict) or not isinstance(prices["region"], str):
            raise TypeError("instances must be an object and region a text")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the prices in {path} can't be read: {error!r}; expected the form of agentgpt_remote/cloud/prices.json"
        ) from error
    return prices


def price_table() -> dict[str, Any]:
    """Return the prices: the package's own, or those of the file in ``AGENTGPT_PRICES``.

    Raises:
        ConfigError: the file can't be read, or is of another form.
    """
    return _load(os.environ.get(PRICES_VARIABLE) or None)


def hourly_price(instance_type: str, region: str | None) -> tuple[float, str] | None:
    """Return a machine's price per hour and where it comes from; None where it is not in the table."""
    prices = price_table()
    price = prices["instances"].get(instance_type)
    if price is None:
        return None
    source = f"price of {instance_type} in {prices['region']}, {prices.get('date', 'undated')}"
    if region in (None, prices["region"]):
        return float(price), source
    factor = float(prices.get("other_regions_factor", 1.5))
    return float(price) * factor, f"{source}, times {factor:g} because {region} is not in the table"


def training_estimate(config: SageMakerConfig) -> Estimate | None:
    """Return what a training job costs; None where the price is not known."""
    found = hourly_price(config.instance_type, config.region)
    if found is None:
        return None
    price, source = found
    volume = config.volume_gb * float(price_table().get("volume_gb_month", 0.14)) / _HOURS_PER_MONTH
    per_hour = (price + volume) * config.instance_count
    hours = (longest_s(config) + OVERHEAD_S + config.keep_alive_s) / 3600
    notes = [source, f"with {config.volume_gb} GB of disk, without S3, logs and traffic"]
    if config.spot:
        notes.append("spot machines usually cost 30 to 70 % less; at most is at the full price for all of max_wait")
    return Estimate(per_hour=per_hour, at_most=per_hour * hours, hours=hours, notes=tuple(notes))


def endpoint_estimate(config: SageMakerConfig) -> Estimate | None:
    """Return what an endpoint costs until it expires; None where the price is not known."""
    found = hourly_price(config.endpoint_instance_type or config.instance_type, config.region)
    if found is None:
        return None
    price, source = found
    per_hour = price * (config.endpoint_instance_count or config.instance_count)
    return Estimate(
        per_hour=per_hour,
        at_most=per_hour * config.expiry_hours,
        hours=config.expiry_hours,
        notes=(source, "without S3, logs and traffic"),
    )


def with_training_budget(config: SageMakerConfig, max_usd: float) -> SageMakerConfig:
    """Return a configuration whose job ends, with a checkpoint, before it has cost so much.

    Raises:
        ConfigError: the price is not known, or the budget is not enough for a minute.
    """
    estimate = _known(training_estimate(config), config.instance_type, max_usd)
    seconds = int(max_usd / estimate.per_hour * 3600) - OVERHEAD_S - config.keep_alive_s
    if seconds < _LEAST_RUN_S:
        raise ConfigError(
            f"--max-usd {max_usd:g} is not enough: {config.instance_count} x {config.instance_type} cost "
            f"${estimate.per_hour:.2f} per hour, and starting and ending take {OVERHEAD_S // 60} minutes"
        )
    if not config.spot:
        return replace(config, max_run=min(config.max_run, seconds))
    longest = min(longest_s(config), seconds)
    return replace(config, max_run=min(config.max_run, longest), max_wait=longest)


def with_endpoint_budget(config: SageMakerConfig, max_usd: float) -> SageMakerConfig:
    """Return a configuration whose endpoint expires before it has cost so much.

    Raises:
        ConfigError: the price is not known, or the budget makes no sense.
    """
    instance_type = config.endpoint_instance_type or config.instance_type
    estimate = _known(endpoint_estimate(config), instance_type, max_usd)
    hours = min(config.expiry_hours, max_usd / estimate.per_hour)
    if hours < MIN_EXPIRY_H:
        raise ConfigError(
            f"--max-usd {max_usd:g} is not enough: the endpoint costs ${estimate.per_hour:.2f} per hour, and must be "
            f"there for {MIN_EXPIRY_H} hours at least"
        )
    return replace(config, expiry_hours=hours)


def _known(estimate: Estimate | None, instance_type: str, max_usd: float) -> Estimate:
    if not 0 < max_usd < float("inf"):
        raise ConfigError(f"--max-usd {max_usd!r}: expected dollars, more than 0")
    if estimate is None:
        raise ConfigError(
            f"the price of {instance_type} is not in the table of {price_table().get('date')}: --max-usd can't be "
            f"kept. Set {PRICES_VARIABLE} to a file with its price, or set max_run yourself"
        )
    return estimate
