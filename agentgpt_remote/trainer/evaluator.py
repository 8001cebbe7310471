"""Greedy returns while training goes on, on environments beside those that are trained on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from agentgpt_remote.errors import AgentGPTError
from agentgpt_remote.policy.agent_table import AgentTable
from agentgpt_remote.policy.engine import PolicyEngine
from agentgpt_remote.policy.masks import ActionMasks
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.trainer.evaluation import MAX_PARALLEL, Evaluation, evaluate
from agentgpt_remote.trainer.hosts import offered_envs
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.lanes import Lane
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv

logger = logging.getLogger("agentgpt_remote.trainer")
_SEED = 2_000_003
_CONNECT_TIMEOUT_S = 5.0
_REPLY_TIMEOUT_S = 10.0
_MAX_DECISIONS = 20_000  # of an evaluation, or as many as there are between two of them


class _GivenUp(Exception):
    """The evaluation takes too long, or training is being stopped."""


class GreedyPolicy:
    """The likeliest actions of a model that is being trained; reads its weights and nothing else.

    Args:
        model: the actor.
        max_decisions: after so many the evaluation is given up.
        should_stop: asked at every step.
    """

    def __init__(
        self, model: PolicyModel, *, max_decisions: int | None = None, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._table = AgentTable(PolicyEngine(model), seed=0)
        self._masks = ActionMasks(model.actions)
        self._left, self._should_stop = max_decisions, should_stop

    def select_action(
        self,
        agent_ids: Sequence[str],
        observations: Any,
        terminated_agent_ids: Sequence[str] | None = None,
        *,
        action_masks: Any = None,
    ) -> Any:
        """Return a batch of actions, one row per agent id, of those that the masks allow."""
        if self._left is not None:
            self._left -= len(agent_ids)
        if self._should_stop() or (self._left is not None and self._left < 0):
            raise _GivenUp
        rows = None if action_masks is None else self._masks.read(action_masks, agent_ids)
        return self._table.act(tuple(agent_ids), observations, tuple(terminated_agent_ids or ()), True, rows)


class Evaluator:
    """Plays greedy episodes every ``eval_interval_steps`` environment steps of training.

    It opens sessions of its own on the hosts that are trained on, for as long as an evaluation takes, and draws
    no random number of the run: training goes on as if it had not been there. Its steps count nowhere.

    Args:
        model: the actor.
        lanes: of the run.
        hyperparameters: resolved.
        env_steps: environment steps so far, those of a run that is resumed.
        should_stop: whether training is being stopped.
    """

    def __init__(
        self,
        model: PolicyModel,
        lanes: Sequence[Lane],
        hyperparameters: Hyperparameters,
        *,
        env_steps: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model, self._hp, self._should_stop = model, hyperparameters, should_stop
        self._interval = hyperparameters.eval_interval_steps or 0
        self._rounds = env_steps // self._interval if self._interval else 0
        self._max_decisions = max(self._interval, _MAX_DECISIONS)
        self._hosts = {
            (host.url, host.token): lane.name for lane in lanes if lane.remote for host in lane.remote.shareable()
        }
        self._explained = False
        if self._interval and not self._hosts:
            logger.info("greedy evaluation is off: environments of this process can't be opened a second time")

    def due(self, env_steps: int) -> bool:
        """Return whether an interval has ended since the last evaluation."""
        return bool(self._interval and self._hosts) and env_steps // self._interval > self._rounds

    def metrics(self, env_steps: int, lost: Collection[str] = ()) -> dict[str, float | None]:
        """Evaluate where it is time to.

        Args:
            env_steps: environment steps of training so far.
            lost: names of lanes whose hosts are not asked.

        Returns:
            ``rollout/greedy_return``, ``rollout/greedy_length`` and ``time/eval_s``; empty between evaluations
            and where no host has an environment to spare.
        """
        if not self.due(env_steps):
            return {}
        self._rounds = env_steps // self._interval
        began = time.perf_counter()
        reasons = []
        for (url, token), lane in self._hosts.items():
            if lane in lost:
                continue
            try:
                result = self._evaluate(url, token)
            except AgentGPTError as error:
                reasons.append(f"{url}: {error}")
                continue
            except _GivenUp:
                reasons.append(f"it would take more than {self._max_decisions} steps")
                break
            return {
                "rollout/greedy_return": result.mean,
                "rollout/greedy_length": result.episode_length,
                "time/eval_s": time.perf_counter() - began,
            }
        if reasons and not self._explained and not self._should_stop():
            self._explained = True
            logger.warning(
                "no greedy evaluation after %d env steps: %s (eval_interval_steps=0 turns it off)",
                env_steps,
                "; ".join(reasons),
            )
        return {}

    def _evaluate(self, url: str, token: str | None) -> Evaluation:
        hp = self._hp
        episodes = hp.eval_episodes
        wanted = min(episodes, MAX_PARALLEL)
        envs = RemoteVectorEnv(
            num_envs=min(wanted, offered_envs(url, wanted, token)),
            url=url,
            token=token,
            connect_timeout_s=_CONNECT_TIMEOUT_S,
            request_timeout_s=min(hp.step_timeout_s, _REPLY_TIMEOUT_S),
            resume_window_s=0.0,
            **hp.env_kwargs,
        )
        with envs:
            policy = GreedyPolicy(self._model, max_decisions=self._max_decisions, should_stop=self._should_stop)
            return evaluate(policy, envs, episodes=episodes, seed=(hp.seed + _SEED) % 2**31)
