"""Training on environments of many agents, and acting with what was learned."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from agentgpt_remote import AgentGPT, GPTPolicy, RemoteParallelEnv
from agentgpt_remote.errors import BundleError, ConfigError, RunExists, UnknownAgent, UnsupportedSpace
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.trainer.agent_evaluation import evaluate_agents_of, evaluate_any
from agentgpt_remote.trainer.checkpoint import Checkpoints
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.loop import train
from tests.conftest import ServeFunction
from tests.trainer.teams import Teams
from tests.unity.stand_in import write_player

SMALL: dict[str, Any] = {"num_layers": 1, "d_model": 32, "max_input_states": 4, "use_tensorboard": False}
TEAMS = "tests.trainer.teams:Teams"


def _hyperparameters(**values: Any) -> Hyperparameters:
    return Hyperparameters(**{**SMALL, "max_steps": 3000, "rollout_steps": 512, "num_envs": 4, **values})


@pytest.fixture(scope="module")
def teams_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two behaviours, with masks, deaths and late agents."""
    run_dir = tmp_path_factory.mktemp("runs") / "teams"
    train(_hyperparameters(env_id=TEAMS, max_steps=12_000, lr_init=2e-3), run_dir=run_dir)
    return run_dir


def test_every_behaviour_learns_a_policy_of_its_own(teams_run: Path) -> None:
    config = json.loads((teams_run / "config.json").read_text())
    assert sorted(config["behaviors"]) == ["guard", "runner"]
    assert config["behaviors"]["runner"]["critic_num_layers"] == 1
    rows = list(read_metrics(teams_run / "metrics.jsonl"))
    last = {name: value for row in rows for name, value in row.items() if value is not None}
    assert last["train/policy_loss/guard"] != last["train/policy_loss/runner"]
    result = evaluate_any(str(teams_run / "policy"), TEAMS, episodes=20, seed=1)
    told = result.to_dict()["behaviors"]
    assert told["guard"]["mean"] > 0.9 * Teams.LENGTH  # random has a half, for the mask leaves two choices
    assert told["runner"]["mean"] > 0.65 * Teams.RUNNER_LENGTH  # random has less than none


def test_bundle_of_several_policies_acts_by_behaviour(teams_run: Path) -> None:
    bundle = teams_run / "policy"
    with pytest.raises(ConfigError, match=r"several behaviours \('guard', 'runner'\): name one"):
        GPTPolicy(bundle)
    with pytest.raises(ConfigError, match=r"behavior='guards'.*did you mean 'guard'\?"):
        GPTPolicy(bundle, behavior="guards")
    with GPTPolicy(bundle, behavior="guard") as policy:
        assert policy.action_space == spaces.Discrete(3)
        seen = np.zeros((2, 4), np.float32)
        policy.select_action(["guard_0", "guard_1"], seen)
        policy.select_action(["guard_1"], seen[:1], ["guard_0"])
        assert policy.get_agent_ids() == ["guard_1"]
        with pytest.raises(UnknownAgent, match="guard_0"):
            policy.terminate_agents(["guard_0"])
        mask = np.array([False, True, False])
        assert policy.select_action(["x"], seen[:1], action_masks=[mask]).tolist() == [1]
    policies = GPTPolicy.of_behaviors(bundle, seed=3)
    assert list(policies) == ["guard", "runner"]
    for policy in policies.values():
        policy.close()


def test_policy_server_has_every_behaviour(teams_run: Path) -> None:
    bundle = teams_run / "policy"
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(5, 3, 4)).astype(np.float32)
    with (
        AgentGPT.run_on_local(bundle, behavior="runner", deterministic=False, seed=2) as there,
        GPTPolicy(bundle, behavior="runner", deterministic=False, seed=2, engine="onnx") as here,
    ):
        for step in range(5):
            ids = [f"runner_{step}", "runner_x", "runner_y"]
            ended = [f"runner_{step - 1}"] if step else None
            ours, theirs = here.select_action(ids, seen[step], ended), there.select_action(ids, seen[step], ended)
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with pytest.raises(ConfigError, match=r"no policy of behavior=None.*'guard', 'runner'"):
        AgentGPT.run_on_local(bundle)
    with pytest.raises(ConfigError, match=r"no policy of behavior='walker'.*'guard', 'runner'"):
        AgentGPT.run_on_local(bundle, behavior="walker")


def test_evaluation_through_a_policy_server_equals_that_of_the_folder(teams_run: Path) -> None:
    from agentgpt_remote.policy.local_server import LocalPolicyServer

    bundle = str(teams_run / "policy")
    here = evaluate_any(bundle, TEAMS, episodes=8, seed=5)
    with LocalPolicyServer(bundle) as server:
        there = evaluate_any(server.url, TEAMS, episodes=8, seed=5, policy_token=server.token)
    assert here.to_dict() == there.to_dict()


def test_damaged_group_is_refused(teams_run: Path, tmp_path: Path) -> None:
    config = json.loads((teams_run / "policy" / "config.json").read_text())
    config["behaviors"]["guard"] = "../../elsewhere"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="is damaged"):
        GPTPolicy(tmp_path, behavior="guard")


