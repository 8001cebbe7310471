"""Play episodes with the policies of many agents."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentgpt_remote.agents import Turn
from agentgpt_remote.errors import ConfigError, ManyAgents
from agentgpt_remote.policy.behaviors import behavior_names
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.trainer.agent_hosts import default_envs, names_many_agents
from agentgpt_remote.trainer.evaluation import Deterministic, Evaluation, evaluate_source, summary
from agentgpt_remote.trainer.hosts import room_of
from agentgpt_remote.wrappers.offers import host_health
from agentgpt_remote.wrappers.remote_agents import RemoteAgents

_MAX_ENVS = 8
_STATUS_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class AgentEvaluation:
    """Returns of agents' episodes.

    Attributes:
        together: of the agents of all behaviours.
        behaviors: of each behaviour's.
    """

    together: Evaluation
    behaviors: dict[str, Evaluation]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        told = {name: each.to_dict() for name, each in self.behaviors.items()}
        return {**self.together.to_dict(), "behaviors": told}


@dataclass
class _Player:
    """The agents of one behaviour: who is in an episode that counts, and what it brought so far."""

    name: str
    policy: Any
    left: int
    counted: dict[str, tuple[float, int]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    steps: int = 0

    def act(self, turn: Turn) -> Any:
        """Take in a turn; return actions for those who need one, or None."""
        ended, acting = turn.ended, turn.acting
        for row, agent in enumerate(ended.agent_ids):
            self._add(agent, float(ended.rewards[row]))
            if agent in self.counted:
                total, length = self.counted.pop(agent)
                self.returns.append(total)
                self.lengths.append(length)
        gone = {agent for agent in ended.agent_ids if agent in self.known}
        for row, agent in enumerate(acting.agent_ids):
            if acting.begins[row]:
                gone |= {agent} & self.known
                self.counted.pop(agent, None)
                if self.left > 0:  # episodes count in the order in which they begin: short ones are not preferred
                    self.left -= 1
                    self.counted[agent] = 0.0, 0
            else:
                self._add(agent, float(acting.rewards[row]))
        self.known = (self.known - gone) | set(acting.agent_ids)
        if not acting.agent_ids:
            if gone:
                self.policy.terminate_agents(sorted(gone))
            return None
        masks = {} if acting.action_mask is None else {"action_masks": list(acting.action_mask)}
        return self.policy.select_action(list(acting.agent_ids), acting.observations, sorted(gone) or None, **masks)

    def _add(self, agent: str, reward: float) -> None:
        self.steps += 1
        if agent in self.counted:
            total, length = self.counted[agent]
            self.counted[agent] = total + reward, length + 1

    @property
    def done(self) -> bool:
        return self.left <= 0 and not self.counted


def evaluate_agents(
    policies: Mapping[str, Any],
    env: RemoteAgents,
    *,
    episodes: int = 20,
    seed: int | None = 0,
    deterministic: bool | None = None,
) -> AgentEvaluation:
    """Play until so many agents of each behaviour have ended an episode.

    Episodes count in the order in which they begin, and all of those are played to their end, so that short ones are
    not over-represented.

    Args:
        policies: GPTPolicies by behaviour; one without a name acts for all.
        env: environments that begin anew by themselves (``num_envs``).
        episodes: how many of each behaviour's agents.
        seed: of the environments; None takes entropy.
        deterministic: True takes the likeliest actions, False samples; None leaves the policies as they are.

    Raises:
        ConfigError: a behaviour has no policy, or ``episodes`` is less than 1.
    """
    if episodes < 1:
        raise ConfigError(f"episodes={episodes}: expected at least 1")
    players: dict[str, _Player] = {}
    with contextlib.ExitStack() as stack:
        for policy in {id(policy): policy for policy in policies.values()}.values():
            stack.enter_context(Deterministic(policy, deterministic))
        turns = env.reset(seed=seed)
        while True:
            actions = {}
            for name, turn in turns.items():
                if name not in players:
                    if not turn.acting.agent_ids and not turn.ended.agent_ids:
                        continue
                    players[name] = _Player(name, _policy_of(policies, name), episodes)
                chosen = players[name].act(turn)
                if chosen is not None:
                    actions[name] = chosen
            if players and all(player.done for player in players.values()):
                break
            turns = env.step(actions)
    told = {name: summary(player.returns, player.lengths, player.steps) for name, player in players.items()}
    everyone = list(players.values())
    together = summary(
        [one for player in everyone for one in player.returns],
        [one for player in everyone for one in player.lengths],
        sum(player.steps for player in everyone),
    )
    return AgentEvaluation(together=together, behaviors=told)


def _policy_of(policies: Mapping[str, Any], name: str) -> Any:
    found = policies.get(name, policies.get(""))
    if found is None:
        raise ConfigError(f"behaviour {name!r} has no policy: the bundle has those of {', '.join(map(repr, policies))}")
    return found


def evaluate_agents_of(
    policies: Mapping[str, Any],
    source: str,
    *,
    episodes: int = 20,
    seed: int | None = 0,
    deterministic: bool | None = None,
    token: str | None = None,
) -> AgentEvaluation:
    """Evaluate on a source, hosted by a process of its own, or on the host at a URL; see :func:`evaluate_agents`.

    Raises:
        HostUnreachable: nothing listens at the URL.
        RemoteEnvError: the environment could not be made, or raised.
        ConfigError: it has one agent, or a behaviour without a policy.
    """
    wanted = min(_MAX_ENVS, episodes)
    where: dict[str, Any] = {"source": source}
    if "://" in source:
        told = host_health(source)
        where = {"url": source, "token": token}
        wanted = min(default_envs(str(told.get("source", "")), wanted), room_of(told, wanted))
    else:
        wanted = default_envs(source, wanted)
    with RemoteAgents(**where, num_envs=wanted) as env:
        return evaluate_agents(policies, env, episodes=episodes, seed=seed, deterministic=deterministic)


def evaluate_any(
    source_of_policies: str,
    source: str,
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    policy_token: str | None = None,
    token: str | None = None,
) -> Evaluation | AgentEvaluation:
    """Evaluate a bundle or a policy server on a source or a URL, of one agent or of many.

    Args:
        source_of_policies: as for :class:`~agentgpt_remote.policy.gpt_policy.GPTPolicy`.
        source: where to act.
        episodes: how many.
        seed: of the environments and of sampling.
        deterministic: take the likeliest actions.
        policy_token: of the policy server.
        token: of the host.
    """
    options: dict[str, Any] = {"deterministic": deterministic, "seed": seed, "token": policy_token}
    told = host_health(source).get("source", "") if "://" in source else source
    if not names_many_agents(str(told)):
        # Of other sources only a host can tell how many agents they have.
        names = behavior_names(source_of_policies, policy_token, _STATUS_TIMEOUT_S)
        with contextlib.suppress(ManyAgents):
            if len(names) == 1:
                with GPTPolicy(
                    source_of_policies, deterministic=deterministic, seed=seed, token=policy_token
                ) as policy:
                    return evaluate_source(policy, source, episodes=episodes, seed=seed, token=token)
    policies = GPTPolicy.of_behaviors(source_of_policies, **options)
    with contextlib.ExitStack() as stack:
        for policy in policies.values():
            stack.enter_context(policy)
        return evaluate_agents_of(policies, source, episodes=episodes, seed=seed, token=token)
