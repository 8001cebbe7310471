"""Engines act alike: torch, torch.compile, ONNX Runtime with and without torch, and exported files."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from gymnasium.vector.utils import batch_space

from agentgpt_remote import AgentGPT, GPTPolicy
from agentgpt_remote.errors import BundleError, ConfigError
from agentgpt_remote.policy import opening
from agentgpt_remote.policy.auto_runner import AutoRunner
from agentgpt_remote.policy.bundle import load_bundle, save_bundle
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.export import TOLERANCE, export_onnx
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.policy.onnx_graph import rope_tables
from agentgpt_remote.policy.onnx_runner import OnnxModel, OnnxRunner
from agentgpt_remote.policy.opening import OpenedPolicy
from agentgpt_remote.policy.runner import SlotIndex
from agentgpt_remote.policy.torch_runner import TorchRunner
from agentgpt_remote.policy.trunk import rope_table
from tests.policy.conftest import SPACES, make_model, make_smooth_model

_NO_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Blocked())
"""


def _model(name: str, *, layers: int = 2, window: int = 4, **config: Any) -> PolicyModel:
    torch.manual_seed(1)
    sizes = GPTConfig(num_layers=layers, d_model=32, num_heads=2, max_input_states=window, **config)
    model = PolicyModel(*SPACES[name], sizes).eval().requires_grad_(False)
    model.head.weight.mul_(50.0)
    return model


def _onnx(model: PolicyModel) -> OnnxRunner:
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return OnnxRunner(OnnxModel.of_weights(model.observation_space, model.action_space, model.config, weights))


class _Steps:
    """Random steps of some agents."""

    def __init__(self, model: PolicyModel, count: int) -> None:
        self._model, self._count, self._rng = model, count, np.random.default_rng(0)
        self._observations = batch_space(model.observation_space, count)
        self._actions = batch_space(model.action_space, count)
        self._observations.seed(0), self._actions.seed(0)

    def draw(self, *, first: bool = False) -> tuple[Any, ...]:
        batch = self._observations.sample()
        is_first = np.full(self._count, True) if first else self._rng.random(self._count) < 0.2
        features = self._model.observations
        previous = self._model.actions.encode(self._actions.sample())
        return features.encode(batch), previous, is_first, features.pixels(batch)


@pytest.mark.parametrize("gpt_type", ["llama", "gpt2"])
@pytest.mark.parametrize("name", list(SPACES))
def test_onnx_equals_torch_within_1e5(name: str, gpt_type: str) -> None:
    model = _model(name, gpt_type=gpt_type)
    runners = [TorchRunner(model), _onnx(model)]
    for runner in runners:
        runner.grow(6)
    steps, rng = _Steps(model, 3), np.random.default_rng(1)
    for turn in range(25):
        obs, previous, is_first, pixels = steps.draw(first=not turn)
        rows = rng.permutation(6)[:3]
        index = SlotIndex(np.arange(1, 4), slice(1, 4)) if turn % 2 else SlotIndex(rows, rows)
        eager, ours = (runner.step(obs, previous, is_first, index, pixels) for runner in runners)
        np.testing.assert_allclose(ours, eager, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 64, 1024])
def test_onnx_takes_any_number_of_agents(count: int) -> None:
    model = _model("continuous", squashed=True)
    runners = [TorchRunner(model), _onnx(model)]
    index, steps = SlotIndex(np.arange(count), slice(0, count)), _Steps(model, count)
    for runner in runners:
        runner.grow(count)
    for turn in range(6):
        obs, previous, is_first, _ = steps.draw(first=not turn)
        eager, ours = (runner.step(obs, previous, is_first, index, None) for runner in runners)
        np.testing.assert_allclose(ours, eager, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(20, 24, 3), (64, 48), (3, 84, 84)])
def test_onnx_embeds_images_of_any_layout(shape: tuple[int, ...]) -> None:
    from gymnasium import spaces

    torch.manual_seed(0)
    space = spaces.Box(0, 255, shape, np.uint8)
    model = PolicyModel(space, spaces.Discrete(3), GPTConfig(d_model=32, num_heads=2, max_input_states=3)).eval()
    model.requires_grad_(False).head.weight.mul_(50.0)
    index = SlotIndex(np.arange(2), slice(0, 2))
    runners = [TorchRunner(model), _onnx(model)]
    steps = _Steps(model, 2)
    for runner in runners:
        runner.grow(2)
    for turn in range(5):
        batch = steps.draw(first=not turn)
        eager, ours = (runner.step(*batch[:3], index, batch[3]) for runner in runners)
        np.testing.assert_allclose(ours, eager, atol=1e-5, rtol=0)


