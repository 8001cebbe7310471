"""An environment of many agents whose comings and goings are a script, and which knows whose action it must get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from agentgpt_remote.agents import Behavior, TurnRows, Turns, check_counts, rows_of

# What an agent's place does in a step: its agent acts, waits, ends, ends and begins anew under its id, or ends and is
# followed by another at once. Where nobody is there, all but waiting and ending let a new agent appear.
EVENTS = ("act", "wait", "end", "renew", "follow")
PLACES = {"even": (0, 1, 2), "odd": (3, 4)}


class ScriptedAgents:
    """Agents on five places; an action must be the secret that this very agent was told with its observation.

    An observation holds the agent's number, how many it has had, and the secret; the reward is the number of the
    observation that it is for.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as Gymnasium's
    render_mode = None

    def __init__(self) -> None:
        seen, acted = spaces.Box(-1e9, 1e9, (3,), np.float64), spaces.Box(-1, 1, (1,), np.float64)
        self.behaviors = {
            name: Behavior(name=name, observation_space=seen, action_space=acted) for name in ("even", "odd")
        }
        self.answered = 0
        self._script: list[list[str]] = []
        self._next = 0

    @property
    def is_over(self) -> bool:
        return False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Turns:
        self._random = np.random.default_rng(seed)
        if options is not None:
            self._script = options["script"]
        self._time = 0
        self._agents: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._asked: dict[str, list[tuple[int, float]]] = {}
        return self._advance(["act"] * 5)

    def step(self, actions: Mapping[str, Any]) -> Turns:
        check_counts(self.behaviors, {name: [str(one) for one, _ in self._asked[name]] for name in PLACES}, actions)
        for name, asked in self._asked.items():
            for (number, secret), action in zip(asked, rows_of(actions[name]) if asked else [], strict=True):
                if float(action[0]) != secret:
                    raise AssertionError(f"agent {number} of {name} got the action of another")
                self.answered += 1
        self._time += 1
        return self._advance(self._script[(self._time - 1) % len(self._script)])

    def _advance(self, events: list[str]) -> Turns:
        rows = {name: TurnRows(behavior) for name, behavior in self.behaviors.items()}
        self._asked = {name: [] for name in PLACES}
        for name, places in PLACES.items():
            for place in places:
                self._play(rows[name], place, events[place])
        # Not in the order of places or numbers: nothing may rest on one.
        return {name: item.turn() for name, item in rows.items()}

    def _play(self, rows: TurnRows, place: int, event: str) -> None:
        number = self._agents.get(place)
        begins = number is None
        if number is None:
            if event in ("wait", "end"):
                return
            number = self._appear(place)
        elif event in ("end", "renew", "follow"):
            obs, _ = self._observe(number)
            rows.end(f"a{number}", obs, obs[1] - 1.0, event == "end", event != "end", {})
            begins = True
            if event == "end":
                del self._agents[place]
                return
            if event == "follow":
                number = self._appear(place)
            self._seen[number] = 0
        elif event == "wait":
            return
        obs, secret = self._observe(number)
        rows.act(f"a{number}", obs, 0.0 if begins else obs[1] - 1.0, begins, None, {})
        self._asked[rows.behavior.name].append((number, secret))

    def _appear(self, place: int) -> int:
        self._next += 1
        self._agents[place] = self._next
        self._seen[self._next] = 0
        return self._next

    def _observe(self, number: int) -> tuple[Any, float]:
        self._seen[number] += 1
        secret = float(self._random.uniform(-1, 1))
        return np.array([number, self._seen[number], secret]), secret

    def render(self) -> None:
        return None

    def close(self) -> None:
        return None


def echo(turns: Turns) -> dict[str, Any]:
    """Return the right actions."""
    return {name: turn.acting.observations[:, 2:3].copy() for name, turn in turns.items() if turn.acting.agent_ids}
