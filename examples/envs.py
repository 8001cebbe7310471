"""Small environments that need memory, as documented Gymnasium environments.

Use them as sources from the repository's root: ``agentgpt train examples.envs:masked_cartpole``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

_POSITION_COLUMNS = [0, 2]


class MaskedVelocity(gym.ObservationWrapper[NDArray[np.float32], Any, NDArray[np.float32]]):
    """CartPole's observation without the velocities: the cart's position and the pole's angle.

    The policy has to work the velocities out from earlier observations.
    """

    def __init__(self, env: gym.Env[NDArray[np.float32], Any]) -> None:
        super().__init__(env)
        box = env.observation_space
        if not isinstance(box, spaces.Box) or box.shape != (4,):
            raise ValueError(f"observation_space={box}: expected CartPole's Box of 4 numbers")
        self.observation_space = spaces.Box(box.low[_POSITION_COLUMNS], box.high[_POSITION_COLUMNS], dtype=np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return columns 0 (position) and 2 (angle) of CartPole's observation."""
        return observation[_POSITION_COLUMNS]


def masked_cartpole(render_mode: str | None = None) -> gym.Env[NDArray[np.float32], Any]:
    """Return CartPole-v1 with the velocities masked; solved at a return of 475."""
    return MaskedVelocity(gym.make("CartPole-v1", render_mode=render_mode))


class MaskedSpin(gym.ObservationWrapper[NDArray[np.float32], Any, NDArray[np.float32]]):
    """Pendulum's observation without the angular velocity: the cosine and the sine of the angle."""

    def __init__(self, env: gym.Env[NDArray[np.float32], Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the first two columns of Pendulum's observation."""
        return observation[:2]


def masked_pendulum(render_mode: str | None = None) -> gym.Env[NDArray[np.float32], Any]:
    """Return Pendulum-v1 with the velocity masked; solved at a return of -250."""
    return MaskedSpin(gym.make("Pendulum-v1", render_mode=render_mode))


class TMaze(gym.Env[NDArray[np.float32], np.int64]):
    """A corridor that ends in a junction (Bakker 2001).

    The first observation shows whether the goal lies north or south of the junction; the corridor looks the
    same everywhere. At the junction the agent has to turn the way that it saw at the start.

    Observation: float32 of shape (3,): the hint (1 north, -1 south, 0 after the start), 1 in the corridor,
    1 at the junction. Actions: 0 east, 1 west, 2 north, 3 south. Reward: 1 for the right turn, which ends the
    episode, as does the wrong one with 0; each step that makes no progress costs 0.1. Truncated after
    ``4 * length`` steps. The best return is 1.

    Args:
        length: steps from the start to the junction.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - Gymnasium's declaration

    def __init__(self, length: int = 10, render_mode: str | None = None) -> None:
        if length < 1:
            raise ValueError(f"length={length}: expected at least 1")
        self.length, self.render_mode = length, render_mode
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(4)
        self._position = self._steps = 0
        self._hint = 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin at the west end with a new hint."""
        super().reset(seed=seed)
        self._position = self._steps = 0
        self._hint = int(self.np_random.integers(2)) * 2 - 1
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move one cell, or turn at the junction."""
        self._steps += 1
        truncated = self._steps >= 4 * self.length
        if self._position == self.length and action in (2, 3):
            turned = 1 if action == 2 else -1
            return self._observe(), float(turned == self._hint), True, False, {}
        if action == 0 and self._position < self.length:
            self._position += 1
            return self._observe(), 0.0, False, truncated, {}
        if action == 1 and self._position > 0:
            self._position -= 1
        return self._observe(), -0.1, False, truncated, {}

    def render(self) -> str | None:
        """Return the maze as text in mode "ansi"."""
        if self.render_mode != "ansi":
            return None
        cells = ["."] * (self.length + 1)
        cells[self._position] = "A"
        return "".join(cells) + ("^" if self._hint > 0 else "v")

    def _observe(self) -> NDArray[np.float32]:
        junction = self._position == self.length
        hint = self._hint if self._position == 0 and self._steps == 0 else 0
        return np.array([hint, not junction, junction], np.float32)


def t_maze(length: int = 10, render_mode: str | None = None) -> TMaze:
    """Return a T-Maze; solved at a return of 0.9."""
    return TMaze(length, render_mode)


class RepeatPrevious(gym.Env[np.int64, np.int64]):
    """Say which suit was shown ``k`` cards ago, in the manner of POPGym's RepeatPrevious (Morad et al. 2023).

    A shuffled deck of 52 cards is turned over card by card; only the suit is seen. From the card with index ``k`` on,
    each action is compared with the suit of the card ``k`` before the one that is shown: the right one pays
    ``1 / (52 - k)``, a wrong one costs as much. Before that nothing is paid. The episode ends with the deck.

    Observation and action: Discrete(4), a suit. The best return is 1, always naming the same suit returns about -0.5.
    With ``k=4`` this is POPGym's easy setting.

    Args:
        k: how many cards to look back.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - Gymnasium's declaration
    CARDS, SUITS = 52, 4

    def __init__(self, k: int = 4, render_mode: str | None = None) -> None:
        if not 1 <= k < self.CARDS:
            raise ValueError(f"k={k}: expected 1 to {self.CARDS - 1}")
        self.k, self.render_mode = k, render_mode
        self.observation_space = spaces.Discrete(self.SUITS)
        self.action_space = spaces.Discrete(self.SUITS)
        self._deck = np.arange(self.CARDS) % self.SUITS
        self._shown = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Shuffle and show the first card."""
        super().reset(seed=seed)
        self._deck = self.np_random.permutation(np.arange(self.CARDS) % self.SUITS)
        self._shown = 0
        return self._deck[0], {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Compare the action, and show the next card."""
        reward = 0.0
        if self._shown >= self.k:
            reward = (1.0 if action == self._deck[self._shown - self.k] else -1.0) / (self.CARDS - self.k)
        terminated = self._shown == self.CARDS - 1
        self._shown = min(self._shown + 1, self.CARDS - 1)
        return self._deck[self._shown], reward, terminated, False, {}

    def render(self) -> str | None:
        """Return the suits shown so far in mode "ansi"."""
        if self.render_mode != "ansi":
            return None
        return "".join("♣♦♥♠"[suit] for suit in self._deck[: self._shown + 1])


def repeat_previous(k: int = 4, render_mode: str | None = None) -> RepeatPrevious:
    """Return RepeatPrevious; solved at a return of 0.9."""
    return RepeatPrevious(k, render_mode)
