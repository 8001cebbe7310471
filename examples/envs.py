"""Small environments, as documented Gymnasium environments: with memory, images, hybrid and masked actions.

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


class Catch(gym.Env[NDArray[np.uint8], np.int64]):
    """A ball falls through a picture and a bat at the bottom is to catch it.

    The ball starts in a random column of the top row and drifts by -1, 0 or 1 column per row, back from the
    walls. The drift is only seen in the difference of two frames.

    Observation: uint8 image of shape (24, 24, 1), a cell of the 8 x 8 board is 3 x 3 pixels: 0 empty, 255 the
    ball, 128 the bat, which is two cells wide. Actions: 0 left, 1 stay, 2 right. Reward: 1 for a catch and -1 for
    a miss at the end of the episode, after 7 steps; 0 before. Acting at random returns about -0.5. Solved at a
    mean return of 0.9 (19 of 20 balls).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - Gymnasium's declaration
    cells, pixels = 8, 3

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (self.pixels * self.cells,) * 2 + (1,), np.uint8)
        self.action_space = spaces.Discrete(3)
        self._row = self._column = self._drift = self._bat = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Drop a new ball."""
        super().reset(seed=seed)
        self._row, self._column = 0, int(self.np_random.integers(self.cells))
        self._drift = int(self.np_random.integers(-1, 2))
        self._bat = int(self.np_random.integers(self.cells - 1))
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the bat, then let the ball fall by one row."""
        self._bat = min(max(self._bat + int(action) - 1, 0), self.cells - 2)
        if not 0 <= self._column + self._drift < self.cells:
            self._drift = -self._drift
        self._row, self._column = self._row + 1, self._column + self._drift
        ended = self._row == self.cells - 1
        caught = self._column in (self._bat, self._bat + 1)
        return self._observe(), (1.0 if caught else -1.0) if ended else 0.0, ended, False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """Return the picture in grey in mode "rgb_array", uint8 of shape (24, 24, 3)."""
        return self._observe().repeat(3, axis=2) if self.render_mode == "rgb_array" else None

    def _observe(self) -> NDArray[np.uint8]:
        board = np.zeros((self.cells, self.cells), np.uint8)
        board[-1, self._bat : self._bat + 2] = 128
        board[self._row, self._column] = 255
        return board.repeat(self.pixels, axis=0).repeat(self.pixels, axis=1)[:, :, None]


def catch(render_mode: str | None = None) -> Catch:
    """Return the image game; solved at a return of 0.9."""
    return Catch(render_mode)


class Dials(gym.Env[NDArray[np.float32], dict[str, Any]]):
    """Two dials are to be turned to zero: which one, and by how much.

    Observation: float32 of shape (2,), where the dials stand, from -1 to 1. Action: a dict of ``dial``, Discrete(2),
    and ``turn``, a Box of shape (1,) from -1 to 1, which is added to that dial. Reward: how much nearer to zero
    all dials came, in parts of where they started, less 0.05 a step. The episode ends when every dial is within 0.25
    of zero and is truncated after 16 steps. Two exact turns return 0.9; acting at random returns about -0.4.
    Solved at a mean return of 0.7.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Dict(dial=spaces.Discrete(2), turn=spaces.Box(-1.0, 1.0, (1,), np.float32))
        self._dials = np.zeros(2)
        self._total, self._steps = 1.0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Turn every dial away from zero."""
        super().reset(seed=seed)
        self._dials = self.np_random.uniform(0.3, 1.0, 2) * self.np_random.choice([-1, 1], 2)
        self._total, self._steps = float(np.abs(self._dials).sum()), 0
        return self._dials.astype(np.float32), {}

    def step(self, action: dict[str, Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Turn one dial."""
        before = np.abs(self._dials).sum()
        dial = int(action["dial"])
        self._dials[dial] = np.clip(self._dials[dial] + float(action["turn"][0]), -1.0, 1.0)
        self._steps += 1
        reward = float(before - np.abs(self._dials).sum()) / self._total - 0.05
        ended = bool((np.abs(self._dials) < 0.25).all())
        return self._dials.astype(np.float32), reward, ended, self._steps >= 16 and not ended, {}


def dials(render_mode: str | None = None) -> Dials:
    """Return the task with hybrid actions; solved at a return of 0.7."""
    return Dials(render_mode)


class Doors(gym.Env[np.int64, np.int64]):
    """Rooms with eight doors each, most of them locked: the only ones to take are in the action mask.

    Observation: Discrete(8), the number that is written on the wall. Of the doors that are open, the one whose
    number is nearest to it (around the circle of eight; the wall's own number is always locked) leads on.
    Actions: Discrete(8), a door. ``info["action_mask"]``: bool array of shape (8,), the three that are open, one
    of them next to the wall's number; all locked at the end. A locked door is no move: it raises ValueError.
    Reward: 0.1 for the door that leads on. Ten rooms. Acting at random within the mask returns about
    0.33. Solved at a mean return of 0.95.
    """

    doors, rooms = 8, 10

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space, self.action_space = spaces.Discrete(self.doors), spaces.Discrete(self.doors)
        self._wall = self._room = self._right = 0
        self._open = np.zeros(self.doors, np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Enter the first room."""
        super().reset(seed=seed)
        self._room = 0
        self._enter()
        return np.int64(self._wall), {"action_mask": self._open.copy()}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Go through a door.

        Raises:
            ValueError: it is locked.
        """
        if not self._open[action]:
            raise ValueError(f"action={action}: door {action} is locked, expected one of {np.flatnonzero(self._open)}")
        reward = 0.1 if action == self._right else 0.0
        self._room += 1
        ended = self._room == self.rooms
        self._enter()
        if ended:
            self._open[:] = False
        return np.int64(self._wall), reward, ended, False, {"action_mask": self._open.copy()}

    def _enter(self) -> None:
        self._wall = int(self.np_random.integers(self.doors))
        side = int(self.np_random.choice([-1, 1]))
        self._right = (self._wall + side) % self.doors
        far = 2 + self.np_random.permutation(self.doors - 3)[:2]
        self._open[:] = False
        self._open[[self._right, *((self._wall + far) % self.doors)]] = True


def doors(render_mode: str | None = None) -> Doors:
    """Return the task with masked actions; solved at a return of 0.95."""
    return Doors(render_mode)
