"""The benchmarks run, at a small size, and measure and judge as they say."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch

from agentgpt_remote import RemoteEnv, RemoteVectorEnv
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.sampler import Window, cut_chunks
from benchmarks.baselines import make_env, ppo, recurrent_ppo, run_baseline, sac
from benchmarks.contenders import Row, message_bytes
from benchmarks.curves import write_curves
from benchmarks.learning import Run, run_seed, summary
from benchmarks.learning import main as learning
from benchmarks.metagradient import TunedRun, row_of, verdict
from benchmarks.metagradient import main as metagradient
from benchmarks.remote_env import CARTPOLE, IMAGE, MEASURES, Setting, main
from benchmarks.tasks import TASKS, Goal, Task
from benchmarks.tcp_baseline import PingPong, answering, delaying, stepper
from benchmarks.throughput import BareUpdates, OurUpdates, session_with_rollout
from benchmarks.throughput import main as throughput
from tests.conftest import ServeFunction
from tests.wrappers.bad_network import CuttingProxy, port_of

TINY = Setting(seconds=0.05, repeats=1, num_envs=4, delayed_groups=2, delay_s=0.01, sessions=2, idle_sessions=(1, 3))


@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"idle"}))
def test_measure_gives_ratios_of_rates(name: str) -> None:
    rows = MEASURES[name](TINY)
    assert any(row.bar is not None for row in rows)
    for row in rows:
        assert row.baseline > 0
        assert row.ours > 0
        assert len(row.ratios) == TINY.repeats
        assert math.isfinite(row.ratio)
        assert row.ratio > 0
        assert row.reached is (None if row.bar is None else row.ratio >= row.bar)


def test_idle_measures_memory_and_processor_time() -> None:
    memory, processor = MEASURES["idle"](TINY)
    assert abs(memory.ours) < 100  # MB; of so few sessions it is mostly noise
    assert 0 <= processor.ours <= (os.cpu_count() or 1)


def test_main_prints_json_and_tells_a_bar_missed(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.dict(os.environ):  # the numbers of threads are for the benchmark alone
        code = main(["single", "--seconds", "0.05", "--repeats", "1", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert code == (0 if rows[0]["reached"] else 1)
    assert rows[0]["ratio"] == pytest.approx(rows[0]["ours"] / rows[0]["baseline"])


def test_main_refuses_an_unknown_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sinlge"])
    assert "'sinlge'" in capsys.readouterr().err


def test_row_below_its_bar_is_reached_where_less_is_better() -> None:
    row = Row(measure="memory", baseline=2.0, ours=1.0, ratios=[0.4, 0.5, 3.0], bar=1.0, below=True)
    assert row.ratio == 0.5
    assert row.reached is True


class CountingProxy(CuttingProxy):
    """Cuts nothing, and counts bytes before it passes them on: who has received some finds them counted."""

    sent_bytes = 0

    def _pass_on(self, data: bytes, target: socket.socket) -> bool:
        self.sent_bytes += len(data)
        return super()._pass_on(data, target)


@pytest.mark.parametrize(("source", "num_envs"), [(CARTPOLE, None), (CARTPOLE, 4), (IMAGE, 2)])
def test_message_bytes_are_those_on_the_wire(serve_here: ServeFunction, source: str, num_envs: int | None) -> None:
    with closing(CountingProxy(port_of(serve_here(source).url), lambda _: None)) as proxy:
        remote = RemoteEnv(url=proxy.url) if num_envs is None else RemoteVectorEnv(url=proxy.url, num_envs=num_envs)
        with closing(remote) as env:
            step = stepper(env)
            before = proxy.sent_bytes
            step()
            assert proxy.sent_bytes - before == sum(message_bytes(source, num_envs))


def test_delayed_ping_pong_takes_both_delays() -> None:
    with answering(10, 100_000) as server, delaying([server.ready["port"]], 0.02) as line:
        (port,) = line.ready["ports"]
        with PingPong(port, 10, 100_000) as client:
            start = time.perf_counter()
            assert client.exchange().shape == (100_000,)
            assert time.perf_counter() - start >= 0.04


SMALL: dict[str, Any] = {"num_layers": 2, "d_model": 32, "rollout_steps": 256, "max_input_states": 4, "chunk_steps": 16}
GOAL = Goal(bar=100.0, within=1000)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Set torch to one thread, as the benchmarks do, for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(seed: int, greedy: float | None, crossed: int | None, seconds: float, side: str = "agentgpt") -> Run:
    return Run(
        task="cartpole",
        side=side,
        seed=seed,
        env_steps=1000,
        crossed_at_steps=crossed,
        crossed_at_s=None if crossed is None else seconds,
        wall_s=seconds,
        greedy=greedy,
        sampled=greedy,
        passed=None if greedy is None else greedy >= GOAL.bar,
    )


@pytest.mark.parametrize("name", sorted(TASKS))
def test_task_names_an_environment_and_goals(name: str) -> None:
    task = TASKS[name]
    if ":" in task.source:
        env = make_env(task.source)
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        env.close()
    else:
        gym.spec(task.source)  # making it would import simulators, whose bindings warn
    assert task.goals
    for goal in task.goals.values():
        Hyperparameters(env_id=task.source, max_steps=goal.run_steps, **goal.hyperparameters)
        assert goal.within <= goal.run_steps


def test_summary_takes_medians_and_the_majority() -> None:
    task = TASKS["cartpole"]
    ours = [run(0, 500, 400, 10), run(1, 90, None, 20), run(2, 450, 600, 12)]
    row = summary(task, GOAL, [*ours, *(run(seed, None, 300, 20, "SB3 PPO") for seed in range(3))])
    assert (row["greedy"], row["crossed_at_steps"], row["seconds"], row["passed"]) == (450, 600, 12, True)
    assert (row["baseline_seconds"], row["ratio"], row["fast_enough"]) == (20, 0.6, True)
    worse = summary(task, GOAL, [run(0, 500, 400, 10), run(1, 90, None, 20), run(2, 95, None, 30)])
    assert (worse["passed"], worse["crossed_at_steps"], worse["ratio"]) == (False, None, None)


@pytest.mark.usefixtures("one_thread")
def test_long_run_must_cross_within_its_goal(tmp_path: Path) -> None:
    task = Task(name="cartpole", source="CartPole-v1", goals={})
    short = run_seed(task, Goal(bar=5, within=600), 0, tmp_path / "a", SMALL)
    assert short.passed, "any policy balances for 5 steps, and the run was no longer than the goal"
    assert short.curve[-1][0] == short.env_steps
    late = run_seed(task, Goal(bar=5, within=100, max_steps=600), 0, tmp_path / "b", SMALL)
    assert late.crossed_at_steps is not None
    assert late.crossed_at_steps > 100
    assert late.passed is False


@pytest.mark.usefixtures("one_thread")
def test_learning_main_writes_table_pictures_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cartpole", "--seeds", "1", "--no-baseline", "--out", str(tmp_path / "out"), "--set", "max_steps=600"]
    code = learning([*words, *(f"{name}={value}" for name, value in SMALL.items())])
    report = json.loads((tmp_path / "out" / "learning.json").read_text())
    (row,) = report["rows"]
    assert code == (0 if row["passed"] else 1)
    assert (tmp_path / "out" / "cartpole-ppo.png").read_bytes().startswith(b"\x89PNG")
    assert report["runs"][0]["curve"]
    assert "| cartpole | 475" in capsys.readouterr().out


def tuned(seed: int, learned: bool, steps: int, greedy: float) -> TunedRun:
    values = {"task": "cartpole", "start": "default", "gamma": 0.99, "lambda_": 0.95, "wall_s": 1.0, "crossed": True}
    return TunedRun(**values, seed=seed, learned=learned, steps=steps, greedy=greedy)


def test_learned_values_help_where_they_are_faster_and_no_worse() -> None:
    fixed = [tuned(seed, False, steps, 490) for seed, steps in enumerate((100, 200, 900))]
    better = row_of(GOAL, [*fixed, *(tuned(seed, True, 150, 495) for seed in range(3))])
    assert (better["steps fixed"], better["learned"], better["ratio"], better["helps"]) == (200, 150, 0.75, True)
    worse = row_of(GOAL, [*fixed, *(tuned(seed, True, 150, 480) for seed in range(3))])
    slower = row_of(GOAL, [*fixed, *(tuned(seed, True, 190, 495) for seed in range(3))])
    assert (worse["helps"], slower["helps"]) == (False, False)
    assert verdict([better, better, worse])
    assert not verdict([better, worse])
    assert not verdict([{**better, "start": "gamma=0.9"}])


@pytest.mark.usefixtures("one_thread")
def test_metagradient_main_writes_what_was_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cartpole", "--seeds", "1", "--starts", "gamma=0.9", "--json", str(tmp_path / "report.json")]
    settings = {**SMALL, "max_steps": 600, "meta_lr": 0.1}
    code = metagradient([*words, "--set", *(f"{name}={value}" for name, value in settings.items())])
    report = json.loads((tmp_path / "report.json").read_text())
    assert code == (0 if report["worth_being_the_default"] else 1)
    fixed, learned = report["runs"]
    assert (fixed["gamma"], fixed["lambda_"]) == (0.9, 0.95)
    assert learned["gamma"] != pytest.approx(0.9, abs=1e-6)
    assert "| cartpole | gamma=0.9 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cartpol"], "unknown task 'cartpol'"),
        (["hopper", "--algorithm", "offpolicy"], "'hopper' has no goal"),
        (["cartpole", "--algorithm", "dqn"], "invalid choice"),
    ],
)
def test_learning_main_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        learning(words)
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
def test_baselines_stop_at_the_bar() -> None:
    quick = ppo(2, 20_000, n_steps=32, batch_size=32, n_epochs=1)
    crossing, curve = run_baseline(quick, "CartPole-v1", 5.0, seed=0)
    assert crossing.env_steps is not None
    assert crossing.env_steps < 5000
    assert curve[0][1] >= 8
    policy = {"lstm_hidden_size": 8}
    lstm = recurrent_ppo(2, 128, n_steps=32, batch_size=32, n_epochs=1, normalize=True, falling=True, policy=policy)
    crossing, curve = run_baseline(lstm, "examples.envs:masked_cartpole", 475.0, seed=0)
    assert crossing.env_steps is None
    assert curve


@pytest.mark.usefixtures("one_thread")
def test_baseline_that_is_run_whole_goes_on_after_the_bar() -> None:
    crossing, curve = run_baseline(sac(4400, learning_starts=4300), "Pendulum-v1", -2000.0, seed=0)
    assert crossing.env_steps is not None
    assert crossing.env_steps < curve[-1][0]


def test_curves_of_an_empty_run_can_be_drawn(tmp_path: Path) -> None:
    write_curves(tmp_path / "new" / "a.png", "title", GOAL, [("agentgpt", 0, []), ("SB3 PPO", 0, [(1, 2.0)])])
    assert (tmp_path / "new" / "a.png").stat().st_size > 1000


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_bare_model_computes_what_ours_does(env_id: str) -> None:
    with session_with_rollout({**SMALL, "chunk_steps": 10}, env_id) as session:
        bare = BareUpdates(session)
        actor, blocks = session.learner.actor, 2
        chunks = cut_chunks(session.store, Window.of(session.store), 10, actor, blocks, session.device)
        count = len(bare._batches[0].action)
        for model, twin in zip((actor, session.learner.critic), bare.models, strict=True):
            with torch.no_grad():
                ours, theirs = chunks.outputs(model, slice(0, count)), bare._outputs(twin, bare._batches[0])
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        tokens = bare.update()
        assert tokens >= 256
        assert all(parameter.grad is not None for twin in bare.models for parameter in twin.parameters())
        updates = OurUpdates(session)
        epochs = updates.update() / updates.update()
        assert epochs == 1.0, "every update trains on the same rollout"


def test_throughput_main_prints_a_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["2L/d64", "--seconds", "0.05", "--repeats", "1", "--json", str(tmp_path / "t.json"), "--set"]
    code = throughput([*words, *(f"{name}={value}" for name, value in SMALL.items())])
    step, update = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert step["ratio"] == pytest.approx(step["ours"] / step["bare"])
    assert update["bare"] == step["bare"]
    assert code == (0 if step["ratio"] >= 0.85 else 1)
    printed = capsys.readouterr().out
    assert "step / bare" in printed
    assert "update / bare" in printed
    with pytest.raises(SystemExit, match="2"):
        throughput(["9L"])


def test_repeat_previous_pays_for_memory() -> None:
    env = make_env("examples.envs:repeat_previous")
    for remembers in (True, False):
        observation, _ = env.reset(seed=1)
        seen, total, steps, terminated = [int(observation)], 0.0, 0, False
        while not terminated:
            action = np.int64(seen[-5] if remembers and len(seen) > 4 else 0)
            observation, reward, terminated, truncated, _ = env.step(action)
            assert not truncated
            seen.append(int(observation))
            total, steps = total + float(reward), steps + 1
        assert steps == 52
        assert total == pytest.approx(1.0) if remembers else total < -0.3