def test_run_of_many_agents_resumes_with_its_weights(tmp_path: Path) -> None:
    hp = _hyperparameters(env_id=TEAMS)
    first = train(hp, run_dir=tmp_path / "run")
    saved = Checkpoints(tmp_path / "run" / "checkpoints", 3).load_last()
    assert saved is not None
    seen: list[int] = []
    again = replace(hp, resume_training=True, max_steps=6000)
    second = train(again, run_dir=tmp_path / "run", on_progress=lambda progress: seen.append(progress.env_steps))
    assert seen[0] > first.env_steps
    assert second.env_steps >= 6000
    assert second.episodes > first.episodes
    later = Checkpoints(tmp_path / "run" / "checkpoints", 3).load_last()
    assert later is not None
    for name in ("guard", "runner"):
        before, after = saved["behaviors"][name]["learner"], later["behaviors"][name]["learner"]
        assert after["updates"] > before["updates"] > 0
    rows = [row["env_steps"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert rows == sorted(rows)


def test_run_of_one_agent_is_not_resumed_on_many(tmp_path: Path) -> None:
    train(_hyperparameters(env_id="CartPole-v1", max_steps=600), run_dir=tmp_path / "one")
    with pytest.raises(ConfigError, match="was trained on an environment of one agent"):
        train(_hyperparameters(env_id=TEAMS, resume_training=True), run_dir=tmp_path / "one")
    train(_hyperparameters(env_id=TEAMS, max_steps=1000), run_dir=tmp_path / "many")
    with pytest.raises(ConfigError, match="was trained on many agents"):
        train(_hyperparameters(env_id="CartPole-v1", resume_training=True), run_dir=tmp_path / "many")


def test_offpolicy_learns_from_many_agents(tmp_path: Path) -> None:
    hp = _hyperparameters(env_id=TEAMS, algorithm="offpolicy", rollout_steps=None, max_steps=1500, learning_starts=200)
    result = train(hp, run_dir=tmp_path / "run")
    rows = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    losses = [value for row in rows for name, value in row.items() if name == "train/value_loss/guard"]
    assert losses
    assert np.isfinite(losses).all()
    assert set(GPTPolicy.of_behaviors(result.bundle)) == {"guard", "runner"}


def test_hosts_and_urls_train_together(tmp_path: Path, serve_here: ServeFunction) -> None:
    urls = [serve_here(TEAMS).url, serve_here(TEAMS).url]
    result = train(_hyperparameters(num_envs=2), run_dir=tmp_path / "run", envs=urls)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(config["lanes"]) == 2
    assert result.env_steps >= 3000


def test_parallel_env_is_lent_to_a_training_run(tmp_path: Path) -> None:
    with RemoteParallelEnv(TEAMS) as env:
        run = AgentGPT.train_on_local(_hyperparameters(), env=env, runs_dir=tmp_path)
        status = run.wait(120)
        assert status.state == "completed"
        with run.policy(behavior="guard") as policy:
            assert policy.action_space == spaces.Discrete(3)
        observations, _ = env.reset(seed=1)
        assert observations
        with pytest.raises(RunExists):
            AgentGPT.train_on_local(_hyperparameters(), env=env, runs_dir=tmp_path, run_id=run.run_id)


def test_hosts_of_different_environments_are_refused(tmp_path: Path, serve_here: ServeFunction) -> None:
    urls = [serve_here(TEAMS).url, serve_here("tests.trainer.teams:wider").url]
    with pytest.raises(ConfigError, match="'guard' has other spaces"):
        train(_hyperparameters(), run_dir=tmp_path / "run", envs=urls)
    assert not (tmp_path / "run").exists()


def test_space_that_can_not_be_learned_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpace, match="leaves no choice"):
        train(_hyperparameters(env_id="tests.trainer.teams:no_choice"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stop_event_ends_a_run_with_a_bundle(tmp_path: Path) -> None:
    stop = threading.Event()
    result = train(
        _hyperparameters(env_id=TEAMS, max_steps=1_000_000),
        run_dir=tmp_path / "run",
        stop_event=stop,
        on_progress=lambda _: stop.set(),
    )
    assert result.stopped
    assert set(GPTPolicy.of_behaviors(result.bundle)) == {"guard", "runner"}


def test_agents_that_take_turns_are_trained(tmp_path: Path) -> None:
    hp = _hyperparameters(env_id="tests.trainer.teams:turns", max_steps=2000)
    result = train(hp, run_dir=tmp_path / "run")
    assert result.episodes > 10
    evaluation = evaluate_agents_of(GPTPolicy.of_behaviors(result.bundle), "tests.trainer.teams:turns", episodes=6)
    assert evaluation.together.episodes == 6
    assert evaluation.together.mean > 8  # of 10; random has 5


def test_unity_players_survive_crashes_and_late_behaviours_in_training(tmp_path: Path) -> None:
    path = write_player(tmp_path, agents=3, periods=(1, 2), death=0.1, length=12, late=15, crash=0.002)
    hp = _hyperparameters(env_id=path, max_steps=4000, num_envs=2)
    result = train(hp, run_dir=tmp_path / "run")
    assert result.env_steps >= 4000
    assert set(GPTPolicy.of_behaviors(result.bundle)) == {"Walker?team=0", "Late?team=0"}
