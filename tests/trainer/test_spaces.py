"""Training on images, hybrid actions and action masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from agentgpt_remote.errors import ConfigError, TrainingFailed
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.policy.features import ObservationFeatures
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.trainer.evaluation import evaluate
from agentgpt_remote.trainer.exploration import Exploration
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.lanes import Lane, Observed
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.sampler import Window, cut_chunks
from agentgpt_remote.trainer.session import TrainingSession
from agentgpt_remote.trainer.streams import StreamStore
from agentgpt_remote.trainer.targets import RewardScaling, make_targets
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from examples.envs import catch, dials, doors

IMAGE_STEPS, HYBRID_STEPS = 50_000, 60_000
SMALL: dict[str, Any] = {"rollout_steps": 256, "d_model": 32, "num_heads": 2, "max_input_states": 4, "chunk_steps": 16}


class Everything(gym.Env[Any, Any]):
    """Images and numbers to see, nested actions of which the masks allow some; episodes of 6 steps."""

    observation_space = spaces.Dict(eye=spaces.Box(0, 255, (1, 16, 18), np.uint8), where=spaces.Box(-1, 1, (2,)))
    action_space = spaces.Dict(gear=spaces.Discrete(4), push=spaces.Box(-1, 1, (1,)), keys=spaces.MultiDiscrete([2, 3]))

    def __init__(self) -> None:
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self._gears[action["gear"]]:
            raise ValueError(f"gear {action['gear']} is not allowed")
        if self._keys is not None and not (self._keys[0][action["keys"][0]] and self._keys[1][action["keys"][1]]):
            raise ValueError(f"keys {action['keys']} are not allowed")
        self._steps += 1
        obs, info = self._observe()
        if self._steps == 6:
            info = {"action_mask": {"gear": np.zeros(4, np.int8)}}
        return obs, float(action["gear"]), self._steps == 6, False, info

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        rng = self.np_random
        self._gears = rng.random(4) < 0.4
        self._gears[rng.integers(4)] = True
        self._keys = None
        info: dict[str, Any] = {"action_mask": {"gear": self._gears}}
        if self._steps % 2:
            self._keys = (np.array([0, 1], np.int8), rng.permutation([1, 0, 1]).astype(np.int8))
            info["action_mask"]["keys"] = self._keys
        obs = {"eye": rng.integers(0, 256, (1, 16, 18), np.uint8), "where": rng.random(2, np.float32)}
        return obs, info


def lane_of(*envs: Any) -> Lane:
    made = SyncVectorEnv(list(envs))
    return Lane("sim-7", made, ObservationFeatures(made.single_observation_space), 10.0)


def reset(lane: Lane, seed: int) -> Observed:
    lane.send_reset(seed)
    return lane.receive_reset()


def session_of(lane: Lane, **values: Any) -> TrainingSession:
    hyperparameters = Hyperparameters(**{**SMALL, **values}).resolve("cpu", num_agents=lane.num_agents)
    return TrainingSession(hyperparameters, [lane], lane.envs.single_observation_space, lane.envs.single_action_space)


@pytest.mark.parametrize("gpt_type", ["llama", "gpt2"])
def test_recomputed_log_probabilities_are_those_of_acting(gpt_type: str) -> None:
    session = session_of(lane_of(*[Everything] * 3), gpt_type=gpt_type, rollout_steps=96, lr_init=1e-3)
    session.model.head.weight.data.mul_(100.0)
    session.start()
    for _ in range(3):
        session.collector.collect(96, lambda: False)
        store, model, device = session.store, session.model, torch.device("cpu")
        window = Window.of(store)
        chunks = cut_chunks(store, window, 16, model, 2, device)
        scaling = RewardScaling(1.0, 10.0)
        value = np.zeros((3, window.columns + 1))
        targets = make_targets(
            store, window, value, scaling=scaling, gamma=0.9, lambda_=0.9, version=session.collector.version
        )
        batch = targets.batch(store, window, chunks, device)
        assert batch.action_mask is not None
        assert 0.3 < batch.action_mask[..., :4].float().mean() < 0.8
        with torch.no_grad():
            distribution = model.distribution(chunks.outputs(model), batch.action_mask)
            log_prob = distribution.log_prob(batch.action)
        used = batch.weight > 0
        torch.testing.assert_close(log_prob[used], batch.log_prob[used], atol=1e-5, rtol=1e-5)
        assert distribution.entropy().isfinite().all()
        metrics = session.update()
        assert all(np.isfinite(value) for value in metrics.values())


def test_store_keeps_frames_as_bytes() -> None:
    session = session_of(lane_of(catch, catch))
    session.start()
    session.collector.collect(32, lambda: False)
    assert session.store.pixels.dtype == np.uint8
    assert session.store.pixels.shape[2:] == (24 * 24,)
    assert session.store.obs.shape[2:] == (0,)
    assert set(np.unique(session.store.pixels[:, 0])) == {0, 128, 255}
    assert session.store.action_mask is None


def test_store_that_would_not_fit_names_the_field() -> None:
    with pytest.raises(
        ConfigError, match=r"buffer_size: .*16384 agents.*28224 of images.*44\d\.\d GiB: expected at most 8"
    ):
        StreamStore(16384, 1024, 3, 1, 4 * 84 * 84, sized_by="buffer_size")
    with pytest.raises(ConfigError, match="rollout_steps"):
        session_of(lane_of(catch), rollout_steps=10**7)


def test_store_says_what_images_take(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="agentgpt_remote.trainer"):
        StreamStore(16, 416, 0, 1, 4 * 84 * 84)
    assert "store streams=16 steps_each=416 images_gib=0.17" in caplog.text


def test_checkpoint_knows_its_gpt_type() -> None:
    session = session_of(lane_of(catch))
    state = {**session.state_dict(), "env_steps": 0}
    with pytest.raises(ConfigError, match="gpt_type='gpt2': the run to resume has gpt_type='llama'"):
        session_of(lane_of(catch), gpt_type="gpt2").load_state_dict(state)
    del state["model"]["gpt_type"]  # as before there was a choice
    session_of(lane_of(catch)).load_state_dict(state)
    with pytest.raises(ConfigError, match="gpt_type='gpt2'"):
        session_of(lane_of(catch), gpt_type="gpt2").load_state_dict(state)


def test_step_without_a_mask_allows_everything() -> None:
    store = StreamStore(2, 2, 1, 1)
    both, flags = slice(0, 2), np.zeros(2, bool)
    for mask in (None, np.array([[1, 0], [0, 1]], bool), None):
        store.open(both, np.zeros((2, 1)), flags, action_mask=mask)
        store.complete(both, np.zeros(2), flags, flags, ~flags)
    assert store.action_mask is not None
    assert store.action_mask[:, 0].all()
    assert store.action_mask[:, 1].tolist() == [[True, False], [False, True]]


class Marked(gym.Env[Any, Any]):
    """Hands over a mask, once the first step was taken; it never ends."""

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(4)

    def __init__(self, mask: Any) -> None:
        self._mask = mask

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.int64(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.int64(0), 0.0, False, False, {"action_mask": self._mask} if self._mask is not None else {}


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (np.ones(3), r"sim-7: action_mask of agent 1 has shape \(3,\): expected \(4,\)"),
        ([1, 0, 0], r"sim-7: action_mask of agent 1 has shape \(3,\): expected \(4,\)"),
        (np.zeros(4), r"sim-7: action_mask of agent 1 allows no action: expected shape \(4,\)"),
        ({"gear": np.ones(4)}, r"sim-7: action_mask of agent 1 is a dict: expected shape \(4,\)"),
    ],
)
def test_wrong_mask_names_lane_agent_and_shape(mask: Any, text: str) -> None:
    lane = lane_of(lambda: Marked(None), lambda: Marked(mask))
    assert reset(lane, 0).action_mask is None
    lane.send(np.zeros(2, np.int64))
    with pytest.raises(TrainingFailed, match=text):
        lane.receive()


def test_masks_come_over_the_socket_as_they_are() -> None:
    local = lane_of(doors, doors)
    with RemoteVectorEnv("examples.envs:doors", num_envs=2) as remote_envs:
        remote = Lane("remote", remote_envs, local.features, 20.0)
        seen, wanted = reset(remote, 3), reset(local, 3)
        for _ in range(25):
            assert wanted.action_mask is not None
            np.testing.assert_array_equal(seen.action_mask, wanted.action_mask)
            actions = wanted.action_mask.argmax(1)
            remote.send(actions)
            local.send(actions)
            seen, wanted = remote.receive().obs, local.receive().obs


def test_masked_task_is_learned_without_an_illegal_action(tmp_path: Path) -> None:
    envs = SyncVectorEnv([doors] * 16)
    train(Hyperparameters(max_steps=12_000, use_tensorboard=False), run_dir=tmp_path, envs=[envs])
    with GPTPolicy(tmp_path / "policy") as policy:
        assert evaluate(policy, envs, episodes=50).mean > 0.95
        envs.reset(seed=0)
        with pytest.raises(ValueError, match="is locked"):
            envs.step(np.full(16, 3))  # of 16 rooms one has it locked


class Push(gym.Env[Any, Any]):
    """An image is bright or dark, and a push to the right or to the left pays; episodes of 6 steps."""

    observation_space, action_space = spaces.Box(0, 255, (16, 16), np.uint8), spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action[0]) * (1 if self._bright else -1)
        self._steps += 1
        return self._observe(), reward, False, self._steps == 6, {}

    def _observe(self) -> Any:
        self._bright = bool(self.np_random.integers(2))
        return np.full((16, 16), 200 if self._bright else 20, np.uint8)


OFF_POLICY: dict[str, Any] = {
    **{"algorithm": "offpolicy", "d_model": 32, "num_heads": 2, "num_layers": 1, "max_input_states": 4},
    **{"chunk_steps": 7, "batch_size": 56, "learning_starts": 64, "use_tensorboard": False},
}


@pytest.mark.parametrize("exploration", ["none", "epsilon_greedy"])
@pytest.mark.parametrize("make", [catch, doors, Everything])
def test_off_policy_runs_read_images_and_take_no_illegal_action(tmp_path: Path, make: Any, exploration: Any) -> None:
    noise = {"discrete": Exploration(type=exploration, initial=0.5, final=0.5)}
    hyperparameters = Hyperparameters(**OFF_POLICY, max_steps=1500, replay_ratio=2.0, exploration=noise)
    envs = SyncVectorEnv([make] * 4)  # an illegal action raises
    assert train(hyperparameters, run_dir=tmp_path, envs=[envs]).env_steps >= 1500
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "train/policy_loss" in row]
    assert rows
    assert all(np.isfinite(value) for row in rows for name, value in row.items() if name.startswith("train/"))
    with GPTPolicy(tmp_path / "policy", deterministic=False) as policy:
        evaluate(policy, envs, episodes=8)
    envs.close()


def test_off_policy_learns_continuous_actions_from_images(tmp_path: Path) -> None:
    envs = SyncVectorEnv([Push] * 8)
    hyperparameters = Hyperparameters(**{**OFF_POLICY, "replay_ratio": 8, "lr_init": 3e-3, "max_steps": 3000})
    train(hyperparameters, run_dir=tmp_path, envs=[envs])
    with GPTPolicy(tmp_path / "policy") as policy:
        assert evaluate(policy, envs, episodes=24).mean > 4  # 6 at best, 0 at random
    envs.close()


def test_off_policy_learns_a_masked_task(tmp_path: Path) -> None:
    envs = SyncVectorEnv([doors] * 8)
    hyperparameters = Hyperparameters(**{**OFF_POLICY, "replay_ratio": 8, "lr_init": 3e-3, "max_steps": 4000})
    train(hyperparameters, run_dir=tmp_path, envs=[envs])
    with GPTPolicy(tmp_path / "policy") as policy:
        assert evaluate(policy, envs, episodes=24).mean > 0.8  # 1 at best, 0.33 at random
    envs.close()


def test_entropy_that_is_held_is_a_part_of_what_the_masks_leave() -> None:
    session = session_of(lane_of(doors, doors), **OFF_POLICY, rollout_steps=64)
    session.start()
    session.collector.collect(128, lambda: False)
    learner: Any = session.learner
    replay = learner.draw(session.store, version=0)
    assert replay.action_mask is not None
    assert replay.action_mask[:, :-1][replay.weight.bool()].sum(-1).eq(3).all(), "three of eight doors are open"
    assert learner._wanted_entropy(replay) == pytest.approx(session.hp.entropy_target * np.log(3), rel=1e-5)


def test_greedy_evaluation_during_training_obeys_masks(tmp_path: Path) -> None:
    values = {**SMALL, "env_id": "examples.envs:doors", "num_envs": 4, "max_steps": 1200, "eval_interval_steps": 500}
    train(Hyperparameters(**values, use_tensorboard=False), run_dir=tmp_path)
    rows = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert any("rollout/greedy_return" in row for row in rows)
    assert rows[-1]["env_steps"] >= 1000


@pytest.mark.slow
@pytest.mark.parametrize("gpt_type", ["llama", "gpt2"])
def test_image_task_is_solved(tmp_path: Path, gpt_type: Any) -> None:
    envs = SyncVectorEnv([catch] * 16)
    hyperparameters = Hyperparameters(max_steps=IMAGE_STEPS, use_tensorboard=False, gpt_type=gpt_type)
    train(hyperparameters, run_dir=tmp_path, envs=[envs])
    with GPTPolicy(tmp_path / "policy") as policy:
        assert evaluate(policy, envs, episodes=100).mean > 0.9


@pytest.mark.slow
def test_hybrid_task_is_solved(tmp_path: Path) -> None:
    envs = SyncVectorEnv([dials] * 16)
    train(Hyperparameters(max_steps=HYBRID_STEPS, use_tensorboard=False), run_dir=tmp_path, envs=[envs])
    with GPTPolicy(tmp_path / "policy") as policy:
        assert evaluate(policy, envs, episodes=100).mean > 0.7
