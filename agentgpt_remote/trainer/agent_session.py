"""What learns and acts for the agents of one behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from agentgpt_remote.agents import Behavior
from agentgpt_remote.errors import ConnectionLost
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.trainer.agent_streams import AgentStreams
from agentgpt_remote.trainer.collector import Collector
from agentgpt_remote.trainer.compatibility import check_compatible
from agentgpt_remote.trainer.exploration import Explorer
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.lanes import Lane
from agentgpt_remote.trainer.recovery import AbsentLane
from agentgpt_remote.trainer.session import TrainingSession

_SEEDS_APART = 10_007


class BehaviorSession(TrainingSession):
    """Actor, critic and streams of one behaviour; all its agents, in all environments, share them.

    Args:
        behavior: of the agents.
        hyperparameters: of the run, with the rule decided and the device resolved; the rest is resolved here, since it
            follows from the behaviour's actions and the number of its agents.
        streams: agents per lane that may live at once, by the lane's name.
        index: number of the behaviour in the run.

    Attributes:
        behavior: as above.

    Raises:
        UnsupportedSpace: a space that can't be learned from.
        ConfigError: hyperparameters that can't work together, or the streams would take too much memory.
    """

    def __init__(
        self, behavior: Behavior, hyperparameters: Hyperparameters, streams: Mapping[str, int], index: int
    ) -> None:
        self.behavior = behavior
        observation_space, action_space = behavior.observation_space, behavior.action_space
        actions = ActionFeatures(action_space)
        continuous = bool(actions.numeric_width) and not (actions.binary_width or actions.category_sizes)
        total = sum(streams.values())
        hp = hyperparameters.resolve(hyperparameters.device, continuous=continuous, num_agents=total)
        hp = replace(hp, seed=(hp.seed + _SEEDS_APART * index) % 2**31)
        check_compatible(hp, observation_space, action_space, total)
        rooms = [AbsentLane(name=name, num_agents=count, open=_no_lane) for name, count in streams.items() if count]
        super().__init__(hp, [], observation_space, action_space, absent=rooms)

    @property
    def agents(self) -> AgentStreams:
        """The collector: which agent has which stream."""
        return cast(AgentStreams, self.collector)

    def _make_collector(self, lanes: list[Lane], absent: Sequence[AbsentLane], explorer: Explorer) -> Collector:
        hp = self.hp
        streams = AgentStreams(
            self.behavior, self.acting, self.store, self.rewards, explorer, hp.max_steps, hp.nonfinite
        )
        return cast(Collector, streams)  # it has what a session needs of one

    def start(self) -> None:
        """Do nothing: agents begin when they appear."""

    @property
    def due(self) -> bool:
        """Whether there is enough to learn from, or no room for more in the fullest stream."""
        new = self.store.position - self.store.trained
        room = self.store.capacity - self._context - 2
        return int(new.sum()) >= self.rollout_tokens() or int(new.max()) >= room

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; agents begin new episodes."""
        super().load_state_dict(state)
        self.agents.restart()


def _no_lane() -> Lane:
    raise ConnectionLost("a behaviour has no lanes of its own")
