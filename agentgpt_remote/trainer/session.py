"""Everything that learns and acts in one run, built from hyperparameters and lanes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.model import PolicyModel, ValueModel
from agentgpt_remote.trainer.collector import Collector
from agentgpt_remote.trainer.exploration import Explorer, add_parameter_noise
from agentgpt_remote.trainer.hyperparameters import Hyperparameters, required
from agentgpt_remote.trainer.lag import PolicyLag
from agentgpt_remote.trainer.lanes import Lane
from agentgpt_remote.trainer.normalization import REWARD_CLIP, RewardScaler, RunningMoments
from agentgpt_remote.trainer.offpolicy import OffPolicy, make_critic
from agentgpt_remote.trainer.ppo import PPO
from agentgpt_remote.trainer.rank_state import common_part, joined, own_part
from agentgpt_remote.trainer.ranks import ALONE, Ranks
from agentgpt_remote.trainer.recovery import AbsentLane
from agentgpt_remote.trainer.reporting import metrics_of_all_ranks
from agentgpt_remote.trainer.sampler import read_tokens
from agentgpt_remote.trainer.streams import StreamStore

_MAX_SEED = 2**31
_REFRESH_EVERY = 4
_MOST_AHEAD = 32  # how many even rollouts of a stream are held
logger = logging.getLogger("agentgpt_remote.trainer")


class BestPolicy:
    """Remembers the weights that had the best training return.

    Attributes:
        episode_return: mean return of the last 20 episodes at that time; None before there were as many.
        env_steps: environment steps at that time.
    """

    def __init__(self) -> None:
        self.episode_return: float | None = None
        self.env_steps = 0
        self._weights: dict[str, torch.Tensor] = {}

    def offer(self, episode_return: float, env_steps: int, model: PolicyModel) -> bool:
        """Take the weights if they are at least as good; return whether they are."""
        if self.episode_return is not None and episode_return < self.episode_return:
            return False
        self.episode_return, self.env_steps = episode_return, env_steps
        self._weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        return True

    def preferred(self, model: PolicyModel, returns: list[float]) -> PolicyModel:
        """Return the model itself, or a copy with the best weights where the last episodes were clearly worse.

        Clearly is more than one standard error of the last episodes' mean: the latest weights have learned
        from more data, and a best mean is partly luck.
        """
        if self.episode_return is None or len(returns) < 2:
            return model
        error = float(np.std(returns, ddof=1)) / len(returns) ** 0.5
        if float(np.mean(returns)) >= self.episode_return - error:
            return model
        best = copy.deepcopy(model)
        best.load_state_dict(self._weights)
        return best

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and numbers."""
        return {"episode_return": self.episode_return, "env_steps": self.env_steps, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.episode_return, self.env_steps = state["episode_return"], int(state["env_steps"])
        self._weights = state["weights"]


class TrainingSession:
    """Actor, critic, streams, normalisers and the lanes that feed them.

    Args:
        hyperparameters: resolved.
        lanes: open lanes of the same environment.
        observation_space: of one agent.
        action_space: of one agent.
        absent: lanes that are not open yet; they have streams of their own already.
        ranks: that learn together; each has lanes and streams of its own.

    Raises:
        UnsupportedSpace: a space that can't be learned from.
        ConfigError: the streams would take too much memory.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        lanes: list[Lane],
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        absent: Sequence[AbsentLane] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        hp = self.hp = hyperparameters
        self.ranks = ranks
        self.device = torch.device(hp.device)
        config = hp.model_config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hp.seed)
            self.model = PolicyModel(observation_space, action_space, config).to(self.device)
            self.learner = self._make_learner(observation_space, action_space)
        if ranks.size > 1:  # the same seed may give other weights on another machine
            state = {"learner": self.learner.state_dict()}
            self.learner.load_state_dict(joined(ranks.first(common_part(state)), own_part(state))["learner"])
        listed: list[Lane | AbsentLane] = [*lanes, *absent]
        num_agents = sum(lane.num_agents for lane in listed)
        # Environments are seeded as those of one process would be that had the lanes of all ranks.
        self._first_agent = sum(ranks.share(num_agents)[: ranks.rank])
        self._rollout_tokens = max(int(hp.rollout_steps or 1), num_agents)
        # Room for four even rollouts, or for one that the smallest lane filled alone, with its context. Where lanes
        # are many that would be wide, so a lane that is far ahead ends the rollout.
        smallest = min(lane.num_agents for lane in listed)
        blocks = max(config.num_layers, self.learner.critic.config.num_layers) + 1
        self._context = 2 * blocks * config.max_input_states + 64
        held = min(4 * self._rollout_tokens // smallest, _MOST_AHEAD * self._rollout_tokens // num_agents)
        if hp.algorithm == "offpolicy":
            held = hp.buffer_size // num_agents
        self._max_untrained = None if hp.algorithm == "offpolicy" else held
        capacity = held + self._context
        actions = ActionFeatures(action_space)
        seen = self.model.observations
        sized_by = "buffer_size" if hp.algorithm == "offpolicy" else "rollout_steps"
        self.store = StreamStore(num_agents, capacity, seen.width, actions.width, seen.pixel_width, sized_by)
        self.rewards = RewardScaler(num_agents, hp.gamma_init)
        self.observations = RunningMoments(self.model.observations.numeric_width)
        self.generator = torch.Generator(self.device).manual_seed(ranks.seed(hp.seed))
        explorer = Explorer(
            hp.exploration, required(hp.learning_starts), actions.numeric_width, num_agents, self.generator
        )
        self.acting = copy.deepcopy(self.model) if explorer.parameter_noise else self.model
        self.collector = self._make_collector(lanes, absent, explorer)
        self.lag = PolicyLag()
        self.best = BestPolicy()
        self._since_refresh = 0
        self.resumes = 0
        self._resumed_lanes: list[dict[str, Any]] = []

    def _make_collector(self, lanes: list[Lane], absent: Sequence[AbsentLane], explorer: Explorer) -> Collector:
        hp = self.hp
        return Collector(
            lanes,
            self.acting,
            self.store,
            self.rewards,
            explorer,
            hp.max_steps,
            absent=absent,
            host_wait_s=hp.host_wait_s,
            max_untrained=self._max_untrained,
        )

    def _make_learner(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> PPO | OffPolicy:
        if self.hp.algorithm == "offpolicy":
            critic = make_critic(observation_space, action_space, self.hp).to(self.device)
            return OffPolicy(self.model, critic, self.hp, self.ranks.seed(self.hp.seed), self.ranks)
        values = ValueModel(observation_space, action_space, self.hp.critic_config()).to(self.device)
        return PPO(self.model, values, self.hp, self.ranks.seed(self.hp.seed), self.ranks)

    def start(self) -> None:
        """Begin in the environments, or go on in them; new episodes of a resumed run have other seeds than before."""
        seed = self.hp.seed + 1_000_003 * self.resumes + self._first_agent
        self.collector.start(seed % _MAX_SEED, self._resumed_lanes)
        self._resumed_lanes = []

    def update(self) -> dict[str, float]:
        """Learn from what is new, then renormalise and rebuild what acting remembers."""
        self.rewards.refresh(self.ranks)
        first, last = self.store.trained.copy(), self.store.position.copy()
        metrics = self.learner.update(
            self.store,
            reward_scale=self.rewards.scale() if self.hp.normalize_rewards else 1.0,
            reward_clip=REWARD_CLIP if self.hp.normalize_rewards else float("inf"),
            version=self.collector.version,
            progress=self.collector.env_steps / self.hp.max_steps,
        )
        if metrics:
            metrics |= self.lag.metrics(self.store, first, last, self.collector.version)
            self.collector.version += 1
            self.lag.renewed(self.collector.version, self.collector.env_steps)
        if self.hp.normalize_observations:
            self._normalise(first, last)
        self._refresh_acting()
        return metrics_of_all_ranks(metrics, self.ranks)

    def _refresh_acting(self) -> None:
        """Have the acting policy take over what was learned, from time to time where little is learned at a time."""
        self._since_refresh += 1
        if self.hp.algorithm == "offpolicy" and self._since_refresh < _REFRESH_EVERY:
            return
        self._since_refresh = 0
        if self.acting is not self.model:
            self.acting.load_state_dict(self.model.state_dict())
            progress = self.collector.env_steps / self.hp.max_steps
            add_parameter_noise(self.acting, self.collector.explorer.parameter_noise, progress, self.generator)
        self.rebuild_cache()

    def rebuild_cache(self) -> None:
        """Recompute what the acting policy remembers of the last tokens, with its weights of now."""
        config = self.model.config
        window = config.max_input_states
        count = max(1, -(-config.context_tokens // window)) * window
        streams = np.arange(self.store.num_streams)
        end = self.store.position + self.collector.in_flight()
        inputs, starts = read_tokens(self.store, streams, end - count, count, self.acting.encoder, self.device)
        with torch.inference_mode():
            self.acting.rebuild_cache(inputs, starts, self.collector.cache, slice(0, len(streams)))

    def _normalise(self, first: np.ndarray[Any, Any], last: np.ndarray[Any, Any]) -> None:
        width = self.observations.mean.size
        rows = [
            self.store.obs[stream, np.arange(first[stream], last[stream]) % self.store.capacity, :width]
            for stream in range(self.store.num_streams)
        ]
        self.observations.update(np.concatenate(rows), self.ranks)
        encoder = self.model.encoder
        encoder.obs_mean.copy_(torch.from_numpy(self.observations.mean))
        encoder.obs_scale.copy_(torch.from_numpy(self.observations.scale()))

    def rollout_tokens(self) -> int:
        """Return how many new tokens make an update."""
        return self._rollout_tokens

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the run goes on from, as tensors, numbers, texts, lists and dicts."""
        replay = -(-int(self.hp.checkpoint_replay or 0) // self.store.num_streams)
        return {
            "model": self._sizes(),
            "spaces": [repr(self.model.observation_space), repr(self.model.action_space)],
            "learner": self.learner.state_dict(),
            "rewards": self.rewards.state_dict(),
            "observations": self.observations.state_dict(),
            "generator": self.generator.get_state(),
            "best": self.best.state_dict(),
            "resumes": self.resumes,
            "lag": self.lag.state_dict(),
            "acting": {
                "since_refresh": self._since_refresh,
                "weights": None if self.acting is self.model else self.acting.state_dict(),
                **self.collector.explorer.state_dict(),
            },
            "collector": self.collector.state_dict(),
            "streams": self.store.state_dict(self._context, replay),
        }

    def _sizes(self) -> dict[str, Any]:
        """Return what a checkpoint's weights must agree with."""
        sizes = ("num_layers", "critic_num_layers", "d_model", "num_heads", "max_input_states")
        names = ("algorithm", "gpt_type", *sizes, "learn_gamma", "learn_lambda")
        return {name: getattr(self.hp, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, into a run that has not started.

        Raises:
            ConfigError: the checkpoint is of a model of other sizes, or of another environment.
        """
        saved = {"gpt_type": "llama", "learn_gamma": False, "learn_lambda": False, **state["model"]}
        for name, value in self._sizes().items():
            if saved.get(name) != value:
                raise ConfigError(
                    f"{name}={value!r}: the run to resume has {name}={saved.get(name)!r}; "
                    "leave it as it was, or start another run"
                )
        spaces_now = [repr(self.model.observation_space), repr(self.model.action_space)]
        if state["spaces"] != spaces_now:
            raise ConfigError(f"the run to resume has the spaces {state['spaces']}, the environment {spaces_now}")
        self.learner.load_state_dict(state["learner"])
        self.rewards.load_state_dict(state["rewards"])
        self.observations.load_state_dict(state["observations"])
        self.generator.set_state(state["generator"])
        self.best.load_state_dict(state["best"])
        self.resumes = int(state["resumes"]) + 1
        self.lag.load_state_dict(state["lag"])
        self._since_refresh = int(state["acting"]["since_refresh"])
        if self.acting is not self.model and state["acting"]["weights"] is not None:
            self.acting.load_state_dict(state["acting"]["weights"])
        self.collector.load_state_dict(state["collector"])
        if len(state["streams"]["position"]) == self.store.num_streams:
            self.store.load_state_dict(state["streams"])
            self.collector.explorer.load_state_dict(state["acting"])
            self._resumed_lanes = state["collector"]["lanes"]
        else:
            logger.warning(
                "the run had %d agents, now %d: it goes on with empty streams and new episodes",
                len(state["streams"]["position"]),
                self.store.num_streams,
            )
