"""How far all ranks have come together, and how much of the rest is each one's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from agentgpt_remote.trainer.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Word:
    """What a rank tells the others when it has collected.

    Attributes:
        steps: environment steps that it took since the last update.
        agents: agents that it acts for.
        stop: it was asked to end the run.
        short: it has collected less than a rollout.
        failure: why it can't go on.
    """

    steps: int
    agents: int
    stop: bool = False
    short: bool = False
    failure: str | None = None


class Pace:
    """Environment steps of all ranks together.

    Args:
        ranks: that learn together.
        max_steps: of the run.

    Attributes:
        total: steps of all ranks when they last spoke.
        base: steps of all ranks when the last update began.
    """

    def __init__(self, ranks: Ranks, max_steps: int) -> None:
        self._ranks, self._max_steps = ranks, max_steps
        self.total = self.base = 0
        self._own = self._agents = 0
        self._share = max_steps

    def resume(self, total: int, base: int) -> None:
        """Go on from so many steps."""
        self.total, self.base = total, base

    def exchange(self, word: Word) -> list[Word]:
        """Return what all ranks say, and count their steps.

        Raises:
            RankLost: a rank has ended, or did not answer in time.
        """
        words = [Word(**told) for told in self._ranks.share(asdict(word))]
        self._own, self._agents = word.agents, sum(each.agents for each in words)
        self.total = self.base + sum(each.steps for each in words)
        self._divide()
        return words

    def advance(self) -> int:
        """Begin an update, and after it a rollout; return the steps of all ranks."""
        self.base = self.total
        self._divide()
        return self.total

    def _divide(self) -> None:
        """Give each rank as much of the steps that are left as it has of the agents."""
        left = self._max_steps - self.base
        self._share = left * self._own // self._agents if self._agents else left // self._ranks.size

    def enough(self, env_steps: int, agents: int) -> bool:
        """Return whether a rank has taken its share in this rollout.

        Args:
            env_steps: ``base`` and what it has taken since.
            agents: that it acts for: each may take one more step before this is asked again.
        """
        return env_steps - self.base + min(agents, self._max_steps) - 1 >= self._share

    @property
    def ended(self) -> bool:
        """Whether all ranks together have taken the run's steps."""
        return self.total + min(self._agents, self._max_steps) - 1 >= self._max_steps


def first_failure(words: Sequence[Word]) -> str | None:
    """Return why the first of the ranks that can't go on can't, or None."""
    failures = [f"rank {rank}: {word.failure}" for rank, word in enumerate(words) if word.failure is not None]
    return failures[0] if failures else None
