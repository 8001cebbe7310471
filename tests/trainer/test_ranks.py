"""Several processes that learn together, over gloo on loopback."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.trainer.checkpoint import load_checkpoint
from agentgpt_remote.trainer.hosts import divide_hosts
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.pace import Pace, Word
from agentgpt_remote.trainer.ranks import ALONE, TIMEOUT_VARIABLE, Ranks, join_ranks
from tests.support import wait_until
from tests.trainer.rank_process import RULES, acting_without_noise, train_learner
from tests.trainer.test_exact_resume import same_bits, stable

TIMEOUT_S = 120.0
MAX_STEPS = 3000
CLOCK = {"wall_s", "resumes", "best_saved"}  # best_saved tells which checkpoints were written
Started = list[subprocess.Popen[str]]


def start(*arguments: Any, size: int = 2, timeout_s: float = 60.0) -> Started:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    where[TIMEOUT_VARIABLE] = str(timeout_s)
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.rank_process", *map(str, arguments)],
            env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(processes: Started) -> list[tuple[int, str, str]]:
    """Return exit code, output and error output of each."""
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def succeed(*arguments: Any, size: int = 2) -> list[str]:
    ended = finish(start(*arguments, size=size))
    assert [code for code, _, _ in ended] == [0] * size, ended
    return [output for _, output, _ in ended]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("step-*.pt")}


def test_two_ranks_learn_as_one_process_with_both_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentgpt_remote.policy.distributions.JointDistribution.sample_numeric", None)
    acting_without_noise()
    succeed("learners", tmp_path)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    same_bits(first, second)
    torch.set_num_threads(1)
    for rule, kind in RULES:
        alone, half = (train_learner(rule, kind, each) for each in (ALONE, FirstOfTwo()))
        different = 0.0
        for name, value in first[f"{rule}.{kind}"].items():
            torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-6, msg=f"{rule} {kind} {name}")
            different = max(different, float((half[name] - value).abs().max()) if value.numel() else 0.0)
        assert different > 1e-4, f"{rule} {kind}: the second rank's batch made no difference"
    for rule in ("ppo", "offpolicy"):  # the bits are those of the other rank, as all else
        tuned = first[f"tuned.{rule}"]
        assert 0.9 < tuned["gamma"].item() != pytest.approx(0.99, abs=1e-9)
        assert tuned["lambda_"].item() != pytest.approx(0.95, abs=1e-9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two ranks that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("whole")
    outputs = succeed("run", run_dir, f"max_steps={MAX_STEPS}")
    assert outputs[0] == outputs[1]  # steps and returns of both together
    return run_dir


def test_only_the_first_rank_writes_what_there_is_one_of(whole: Path) -> None:
    config, result = (json.loads((whole / name).read_text()) for name in ("config.json", "result.json"))
    assert (config["ranks"], config["num_agents"]) == (2, 8)
    assert config["lanes"] == ["rank-0/envs[0]", "rank-1/envs[0]"]
    assert MAX_STEPS - 8 < result["env_steps"] <= MAX_STEPS
    rows = list(read_metrics(whole / "metrics.jsonl"))
    steps = [row["env_steps"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == result["env_steps"]
    assert {b - a > 200 for a, b in itertools.pairwise(steps[:-1])} == {True}  # a rollout of 128 tokens each
    assert rows[-1]["remote/agents"] == 8
    assert rows[-1]["rollout/episodes"] == result["episodes"] > MAX_STEPS / 8 * 0.9  # episodes of 8 steps
    second = whole / "checkpoints" / "rank-1"
    assert names(second) == names(whole / "checkpoints") != set()
    assert {path.name for path in second.iterdir()} == names(second)
    state = load_checkpoint(max(second.glob("step-*.pt")))
    assert "observations" not in state
    assert set(state["learner"]) == {"rng"}
    first = load_checkpoint(max((whole / "checkpoints").glob("step-*.pt")))
    arrays = [part["streams"]["arrays"]["obs"] for part in (first, state)]
    assert arrays[0].shape != arrays[1].shape or not torch.equal(*arrays)  # other seeds


@pytest.mark.parametrize("victim", [0, 1])
def test_rank_that_is_killed_ends_the_others_and_the_run_goes_on_as_if_nothing_had_happened(
    whole: Path, tmp_path: Path, victim: int
) -> None:
    processes = start("run", tmp_path, f"max_steps={MAX_STEPS}")
    wait_until(lambda: len(names(tmp_path / "checkpoints" / "rank-1")) > 1, TIMEOUT_S, "a checkpoint")
    began = time.monotonic()
    processes[victim].send_signal(signal.SIGKILL)
    ended = finish(processes)
    assert time.monotonic() - began < 30.0
    assert ended[victim][0] == -signal.SIGKILL
    code, _, error = ended[1 - victim]
    assert code == 1
    assert "of 2 waited for the others in vain" in error
    assert "--resume" in error
    before = max(names(tmp_path / "checkpoints"))
    succeed("run", tmp_path, f"max_steps={MAX_STEPS}")
    assert max(names(tmp_path / "checkpoints")) > before
    for folder in ("checkpoints", "checkpoints/rank-1"):
        states = [load_checkpoint(max((run_dir / folder).glob("step-*.pt"))) for run_dir in (whole, tmp_path)]
        same_bits(*({name: state[name] for name in state.keys() - CLOCK} for state in states))
    assert stable(whole) == stable(tmp_path)


def test_rank_that_hangs_ends_the_others_at_the_deadline(tmp_path: Path) -> None:
    first, second = start("run", tmp_path, f"max_steps={10**6}", timeout_s=15.0)
    wait_until(lambda: bool(names(tmp_path / "checkpoints" / "rank-1")), TIMEOUT_S, "a checkpoint")
    second.send_signal(signal.SIGSTOP)
    try:
        ((code, _, error),) = finish([first])
    finally:
        second.kill()
        second.communicate()
    assert code == 1
    assert "did not answer for 15 s" in error


def test_run_goes_on_with_another_number_of_ranks(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = json.loads((tmp_path / "result.json").read_text())
    for size, more in ((1, 1000), (3, 2000)):
        ended = finish(start("run", tmp_path, f"max_steps={MAX_STEPS + more}", size=size))
        assert [code for code, _, _ in ended] == [0] * size, ended
        assert "with empty streams and new episodes" in ended[0][2]
        after = json.loads((tmp_path / "result.json").read_text())
        assert MAX_STEPS + more - 12 < after["env_steps"] <= MAX_STEPS + more
        assert after["episode_return"] > before["episode_return"] - 2
    assert names(tmp_path / "checkpoints") == names(tmp_path / "checkpoints" / "rank-2")


def test_damaged_part_of_one_rank_takes_all_back_to_the_checkpoint_before(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    last, before = sorted(names(tmp_path / "checkpoints"), reverse=True)[:2]
    damaged = tmp_path / "checkpoints" / "rank-1" / last
    damaged.write_bytes(damaged.read_bytes()[:-100])
    ended = finish(start("run", tmp_path, f"max_steps={MAX_STEPS}"))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert f"going on from {before}" in ended[0][2]
    assert "rank-1" in ended[0][2]
    states = [load_checkpoint(run_dir / "checkpoints" / last) for run_dir in (whole, tmp_path)]
    same_bits(*({name: state[name] for name in state.keys() - CLOCK} for state in states))


def test_signal_to_one_rank_stops_all_with_a_checkpoint(tmp_path: Path) -> None:
    processes = start("run", tmp_path, f"max_steps={10**6}")
    wait_until(lambda: bool(names(tmp_path / "checkpoints" / "rank-1")), TIMEOUT_S, "a checkpoint")
    processes[1].terminate()
    assert [code for code, _, _ in finish(processes)] == [0, 0]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["stopped"]
    last = f"step-{result['env_steps']:012d}.pt"
    assert last in names(tmp_path / "checkpoints") & names(tmp_path / "checkpoints" / "rank-1")


def test_off_policy_ranks_that_are_stopped_and_resumed_equal_those_that_were_not(tmp_path: Path) -> None:
    chosen = ("max_steps=1600", "offpolicy=1", "batch_size=64", "replay_ratio=2", "learning_starts=200")
    processes = start("run", tmp_path / "parts", *chosen)
    wait_until(lambda: bool(names(tmp_path / "parts" / "checkpoints" / "rank-1")), TIMEOUT_S, "a checkpoint")
    processes[1].terminate()
    assert [code for code, _, _ in finish(processes)] == [0, 0]
    assert json.loads((tmp_path / "parts" / "result.json").read_text())["stopped"]
    for name in ("parts", "whole"):
        succeed("run", tmp_path / name, *chosen)
    for folder in ("checkpoints", "checkpoints/rank-1"):
        files = [max((tmp_path / name / folder).glob("step-*.pt")) for name in ("parts", "whole")]
        states = [load_checkpoint(path) for path in files]
        same_bits(*({name: state[name] for name in state.keys() - CLOCK} for state in states))
    assert stable(tmp_path / "parts") == stable(tmp_path / "whole") != []
    learner = load_checkpoint(max((tmp_path / "whole" / "checkpoints").glob("step-*.pt")))["learner"]
    # Every step is trained on twice, 64 of each rank at a time; autoreset tokens count as well.
    assert 1400 * 2 / 128 < learner["updates"] < 1600 * 2 / 128 * 9 / 8


def test_rank_that_fails_before_training_ends_the_others(tmp_path: Path) -> None:
    ended = finish(start("run", tmp_path, f"max_steps={10**6}", "unopened=1"))
    assert [code for code, _, _ in ended] == [1, 1]
    assert ended[0][2].splitlines()[-1].startswith("RankLost: rank 0 of 2 waited for the others in vain")
    assert "HostUnreachable" in ended[1][2]


def test_failure_of_one_rank_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    ended = finish(start("run", tmp_path, f"max_steps={10**6}", "bad_step=300"))
    assert [code for code, _, _ in ended] == [1, 1]
    assert ended[0][2].splitlines()[-1].startswith("TrainingFailed: rank 1: envs[0]: the observation of agent 0 at")
    assert "is not finite" in ended[1][2]
    assert names(tmp_path / "checkpoints") == names(tmp_path / "checkpoints" / "rank-1") != set()


def test_cartpole_is_learned_by_two_ranks_as_by_one_process_with_the_doubled_batch(tmp_path: Path) -> None:
    both = succeed("run", tmp_path / "two", "max_steps=16000", "cartpole=8")[0]
    doubled = ("cartpole=16", "rollout_steps=2048", "batch_size=512")
    alone = succeed("run", tmp_path / "one", "max_steps=16000", *doubled, size=1)[0]
    returns = [float(output.split()[1]) for output in (both, alone)]
    assert min(returns) > 90, returns  # 22 at random


def test_torchrun_trains_from_the_command_line(tmp_path: Path) -> None:
    words = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "agentgpt_remote", "train", "CartPole-v1")
    options = ("--set", "max_steps=1500", "--set", "num_envs=4", "--set", "rollout_steps=256", "--json")
    command = [sys.executable, *words, "--runs-dir", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert 1492 < told["env_steps"] <= 1500
    assert [path.name for path in tmp_path.iterdir()] == ["CartPole-v1"]
    taken = subprocess.run([*command, "--run-id", "CartPole-v1"], capture_output=True, timeout=TIMEOUT_S)
    assert taken.returncode != 0
    assert b"exists: continue it with --resume" in taken.stderr


class FirstOfTwo(Ranks):
    """The first of two ranks, of which the other has the same data."""

    size = 2

    def share(self, value: Any) -> list[Any]:
        return [value, value]

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mul_(2)


def test_urls_are_dealt_out_and_too_few_are_refused() -> None:
    hosts = {str(index): EnvHost(env_endpoint=f"ws://sim-{index}:8000") for index in range(3)}
    ranks = FirstOfTwo()
    mine, _ = divide_hosts(Hyperparameters(env_hosts=hosts), None, ranks)
    assert list(mine.env_hosts) == ["0", "2"]
    assert divide_hosts(Hyperparameters(), ["ws://a:1", "ws://b:1"], ranks)[1] == ["ws://a:1"]
    local = Hyperparameters(env_id="CartPole-v1")
    assert divide_hosts(local, None, ranks) == (local, None)
    with pytest.raises(ConfigError, match=r"1 hosts for 2 ranks \(ws://a:1\): expected at least one for each"):
        divide_hosts(Hyperparameters(), ["ws://a:1"], ranks)


class Told(Ranks):
    """One of several ranks whose words are given."""

    def __init__(self, rank: int, words: list[Word]) -> None:
        self.rank, self.size, self._words = rank, len(words), words

    def share(self, value: Any) -> list[Any]:
        return [asdict(word) for word in self._words]


@pytest.mark.parametrize("agents", [(4, 4), (1, 64), (7, 3, 5)])
def test_steps_of_a_run_are_divided_by_agents_and_end_at_its_last_step(agents: tuple[int, ...]) -> None:
    max_steps, rollout, total = 1000, 128, 0
    taken = [0] * len(agents)
    for _ in range(100):
        words = [Word(steps=steps, agents=count) for steps, count in zip(taken, agents, strict=True)]
        paces = [Pace(Told(rank, words), max_steps) for rank in range(len(agents))]
        for pace, word in zip(paces, words, strict=True):
            pace.resume(total, total)
            pace.exchange(word)
        if paces[0].ended:
            break
        assert {pace.advance() for pace in paces} == {total + sum(taken)}
        total += sum(taken)
        taken = [0] * len(agents)
        for rank, count in enumerate(agents):
            while taken[rank] < rollout and not paces[rank].enough(total + taken[rank], count):
                taken[rank] += count
            assert taken[rank]  # each has something to learn from
    assert max_steps - sum(agents) < paces[0].total <= max_steps


def test_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    for name, value in {"WORLD_SIZE": "2", "MASTER_PORT": "29500", "MASTER_ADDR": "127.0.0.1"}.items():
        with join_ranks() as ranks:
            assert ranks is ALONE
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with join_ranks() as ranks:
        assert ranks is ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(TIMEOUT_VARIABLE, "soon")
    with pytest.raises(ConfigError, match="AGENTGPT_RANK_TIMEOUT_S='soon': expected a number"), join_ranks():
        pass