def test_onnx_rebuilds_memories_and_reads_short_ones_as_torch_does() -> None:
    model = _model("continuous")
    runners = [TorchRunner(model), _onnx(model)]
    rng = np.random.default_rng(0)
    obs, previous = (rng.normal(size=(3, 8, width)).astype(np.float32) for width in (3, 2))
    first = np.zeros((3, 8), np.bool_)
    first[0, 5] = first[2, 0] = True
    first[1, :4] = True  # padding, and the first step
    rows = np.array([0, 3, 1])
    for runner in runners:
        runner.grow(4)
        runner.rebuild(rows, obs, previous, first, None)
    index = SlotIndex(rows, rows)
    for _ in range(6):
        step = (rng.normal(size=(3, 3)).astype(np.float32), previous[:, 0], np.zeros(3, np.bool_))
        eager, ours = (runner.step(*step, index, None) for runner in runners)
        np.testing.assert_allclose(ours, eager, atol=1e-5, rtol=0)
    eager, ours = (runner.short(obs[:, :3], previous[:, :3], first[:, :3], None) for runner in runners)
    np.testing.assert_allclose(ours, eager, atol=1e-5, rtol=0)


def test_rotary_tables_are_the_same_without_torch() -> None:
    for window in (3, 16, 64):
        config = GPTConfig(d_model=64, num_heads=2, max_input_states=window)
        theirs = rope_table(config.head_size, window).numpy()
        np.testing.assert_allclose(np.stack(rope_tables(config)), theirs, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_compiled_equals_eager_within_1e5() -> None:
    model = _model("nested")
    runners = [TorchRunner(model), TorchRunner(model, compiled=True)]
    for runner in runners:
        runner.grow(6)
    for count in (1, 3, 5):
        steps, index = _Steps(model, count), SlotIndex(np.arange(count), slice(0, count))
        for turn in range(6):
            obs, previous, is_first, pixels = steps.draw(first=not turn)
            eager, ours = (runner.step(obs, previous, is_first, index, pixels) for runner in runners)
            np.testing.assert_allclose(ours, eager, atol=1e-5, rtol=0)


def test_auto_says_what_it_chose_and_why(bundles: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "agentgpt_remote.policy"), GPTPolicy(bundles["smooth"]) as policy:
        told = policy.status()["server"]["engine"]
    assert told["engine"] == "auto"
    assert set(told["chosen"]) == {"1", "8", "64"}
    assert set(told["chosen"].values()) <= {"eager", "onnx"}
    assert "from 1 agent on (eager" in told["why"]
    assert told["why"] in caplog.text


def test_auto_uses_the_faster_engine_for_as_many_agents_on_one_cache(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([2e-3, 1e-3, 1e-3, 2e-3, 1e-3, 2e-3])  # eager and onnx, for 1, 8 and 64 agents
    monkeypatch.setattr("agentgpt_remote.policy.auto_runner._fastest", lambda _: next(times))
    with GPTPolicy(bundles["smooth"]) as policy, GPTPolicy(bundles["smooth"], engine="eager") as eager:
        assert policy.status()["server"]["engine"]["chosen"] == {"1": "onnx", "8": "eager", "64": "eager"}
        ids, rng = [str(i) for i in range(20)], np.random.default_rng(0)
        for turn in range(12):
            acting = ids if turn % 2 else [ids[0]]
            obs = rng.normal(size=(len(acting), 3))
            np.testing.assert_allclose(
                policy.select_action(acting, obs), eager.select_action(acting, obs), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize(("missing", "chosen"), [("onnxruntime", "eager"), ("torch", "onnx")])
def test_auto_takes_what_is_installed(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, missing: str, chosen: str
) -> None:
    monkeypatch.setattr(opening, "_is_there", lambda name: name != missing)
    assert OpenedPolicy(bundles["smooth"]).runner.describe() == {
        "engine": chosen,
        "why": f"{missing} is not installed",
    }


def test_auto_without_any_engine_says_what_to_install(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_is_there", lambda name: False)
    with pytest.raises(Exception, match=r"pip install .agentgpt-remote\[onnx\]"):
        GPTPolicy(bundles["smooth"])


def test_engines_draw_the_same_actions_for_a_seed(bundles: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(4, 3)) for _ in range(8)]
    results = []
    for engine in ("eager", "onnx", "auto"):
        with GPTPolicy(bundles["smooth"], deterministic=False, seed=3, engine=engine) as policy:
            results.append([policy.select_action(list("abcd"), batch) for batch in batches])
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-5)


def test_unknown_engine_and_wrong_uses_are_named(bundles: dict[str, Path], served: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"engine='fast': expected 'auto', 'eager', 'compile', 'onnx'"):
        GPTPolicy(bundles["smooth"], engine="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="server has an engine of its own"):
        GPTPolicy(served["smooth"], engine="onnx")
    with pytest.raises(ConfigError, match="device='cuda'"):
        GPTPolicy(bundles["smooth"], engine="onnx", device="cuda")


def test_policy_server_runs_the_engine_that_is_asked_for(bundles: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    with (
        AgentGPT.run_on_local(bundles["smooth"], engine="onnx") as policy,
        GPTPolicy(bundles["smooth"], engine="eager") as eager,
    ):
        assert policy.status()["server"]["engine"]["engine"] == "onnx"
        for _ in range(6):
            obs = rng.normal(size=3)
            np.testing.assert_allclose(policy(obs), eager(obs), atol=1e-5)


@pytest.mark.parametrize("engine", ["auto", "onnx"])
def test_new_weights_are_taken_by_every_engine(tmp_path: Path, engine: Any) -> None:
    save_bundle(tmp_path, make_smooth_model(), provenance={})
    opened = OpenedPolicy(tmp_path, engine=engine)
    save_bundle(tmp_path, make_smooth_model(seed=5), provenance={})
    opened.runner.replace(opened.load())
    opened.runner.grow(1)
    expected = TorchRunner(load_bundle(tmp_path).model)
    expected.grow(1)
    step = (np.ones((1, 3), np.float32), np.zeros((1, 2), np.float32), np.ones(1, np.bool_))
    index = SlotIndex(np.arange(1), slice(0, 1))
    np.testing.assert_allclose(
        opened.runner.step(*step, index, None), expected.step(*step, index, None), atol=1e-5, rtol=0
    )
    assert isinstance(opened.runner, AutoRunner if engine == "auto" else OnnxRunner)


@pytest.mark.parametrize("name", list(SPACES))
def test_exported_file_is_valid_and_acts_like_the_bundle(bundles: dict[str, Path], tmp_path: Path, name: str) -> None:
    result = export_onnx(bundles[name], tmp_path / "policy.onnx")
    model = onnx.load(result.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 15)]
    assert result.max_difference <= TOLERANCE
    ids = ["a", "b"]
    with GPTPolicy(result.path) as policy, GPTPolicy(bundles[name], engine="eager") as eager:
        space = batch_space(eager.observation_space, 2)
        space.seed(0)
        for turn in range(10):
            batch, ended = space.sample(), ["a"] if turn == 5 else None
            features = ActionFeatures(eager.action_space)
            ours, theirs = (features.encode(p.select_action(ids, batch, ended)) for p in (policy, eager))
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_loop_over_an_exported_file_as_the_guide_shows_it(bundles: dict[str, Path], tmp_path: Path) -> None:
    session = ort.InferenceSession(export_onnx(bundles["smooth"], tmp_path / "p.onnx").path)
    shapes = {node.name: [1 if isinstance(n, str) else n for n in node.shape] for node in session.get_inputs()}
    state = {name: np.zeros(shape, np.int64) for name, shape in shapes.items() if name in ("clock", "length")}
    state |= {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith("past")}
    action = np.zeros(shapes["previous_action"], np.float32)
    names = [node.name for node in session.get_outputs()]
    rng = np.random.default_rng(0)
    with GPTPolicy(bundles["smooth"], engine="eager") as policy:
        for step in range(14):
            if step == 9:
                policy.reset()
            obs, first = rng.normal(size=(1, 3)).astype(np.float32), np.array([step in (0, 9)], np.int64)
            feeds = {"observation": obs, "previous_action": action, "is_first": first, **state}
            outputs = dict(zip(names, session.run(None, feeds), strict=True))
            action = outputs["action"]
            state = {"clock": outputs["next_clock"], "length": outputs["next_length"]}
            state |= {
                name.replace("present", "past_key_values"): value
                for name, value in outputs.items()
                if name.startswith("present")
            }
            # Policy units: -1 and 1 are the bounds, here -2 and 2.
            np.testing.assert_allclose(2 * np.clip(action[0], -1, 1), policy(obs[0]), atol=1e-5)


def test_acting_with_an_exported_bundle_needs_no_torch(bundles: dict[str, Path], tmp_path: Path) -> None:
    exported = export_onnx(bundles["smooth"], tmp_path / "policy.onnx").path
    code = _NO_TORCH + (
        "import json, numpy as np\n"
        "from agentgpt_remote import GPTPolicy\n"
        "out = []\n"
        "for source in sys.argv[1:]:\n"
        "    with GPTPolicy(source) as policy:\n"
        "        policy.set_num_input_states(2)\n"
        "        out.append([policy(np.full(3, 0.1 * i)).tolist() for i in range(4)])\n"
        "        policy.set_num_input_states(4)\n"
        "        out[-1] += [policy(np.full(3, 0.2 * i)).tolist() for i in range(6)]\n"
        "        assert policy.status()['server']['engine']['engine'] == 'onnx'\n"
        "assert not any(name.split('.')[0] == 'torch' for name in sys.modules)\n"
        "print(json.dumps(out))\n"
    )
    command = [sys.executable, "-c", code, str(bundles["smooth"]), exported]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    with GPTPolicy(bundles["smooth"], engine="eager") as policy:
        policy.set_num_input_states(2)
        expected = [policy(np.full(3, 0.1 * i)) for i in range(4)]
        policy.set_num_input_states(4)
        expected += [policy(np.full(3, 0.2 * i)) for i in range(6)]
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_policy_server_needs_no_torch(bundles: dict[str, Path]) -> None:
    code = _NO_TORCH + (
        "import numpy as np\n"
        "from agentgpt_remote import GPTPolicy\n"
        "from agentgpt_remote.policy.server import serve_policy\n"
        "server = serve_policy(sys.argv[1], port=0, block=False)\n"
        "with GPTPolicy(server.url) as policy:\n"
        "    print(policy(np.zeros(3)).shape, policy.status()['server']['engine']['why'])\n"
        "server.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundles["smooth"])], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "(2,) torch is not installed", done.stderr


def test_torch_engine_without_torch_names_the_install(bundles: dict[str, Path]) -> None:
    code = _NO_TORCH + "from agentgpt_remote import GPTPolicy\nGPTPolicy(sys.argv[1], engine='eager')\n"
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundles["smooth"])], capture_output=True, text=True, timeout=120, check=False
    )
    assert 'torch is not installed: run `pip install "agentgpt-remote[train]"`' in done.stderr


def test_export_refuses_what_makes_no_sense(bundles: dict[str, Path], tmp_path: Path) -> None:
    for out in (tmp_path / "policy.bin", tmp_path / "no" / "policy.onnx", tmp_path):
        with pytest.raises(ConfigError, match=r"expected a file that ends in \.onnx"):
            export_onnx(bundles["smooth"], out)
    with pytest.raises(BundleError, match="no policy bundle"):
        export_onnx(tmp_path)


def test_export_that_would_not_act_alike_writes_nothing(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentgpt_remote.policy.export._difference", lambda *_: float("nan"))
    with pytest.raises(BundleError, match="differs from torch"):
        export_onnx(bundles["smooth"], tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_exported_policy_are_named(bundles: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    with pytest.raises(BundleError, match=r"can't be read .*agentgpt export BUNDLE --out"):
        GPTPolicy(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(BundleError, match="is damaged or no ONNX file"):
        GPTPolicy(path)
    model = onnx.load(export_onnx(bundles["smooth"], path).path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(BundleError, match="not written by `agentgpt export`"):
        GPTPolicy(path)
    with pytest.raises(ConfigError, match="runs by engine='onnx' only"):
        GPTPolicy(path, engine="eager")


@pytest.mark.parametrize("engine", ["eager", "onnx", "auto"])
def test_weights_that_do_not_fit_are_named_by_every_engine(tmp_path: Path, engine: Any) -> None:
    save_bundle(tmp_path, make_model("cartpole"), provenance={})
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"num_layers": 3}, {"d_model": 64}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"model": config["model"] | change}))
        with pytest.raises(BundleError, match=r"does not fit config\.json|can't read the model"):
            GPTPolicy(tmp_path, engine=engine)
