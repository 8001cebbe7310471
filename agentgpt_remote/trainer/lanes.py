"""Lanes: vector environments that the trainer acts on, each at its own pace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from agentgpt_remote.errors import ConfigError, InvalidObservation, TrainingFailed
from agentgpt_remote.policy.features import ActionFeatures, Float32, ObservationFeatures
from agentgpt_remote.policy.images import UInt8
from agentgpt_remote.policy.masks import MASK_KEY, ActionMasks
from agentgpt_remote.trainer.env_replay import EpisodeRecorder
from agentgpt_remote.trainer.finite import MAX_REWARD, FiniteCheck, Nonfinite
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv, wait_ready

logger = logging.getLogger("agentgpt_remote.trainer")


class Observed(NamedTuple):
    """What n agents see, and what they may do.

    Attributes:
        vector: compact observations, float32 (n, width).
        pixels: bytes of their images, uint8 (n, P); None where the space has none.
        action_mask: bool (n, categories); None where nothing is masked.
    """

    vector: Float32
    pixels: UInt8 | None
    action_mask: NDArray[np.bool_] | None


class LaneStep(NamedTuple):
    """What one step of a lane returned, for its n agents.

    Attributes:
        obs: what the agents see.
        reward: float64 (n,).
        terminated: bool (n,).
        truncated: bool (n,).
    """

    obs: Observed
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


class Lane:
    """A vector environment under NEXT_STEP autoreset, stepped without waiting.

    Args:
        name: for messages, such as the host's name.
        envs: the vector environment; a RemoteVectorEnv steps on its host meanwhile, others in ``receive``.
        features: of the single observation space.
        timeout_s: seconds without a reply after which the lane counts as lost.
        nonfinite: what is done about numbers that are not finite.

    Attributes:
        steps: steps that were received.
        reopen: opens it again after it was lost; None where that can't be.

    Raises:
        ConfigError: the environment resets in another way.
    """

    def __init__(
        self,
        name: str,
        envs: VectorEnv[Any, Any, Any],
        features: ObservationFeatures,
        timeout_s: float,
        nonfinite: Nonfinite = "refuse",
    ) -> None:
        mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode != AutoresetMode.NEXT_STEP:
            raise ConfigError(f"{name}: autoreset_mode={mode}: expected AutoresetMode.NEXT_STEP to train on")
        self.name, self.envs, self.features, self.timeout_s = name, envs, features, timeout_s
        self.num_agents = envs.num_envs
        self.remote = envs if isinstance(envs, RemoteVectorEnv) else None
        self._actions: Any = None
        self._masks: ActionMasks | None = None
        self.steps = 0
        self.reopen: Callable[[], Lane] | None = None
        self._recorder = EpisodeRecorder.of(envs)
        self._check_obs = FiniteCheck(name, "observation", nonfinite)
        self._check_reward = FiniteCheck(name, "reward", nonfinite, MAX_REWARD)

    def send_reset(self, seed: int) -> None:
        """Start a reset of all environments; number i gets the seed ``seed + i``."""
        if self.remote is not None:
            self.remote.reset_async(seed=seed)
        else:
            self._actions = seed

    def receive_reset(self) -> Observed:
        """Return what the agents see after the reset that ``send_reset`` started.

        Raises:
            ConnectionLost: the host is gone.
            RemoteTimeout: it did not answer in time.
            RemoteEnvError: the environment raised there.
            TrainingFailed: an observation is not finite, or an action mask is wrong.
        """
        if self.remote is not None:
            observations, infos = self.remote.reset_wait(timeout_s=self.timeout_s)
        else:
            observations, infos = self.envs.reset(seed=self._actions)
            if self._recorder is not None:
                self._recorder.reset(self._actions)
        return self._encode(observations, infos, np.zeros(self.num_agents, np.bool_))

    def send(self, actions: Any) -> None:
        """Start a step with a batch of actions."""
        if self.remote is not None:
            self.remote.step_async(actions)
        else:
            self._actions = actions

    def receive(self) -> LaneStep:
        """Return the result of the step that ``send`` started.

        Raises:
            ConnectionLost: the host is gone.
            RemoteTimeout: it did not answer in time.
            RemoteEnvError: the environment raised there.
            TrainingFailed: an observation or a reward is not finite, or an action mask is wrong.
        """
        if self.remote is not None:
            result = self.remote.step_wait(timeout_s=self.timeout_s)
        else:
            if self._recorder is not None:
                self._recorder.before_step(self._actions)
            result = self.envs.step(self._actions)
        observations, reward, terminated, truncated, infos = result
        terminated, truncated = np.asarray(terminated), np.asarray(truncated)
        final = terminated | truncated
        if self._recorder is not None:
            self._recorder.after_step(final)
        self.steps += 1
        reward = self._check_reward(np.asarray(reward, np.float64), self.steps)
        return LaneStep(self._encode(observations, infos, final), reward, terminated, truncated)

    @property
    def connected(self) -> bool:
        """Whether ``receive`` returns at once when the lane is ready; not so while its connection is down."""
        return self.remote is None or self.remote.connected

    @property
    def clipped(self) -> int:
        """Numbers that were not finite and were replaced."""
        return self._check_obs.clipped + self._check_reward.clipped

    def state_dict(self) -> dict[str, Any]:
        """Return what the lane goes on from; ``episodes`` is None where its environments can only begin anew."""
        return {
            "steps": self.steps,
            "checks": [self._check_obs.state_dict(), self._check_reward.state_dict()],
            "episodes": None if self._recorder is None else self._recorder.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], obs: Observed) -> bool:
        """Bring the environments back to where they were; return whether that worked.

        Args:
            state: what ``state_dict`` returned.
            obs: what the agents saw when the environments were left.
        """
        self.steps = int(state["steps"])
        for check, saved in zip((self._check_obs, self._check_reward), state["checks"], strict=True):
            check.load_state_dict(saved)
        if state["episodes"] is None or self._recorder is None:
            return False
        return self._recorder.restore(state["episodes"], lambda batch: self._is_seen(batch, obs))

    def _is_seen(self, observations: Any, obs: Observed) -> bool:
        """Return whether batched observations are the very bits that were seen; masks follow from the same state."""
        pixels = self.features.pixels(observations)
        same = self._vector(observations).tobytes() == np.ascontiguousarray(obs.vector).tobytes()
        return same and (pixels is None or obs.pixels is None or np.array_equal(pixels, obs.pixels))

    def give_up_when(self, why: Callable[[], str | None]) -> None:
        """Have ``why`` asked for a reason not to wait any longer for a host whose connection is down."""
        if self.remote is not None:
            self.remote.give_up_when(why)

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def _encode(self, observations: Any, infos: dict[str, Any], final: NDArray[np.bool_]) -> Observed:
        mask = self._read_masks(infos, final) if MASK_KEY in infos else None
        return Observed(self._vector(observations), self.features.pixels(observations), mask)

    def _read_masks(self, infos: dict[str, Any], final: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if self._masks is None:
            self._masks = ActionMasks(ActionFeatures(self.envs.single_action_space))
        present = infos.get(f"_{MASK_KEY}")
        try:
            return self._masks.read(infos[MASK_KEY], range(self.num_agents), present=present, final=final)
        except InvalidObservation as error:
            raise TrainingFailed(f"{self.name}: {error}; fix the environment's info[{MASK_KEY!r}]") from error

    def _vector(self, observations: Any) -> Float32:
        return self._check_obs(self.features.encode(observations), self.steps)


def wait_for(lanes: Sequence[Lane], timeout_s: float) -> list[Lane]:
    """Return the lanes whose step result can be received now, waiting up to ``timeout_s`` for the first one."""
    local = [lane for lane in lanes if lane.remote is None]
    remote = {id(lane.remote): lane for lane in lanes if lane.remote is not None}
    envs = [lane.remote for lane in remote.values() if lane.remote is not None]
    if not envs:
        return local
    ready = wait_ready(envs, 0.0 if local else timeout_s)
    return local + [remote[id(env)] for env in ready]


def check_same_spaces(envs: Sequence[VectorEnv[Any, Any, Any]], names: Sequence[str]) -> None:
    """Check that all hosts offer the same environment.

    Raises:
        ConfigError: the spaces of two of them differ.
    """
    first = envs[0]
    for name, env in zip(names, envs, strict=True):
        for role in ("single_observation_space", "single_action_space"):
            if getattr(env, role) != getattr(first, role):
                raise ConfigError(
                    f"{name} has {role} {getattr(env, role)}, {names[0]} has {getattr(first, role)}: "
                    "expected every host to serve the same environment"
                )
