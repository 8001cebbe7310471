"""Which rule a run learns by."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from agentgpt_remote.errors import AgentGPTError
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.lanes import Lane, wait_for

logger = logging.getLogger("agentgpt_remote.trainer")
PLENTIFUL_STEPS_PER_S = 500.0
_MEASURE_S = 0.5
_WAIT_S = 5.0


def choose_algorithm(hyperparameters: Hyperparameters, lanes: Sequence[Lane], *, continuous: bool) -> Hyperparameters:
    """Return the hyperparameters with "auto" decided, and say in the log what was chosen and why.

    On-policy learning is faster by the clock and takes more steps, so it is for purely discrete actions, where both
    take about as many, and where steps are plentiful.

    Args:
        hyperparameters: of the run.
        lanes: open, not reset; stepped at random for half a second where that decides.
        continuous: the action space has continuous columns only.
    """
    if hyperparameters.algorithm != "auto":
        return hyperparameters
    chosen: Literal["ppo", "offpolicy"] = "ppo"
    if not continuous:
        reason = "actions are not purely continuous"
    else:
        supply = measure_supply(lanes)
        chosen = "ppo" if supply > PLENTIFUL_STEPS_PER_S else "offpolicy"
        than = "more than" if chosen == "ppo" else "at most"
        reason = f"{supply:.0f} environment steps per second, {than} {PLENTIFUL_STEPS_PER_S:.0f}"
    logger.info("algorithm=%s chosen by auto: %s", chosen, reason)
    return replace(hyperparameters, algorithm=chosen)


def measure_supply(lanes: Sequence[Lane]) -> float:
    """Return how many environment steps per second the lanes take with random actions, all together."""
    began, steps = time.perf_counter(), 0
    stepping: list[Lane] = []
    for lane in lanes:
        try:
            lane.envs.reset(seed=0)
            _send(lane)
        except AgentGPTError as error:  # told when training meets it
            logger.debug("lane=%s not measured error=%r", lane.name, error)
            continue
        stepping.append(lane)
    while stepping and time.perf_counter() - began < _WAIT_S:
        again = time.perf_counter() - began < _MEASURE_S
        for lane in wait_for(stepping, 0.1):
            try:
                steps += _receive(lane)
                if again:
                    _send(lane)
            except AgentGPTError as error:
                logger.debug("lane=%s not measured error=%r", lane.name, error)
                stepping.remove(lane)
            else:
                if not again:
                    stepping.remove(lane)
    for lane in stepping:  # slower than that; the step that it still owes must not meet training
        with contextlib.suppress(AgentGPTError):  # told when training meets it
            _receive(lane, lane.timeout_s)
    return steps / (time.perf_counter() - began)


def _send(lane: Lane) -> None:
    """Start a step; an environment of this process takes it when the result is received."""
    if lane.remote is not None:
        lane.remote.step_async(lane.envs.action_space.sample())


def _receive(lane: Lane, timeout_s: float = _WAIT_S) -> int:
    """Return of how many steps a result was received."""
    if lane.remote is not None:
        lane.remote.step_wait(timeout_s=timeout_s)
    else:
        lane.envs.step(lane.envs.action_space.sample())
    return lane.num_agents
