"""Ways to step environments that run in turns, and the table of their ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from statistics import median
from typing import Any

import gymnasium as gym
from gymnasium.vector.utils import batch_space
from rich.console import Console
from rich.table import Table

from agentgpt_remote import RemoteVectorEnv
from agentgpt_remote.frames import BINARY, frame_header, masked_header
from agentgpt_remote.protocol import HEADER_BYTES
from agentgpt_remote.steps import make_codec
from agentgpt_remote.wrappers.remote_vector_env import wait_ready
from benchmarks.tcp_baseline import PingPong, answering, make_env, sample_actions, stepper

_MASK_BYTES = 4
_WARM_UP_S = 0.5
_REPLY_TIMEOUT_S = 60.0
_PAGE_COLUMNS = 140

Contender = Callable[[float], float]  # runs for so many seconds, and returns how many steps it took in each
Rates = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        measure: what stands beside what.
        baseline: the baseline's figure.
        ours: the figure beside it.
        ratios: theirs, turn by turn.
        bar: what the median of the ratios must reach, if there is a bar.
        below: whether it must stay below the bar instead.
    """

    measure: str
    baseline: float
    ours: float
    ratios: list[float]
    bar: float | None = None
    below: bool = False

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Whether the ratio is where it must be; ``None`` without a bar."""
        if self.bar is None:
            return None
        return self.ratio < self.bar if self.below else self.ratio >= self.bar


def compare(contenders: dict[str, Contender], seconds: float, repeats: int) -> Rates:
    """Let the contenders run in turns, after a warm-up; return the rates of each, turn by turn."""
    for run in contenders.values():
        run(min(_WARM_UP_S, seconds))
    rates: Rates = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            rates[name].append(run(seconds))
    return rates


def beside(what: str, rates: Rates, ours: str, baseline: str, bar: float | None = None) -> Row:
    """Return the row of two contenders."""
    ratios = [rate / base for rate, base in zip(rates[ours], rates[baseline], strict=True)]
    measure = f"{what}: {ours} / {baseline}"
    return Row(measure=measure, baseline=median(rates[baseline]), ours=median(rates[ours]), ratios=ratios, bar=bar)


def timed(step: Callable[[], object], count: int = 1) -> Contender:
    """Return a contender that calls ``step`` again and again; a call counts as ``count`` steps."""

    def run(seconds: float) -> float:
        calls, spent_s, start = 0, 0.0, time.perf_counter()
        while spent_s < seconds:
            step()
            calls += 1
            spent_s = time.perf_counter() - start
        return calls * count / spent_s

    return run


def in_groups(envs: RemoteVectorEnv, groups: int) -> Contender:
    """Return a contender that keeps a request of each group in flight."""
    size = envs.num_envs // groups
    actions = sample_actions(batch_space(envs.single_action_space, size))
    envs.reset(seed=0)

    def run(seconds: float) -> float:
        steps, in_flight, start = 0, groups, time.perf_counter()
        for group in range(groups):
            envs.send(group, next(actions))
        while in_flight:
            group, _ = envs.recv(_REPLY_TIMEOUT_S)
            steps += size
            if time.perf_counter() - start < seconds:
                envs.send(group, next(actions))
            else:
                in_flight -= 1
        return steps / (time.perf_counter() - start)

    return run


class ManySessions:
    """A contender that drives several sessions, each as fast as its replies arrive.

    Attributes:
        rates: steps per second of each session, slowest first, run by run.
    """

    def __init__(self, envs: Sequence[RemoteVectorEnv]) -> None:
        self._envs = envs
        self._actions = sample_actions(envs[0].action_space)
        self.rates: list[list[float]] = []
        for env in envs:
            env.reset(seed=0)

    def __call__(self, seconds: float) -> float:
        """Run for so many seconds; return the steps per second of all sessions together."""
        calls, start = dict.fromkeys(self._envs, 1), time.perf_counter()
        for env in self._envs:
            env.step_async(next(self._actions))
        while time.perf_counter() - start < seconds:
            for env in wait_ready(self._envs, _REPLY_TIMEOUT_S):
                env.step_wait()
                env.step_async(next(self._actions))
                calls[env] += 1
        for env in self._envs:
            env.step_wait(_REPLY_TIMEOUT_S)
        spent_s = time.perf_counter() - start
        self.rates.append(sorted(count * env.num_envs / spent_s for env, count in calls.items()))
        return sum(self.rates[-1])


def message_bytes(source: str, num_envs: int | None) -> tuple[int, int]:
    """Return the sizes of a step's request and reply, as they are on the wire with their WebSocket frames."""
    env = make_env(source, num_envs)
    single = (env.observation_space, env.action_space)
    if num_envs is not None:
        single = (env.single_observation_space, env.single_action_space)
    codec = make_codec(*single, num_envs)
    actions = env.action_space.sample()
    env.reset(seed=0)
    payloads = codec.encode_actions(actions), codec.encode_step(env.step(actions))
    env.close()
    request, reply = (HEADER_BYTES + len(b"".join(parts)) + len(extras) for parts, _, extras in payloads)
    return len(masked_header(BINARY, request)) + _MASK_BYTES + request, len(frame_header(BINARY, reply)) + reply


def tcp(
    stack: ExitStack, source: str, num_envs: int | None, *, stepped: bool = False, reuse: bool = False
) -> Contender:
    """Return a contender that exchanges the bytes of a step, with the environment behind it if it is ``stepped``."""
    sizes = message_bytes(source, num_envs)
    server = stack.enter_context(answering(*sizes, source=source if stepped else None, num_envs=num_envs))
    client = stack.enter_context(PingPong(server.ready["port"], *sizes, reuse_memory=reuse))
    return timed(client.exchange, num_envs or 1)


def vectors(stack: ExitStack, source: str, num_envs: int, **options: Any) -> dict[str, Contender]:
    """Return the contenders that step so many environments here, in processes, and on a host."""
    # Forked from a process of its own, as this one may have threads by now.
    processes = {"context": "forkserver", "shared_memory": True}
    makers: dict[str, Callable[[], Any]] = {
        "SyncVectorEnv": lambda: make_env(source, num_envs),
        "AsyncVectorEnv": lambda: gym.make_vec(source, num_envs, vectorization_mode="async", vector_kwargs=processes),
        "remote": lambda: RemoteVectorEnv(source, num_envs, **options),
    }
    return {name: timed(stepper(stack.enter_context(closing(make()))), num_envs) for name, make in makers.items()}


def print_rows(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table("measure", title="steps per second, unless the measure says otherwise")
    for name in ("baseline", "ours", "ratio", "bar", "reached"):
        table.add_column(name, justify="right")
    for row in rows:
        bar = "" if row.bar is None else f"{'<' if row.below else '>='} {row.bar:g}"
        reached = {True: "yes", False: "[bold red]no", None: ""}[row.reached]
        table.add_row(row.measure, f"{row.baseline:,.4g}", f"{row.ours:,.4g}", f"{row.ratio:.2f}", bar, reached)
    Console(width=None if Console().is_terminal else _PAGE_COLUMNS).print(table)
