"""Each example script runs, with a host of its own and against one at a URL."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import venv
from pathlib import Path

import pytest
import torch

from tests.conftest import ServeFunction

ROOT = Path(__file__).parents[2]
# Script, the library it shows, its source, arguments that make it short, and the least that it returns.
EXAMPLES = [
    ("sb3_ppo", "stable_baselines3", "CartPole-v1", ["--total-steps", "2048"], 20.0),
    ("cleanrl_ppo", "torch", "CartPole-v1", ["--total-steps", "16384"], 60.0),
    ("torchrl_rollout", "torchrl", "CartPole-v1", ["--steps", "200"], 10.0),
    ("team_game", "mpe2", "pettingzoo:mpe2.simple_tag_v3", ["--total-steps", "4000", "--episodes", "2"], 0.0),
    ("envpool_host", "envpool", "envpool:Walker2d-v4", ["--num-envs", "4", "--steps", "20"], 1.0),
]


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")  # EnvPool's own
@pytest.mark.parametrize("remote", [False, True], ids=["own_host", "url"])
@pytest.mark.parametrize(
    ("name", "library", "source", "arguments", "least"), EXAMPLES, ids=[row[0] for row in EXAMPLES]
)
def test_example_runs(
    name: str,
    library: str,
    source: str,
    arguments: list[str],
    least: float,
    remote: bool,
    serve_here: ServeFunction,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(library)
    torch.set_num_threads(1)
    where = ["--url", serve_here(source).url] if remote else []
    result = importlib.import_module(f"examples.{name}").main([*arguments, *where])
    assert result >= least
    assert re.search(r"return|steps/s", capsys.readouterr().out)


def test_torchrl_sees_the_steps_of_a_local_env(serve_here: ServeFunction) -> None:
    envs = pytest.importorskip("torchrl.envs")
    rollouts = []
    for env_id, where in (("Pendulum-v1", {}), ("agentgpt/Pendulum-v1", {"url": serve_here("Pendulum-v1").url})):
        env = envs.GymEnv(env_id, **where)
        env.set_seed(3)
        torch.manual_seed(0)
        rollouts.append(env.rollout(50))
        env.close()
    assert (rollouts[0] == rollouts[1]).all()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_rllib_example_runs_with_the_gymnasium_that_rllib_pins(tmp_path: Path, serve_here: ServeFunction) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    variables |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [str(python), *words], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1200, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    run("-m", "pip", "install", "--quiet", "-c", "constraints.txt", "-e", ".[rllib]")
    short = ["examples/rllib_ppo.py", "--num-envs", "4", "--iterations", "3", "--steps-per-iteration", "1000"]
    for where in ([], ["--url", serve_here("CartPole-v1").url]):
        returns = [float(value) for value in re.findall(r"episode_return=(\S+)", run(*short, *where))]
        assert len(returns) == 3
        assert returns[-1] > 15.0


def test_unity_training_runs_on_a_build_and_on_hosts_of_it(
    tmp_path: Path, serve_here: ServeFunction, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlagents_envs")
    from examples.unity_training import main
    from tests.unity.stand_in import write_player

    build = write_player(tmp_path, agents=4, task="balance", continuous=1, length=30, delay=1)
    assert (
        main(["--build", build, "--total-steps", "3000"]) > 5
    )  # an agent that does nothing falls after about 15 steps
    urls = [serve_here(f"unity:{build}").url for _ in range(2)]
    assert main(["--url", *urls, "--total-steps", "3000"]) > 5
    assert "Walker?team=0: return" in capsys.readouterr().out
