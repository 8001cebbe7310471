"""Everything that learns and acts in one run, built from hyperparameters and lanes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.model import PolicyModel, ValueModel
from agentgpt_remote.trainer.collector import Collector
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.lanes import Lane
from agentgpt_remote.trainer.normalization import REWARD_CLIP, RewardScaler, RunningMoments
from agentgpt_remote.trainer.ppo import PPO
from agentgpt_remote.trainer.sampler import read_tokens
from agentgpt_remote.trainer.streams import StreamStore

_MAX_SEED = 2**31


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
    ) -> None:
        hp = self.hp = hyperparameters
        self.device = torch.device(hp.device)
        config = hp.model_config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hp.seed)
            self.model = PolicyModel(observation_space, action_space, config).to(self.device)
            critic = ValueModel(observation_space, action_space, hp.critic_config()).to(self.device)
        num_agents = sum(lane.num_agents for lane in lanes)
        self._rollout_tokens = max(int(hp.rollout_steps or 1), num_agents)
        # Room for four even rollouts, or for one that the smallest lane filled alone, with its context.
        smallest = min(lane.num_agents for lane in lanes)
        blocks = max(config.num_layers, critic.config.num_layers) + 1
        capacity = 4 * self._rollout_tokens // smallest + 2 * blocks * config.max_input_states + 64
        actions = ActionFeatures(action_space)
        seen = self.model.observations
        self.store = StreamStore(num_agents, capacity, seen.width, actions.width, seen.pixel_width)
        self.rewards = RewardScaler(num_agents, hp.gamma_init)
        self.observations = RunningMoments(self.model.observations.numeric_width)
        self.generator = torch.Generator(self.device).manual_seed(hp.seed)
        self.collector = Collector(lanes, self.model, self.store, self.rewards, self.generator)
        self.learner = PPO(self.model, critic, hp, hp.seed)
        self.best = BestPolicy()
        self.resumes = 0

    def start(self) -> None:
        """Reset the environments; a resumed run continues with other seeds than it began with."""
        self.collector.start((self.hp.seed + 1_000_003 * self.resumes) % _MAX_SEED)

    def update(self) -> dict[str, float]:
        """Learn from what is new, then renormalise and rebuild what acting remembers."""
        self.rewards.refresh()
        first, last = self.store.trained.copy(), self.store.position.copy()
        metrics = self.learner.update(
            self.store,
            reward_scale=self.rewards.scale() if self.hp.normalize_rewards else 1.0,
            reward_clip=REWARD_CLIP if self.hp.normalize_rewards else float("inf"),
            version=self.collector.version,
            progress=self.collector.env_steps / self.hp.max_steps,
        )
        self.collector.version += 1
        if self.hp.normalize_observations:
            self._normalise(first, last)
        self.rebuild_cache()
        return metrics

    def rebuild_cache(self) -> None:
        """Recompute what the acting policy remembers of the last tokens, with its weights of now."""
        config = self.model.config
        window = config.max_input_states
        count = max(1, -(-config.context_tokens // window)) * window
        streams = np.arange(self.store.num_streams)
        end = self.store.position + self.collector.in_flight()
        inputs, starts = read_tokens(self.store, streams, end - count, count, self.model.encoder, self.device)
        with torch.inference_mode():
            self.model.rebuild_cache(inputs, starts, self.collector.cache, slice(0, len(streams)))

    def _normalise(self, first: np.ndarray[Any, Any], last: np.ndarray[Any, Any]) -> None:
        width = self.observations.mean.size
        rows = [
            self.store.obs[stream, np.arange(first[stream], last[stream]) % self.store.capacity, :width]
            for stream in range(self.store.num_streams)
        ]
        self.observations.update(np.concatenate(rows))
        encoder = self.model.encoder
        encoder.obs_mean.copy_(torch.from_numpy(self.observations.mean))
        encoder.obs_scale.copy_(torch.from_numpy(self.observations.scale()))

    def rollout_tokens(self) -> int:
        """Return how many new tokens make an update."""
        return self._rollout_tokens

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the run goes on from, as tensors, numbers, texts, lists and dicts."""
        episodes = self.collector.episodes
        return {
            "model": self._sizes(),
            "spaces": [repr(self.model.observation_space), repr(self.model.action_space)],
            "learner": self.learner.state_dict(),
            "rewards": self.rewards.moments.state_dict(),
            "observations": self.observations.state_dict(),
            "generator": self.generator.get_state(),
            "best": self.best.state_dict(),
            "version": self.collector.version,
            "resumes": self.resumes,
            "episodes": {
                "count": episodes.count,
                "returns": list(episodes.returns),
                "lengths": list(episodes.lengths),
            },
        }

    def _sizes(self) -> dict[str, Any]:
        """Return what a checkpoint's weights must agree with."""
        names = ("num_layers", "critic_num_layers", "d_model", "num_heads", "max_input_states", "gpt_type")
        return {name: getattr(self.hp, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, into a run that has not started.

        Raises:
            ConfigError: the checkpoint is of a model of other sizes, or of another environment.
        """
        saved = {"gpt_type": "llama", **state["model"]}
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
        self.rewards.moments.load_state_dict(state["rewards"])
        self.observations.load_state_dict(state["observations"])
        self.generator.set_state(state["generator"])
        self.best.load_state_dict(state["best"])
        self.resumes = int(state["resumes"]) + 1
        self.collector.version = int(state["version"])
        self.collector.env_steps = int(state["env_steps"])
        episodes = self.collector.episodes
        episodes.count = int(state["episodes"]["count"])
        episodes.returns.extend(state["episodes"]["returns"])
        episodes.lengths.extend(state["episodes"]["lengths"])
