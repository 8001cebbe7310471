"""Acting for many agents in many environments, each at its own pace."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping

from agentgpt_remote.agents import Behavior, Turn, Turns
from agentgpt_remote.errors import AgentGPTError, RemoteEnvError, RemoteTimeout, TrainingFailed
from agentgpt_remote.trainer.agent_lanes import LOSSES, AgentLane, AgentRecovery, wait_for
from agentgpt_remote.trainer.agent_session import BehaviorSession
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.watching import HostWatch

logger = logging.getLogger("agentgpt_remote.trainer")
_POLL_S = 0.5
_MAX_SEED = 2**31


class AgentCollector:
    """Acts in whichever lane has answered, for the agents of all behaviours.

    Args:
        lanes: at least one of them is open.
        hyperparameters: of the run, with the rule decided and the device resolved.
        should_stop: whether the run is being ended.

    Attributes:
        sessions: what learns, by behaviour; one is added when its first agent appears.
        env_steps: decisions of agents whose reward has arrived, in the whole run.
        waiting_states: what a checkpoint holds of behaviours that have not appeared yet.
        times: seconds spent waiting for environments ("env_s") and acting ("act_s").
        watch: counts what each host does.
    """

    def __init__(
        self, lanes: list[AgentLane], hyperparameters: Hyperparameters, should_stop: Callable[[], bool]
    ) -> None:
        self.lanes, self.hp, self._should_stop = lanes, hyperparameters, should_stop
        self.sessions: dict[str, BehaviorSession] = {}
        self.waiting_states: dict[str, dict[str, object]] = {}
        self.env_steps = 0
        self.times = {"env_s": 0.0, "act_s": 0.0}
        self.watch = HostWatch()
        self._recovery = AgentRecovery(hyperparameters.seed)
        self._first: list[tuple[AgentLane, Turns]] = []
        self._last_error: AgentGPTError | None = None
        self._alone_since: float | None = None

    @property
    def num_agents(self) -> int:
        """Agents that live."""
        return sum(session.agents.num_agents for session in self.sessions.values())

    @property
    def num_lanes(self) -> int:
        """Lanes that are acted on."""
        return sum(lane.env is not None for lane in self.lanes)

    @property
    def num_away(self) -> int:
        """Lanes whose hosts are awaited."""
        return len(self._recovery.away)

    def reset(self, seed: int) -> None:
        """Reset every lane that is open, and make what learns for the behaviours that are there.

        Args:
            seed: of the first environment; the others have the next ones.

        Raises:
            TrainingFailed: no lane could be reset.
            UnsupportedSpace: a space that can't be learned from.
            ConfigError: hyperparameters that can't work together.
        """
        waiting = []
        for lane in self.lanes:
            if lane.env is not None:
                with self._guarded(lane):
                    self._send_reset(lane, seed)
                waiting.append(lane)
            else:
                self._recovery.reopen(lane)
            seed = (seed + lane.size) % _MAX_SEED
        deadline = time.monotonic() + self.hp.step_timeout_s
        while any(lane.sent_at is not None for lane in waiting) and not self._should_stop():
            for lane in wait_for(waiting, _POLL_S):
                with self._guarded(lane):
                    self._first.append((lane, self._receive(lane)))
            if time.monotonic() > deadline:
                for lane in waiting:
                    if lane.sent_at is not None:
                        self._drop(lane, RemoteTimeout(f"{lane.name} has not answered to the first reset"))
        if not self._first and not self._should_stop():
            raise TrainingFailed(f"no environment could be reset. Last error: {self._last_error}")
        names = dict.fromkeys(name for _, turns in self._first for name in turns)
        for name in names:
            self._add_session(name, [turns for _, turns in self._first])

    def _send_reset(self, lane: AgentLane, seed: int) -> None:
        lane.session.reset_async(seed=seed)
        lane.sent_at = time.perf_counter()

    def _receive(self, lane: AgentLane) -> Turns:
        turns = lane.session.receive(self.hp.step_timeout_s)
        lane.sent_at = None
        return turns

    def _add_session(self, name: str, turns: list[Turns]) -> BehaviorSession:
        behavior = self._behavior(name)
        count = self._streams_each(behavior, turns)
        session = BehaviorSession(behavior, self.hp, {lane.name: count for lane in self.lanes}, len(self.sessions))
        state = self.waiting_states.pop(name, None)
        if state is not None:
            session.load_state_dict(state)
        session.agents.env_steps = self.env_steps
        self.sessions[name] = session
        logger.info("behaviour=%s streams=%d", name, session.store.num_streams)
        return session

    def _behavior(self, name: str) -> Behavior:
        return next(
            lane.env.behaviors[name] for lane in self.lanes if lane.env is not None and name in lane.env.behaviors
        )

    def _streams_each(self, behavior: Behavior, turns: list[Turns]) -> int:
        """Return how many agents of a behaviour may live at once in one lane."""
        if self.hp.max_agents is not None:
            return self.hp.max_agents
        if behavior.agent_ids:
            return len(behavior.agent_ids)
        seen = max(len(each[behavior.name].acting.agent_ids) if behavior.name in each else 0 for each in turns)
        return max(2, math.ceil(1.5 * seen))

    def begin(self) -> None:
        """Act in the lanes that were reset."""
        first, self._first = self._first, []
        for lane, turns in first:
            self._join(lane, turns)

    def _join(self, lane: AgentLane, turns: Turns) -> None:
        self.watch.joined(lane.name, sum(len(turn.acting.agent_ids) for turn in turns.values()))
        with self._guarded(lane):
            self._take(lane, turns)

    def collect(self) -> None:
        """Act until a behaviour has enough to learn from, or the run is to end.

        Raises:
            TrainingFailed: no lane is left, or an environment told a number that is not finite.
        """
        while not self._should_stop() and not self.over and not any(one.due for one in self.sessions.values()):
            began = time.perf_counter()
            acted = self.times["act_s"]
            for lane in wait_for(self.lanes, _POLL_S):
                with self._guarded(lane):
                    self._take(lane, self._receive_step(lane))
            for lane in self.lanes:
                if lane.sent_at is not None and time.perf_counter() - lane.sent_at > self.hp.step_timeout_s:
                    self._drop(lane, RemoteTimeout(f"no answer for {self.hp.step_timeout_s:g} s"))
            for lane, turns in self._recovery.take(0.0 if self.num_lanes else _POLL_S):
                logger.info("lane=%s joined", lane.name)
                self._join(lane, turns)
            self.times["env_s"] += time.perf_counter() - began - (self.times["act_s"] - acted)
            self._check_left()

    @property
    def over(self) -> bool:
        """Whether all steps of the run were taken."""
        return self.env_steps >= self.hp.max_steps

    def _receive_step(self, lane: AgentLane) -> Turns:
        sent_at = lane.sent_at
        turns = self._receive(lane)
        if sent_at is not None:
            taken = sum(len(turn.acting.agent_ids) + len(turn.ended.agent_ids) for turn in turns.values())
            self.watch.stepped(lane.name, taken, time.perf_counter() - sent_at, lane.session.host_step_s)
        return turns

    def _take(self, lane: AgentLane, turns: Turns) -> None:
        """Take in what a step brought, and act for those who need an action.

        Both at once: an agent's stream may be another's after the next lane.
        """
        for name, turn in turns.items():
            session = self.sessions.get(name)
            if session is None:
                if not _has_agents(turn):
                    continue
                session = self._add_session(name, [turns])
            self.env_steps += session.agents.take(lane.name, turn)
        began = time.perf_counter()
        actions = {}
        for name, session in self.sessions.items():
            session.agents.env_steps = self.env_steps
            batch = session.agents.act(lane.name)
            if batch is not None:
                actions[name] = batch
        lane.session.step_async(actions)
        lane.sent_at = time.perf_counter()
        self.times["act_s"] += lane.sent_at - began

    @contextlib.contextmanager
    def _guarded(self, lane: AgentLane) -> Iterator[None]:
        """Drop a lane where the block loses it."""
        try:
            yield
        except (*LOSSES, RemoteEnvError) as error:
            self._drop(lane, error)

    def _drop(self, lane: AgentLane, error: AgentGPTError) -> None:
        self._last_error = error
        logger.warning("lane=%s dropped: %s", lane.name, error)
        self.watch.left(lane.name)
        for session in self.sessions.values():
            session.agents.drop(lane.name)
        lane.sent_at = None
        if isinstance(error, RemoteEnvError):  # it would do so again
            lane.close()
            lane.env = None
        else:
            self._recovery.reopen(lane)

    def _check_left(self) -> None:
        if self.num_lanes or self._should_stop():
            self._alone_since = None
            return
        now = time.monotonic()
        if self._alone_since is None:
            self._alone_since = now
            if self._recovery.away and self.hp.host_wait_s:
                logger.warning("no environment is left: waiting up to %g s for one to return", self.hp.host_wait_s)
        if not self._recovery.away or now - self._alone_since >= self.hp.host_wait_s:
            raise TrainingFailed(
                f"no environment is left: lost {', '.join(lane.name for lane in self.lanes)}. What was learned is "
                f"kept: start the hosts again and continue with --resume. Last error: {self._last_error}"
            ) from self._last_error

    def state_dict(self) -> dict[str, object]:
        """Return the state of every behaviour, those of a checkpoint that have not appeared yet included."""
        return {**self.waiting_states, **{name: one.state_dict() for name, one in self.sessions.items()}}

    def load_state_dict(self, states: Mapping[str, dict[str, object]], env_steps: int) -> None:
        """Restore what ``state_dict`` returned; a behaviour that has not appeared yet gets its own when it does.

        Raises:
            ConfigError: a behaviour has other spaces or sizes than in the checkpoint.
        """
        self.env_steps = env_steps
        self.waiting_states = dict(states)
        for name, session in self.sessions.items():
            state = self.waiting_states.pop(name, None)
            if state is not None:
                session.load_state_dict(state)
            session.agents.env_steps = env_steps

    def close(self) -> None:
        """Stop trying to get lanes back."""
        self._recovery.close()


def _has_agents(turn: Turn) -> bool:
    return bool(turn.acting.agent_ids or turn.ended.agent_ids)
