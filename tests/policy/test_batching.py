"""Many clients at once, requests of one thread of the model, and weights that change meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from agentgpt_remote import errors
from agentgpt_remote.policy.agent_table import AgentTable, Prepared
from agentgpt_remote.policy.batching import Batcher
from agentgpt_remote.policy.bundle import load_bundle, save_bundle
from agentgpt_remote.policy.engine import PolicyEngine
from agentgpt_remote.policy.features import Float32
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.options import ActOptions
from agentgpt_remote.policy.server import PolicyServerOptions, serve_policy
from tests.policy.conftest import SPACES, make_model, make_smooth_model
from tests.support import wait_until

STREAMS = np.random.default_rng(0).normal(size=(8, 30, 2, 3))


def _together(functions: list[Callable[[], None]]) -> None:
    """Run functions in threads of their own, and raise what one of them raised."""
    failures: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if failures:
        raise failures[0]


def test_requests_of_many_clients_share_passes_and_stay_apart(bundles: dict[str, Path]) -> None:
    """Clients differ in memory, control, sampling and agents, which all go by the same names."""
    options = PolicyServerOptions(batch_wait_s=0.02)
    with serve_policy(bundles["smooth"], port=0, block=False, options=options) as server:

        def play(source: str | Path, index: int) -> np.ndarray:
            with GPTPolicy(source, deterministic=index % 2 == 0, seed=index) as policy:
                policy.set_num_input_states(1 + index % 4)
                policy.set_control_value(control_value=1.0 if index < 4 else 0.6)
                return np.array(
                    [
                        policy.select_action(["a", "b"], batch, ["a"] if step == 11 + index else None)
                        for step, batch in enumerate(STREAMS[index])
                    ]
                )

        results: dict[int, np.ndarray] = {}
        _together([lambda i=index: results.update({i: play(server.url, i)}) for index in range(8)])
        status = httpx.get(server.url.replace("ws://", "http://") + "/status").json()
        for index in range(8):
            np.testing.assert_allclose(results[index], play(bundles["smooth"], index), atol=1e-4)
    assert status["requests"] == 8 * 30
    assert status["batches"] < 0.6 * status["requests"]


def test_one_bad_request_fails_alone(served: dict[str, str]) -> None:
    def good() -> None:
        with GPTPolicy(served["smooth"]) as policy:
            for batch in STREAMS[0]:
                policy.select_action(["a", "b"], batch)

    def bad() -> None:
        with GPTPolicy(served["smooth"]) as policy:
            for batch in STREAMS[1]:
                # Past the client's own check, so that the server must refuse it.
                with pytest.raises(errors.InvalidObservation, match="finite"):
                    policy._source.act(("a", "b"), batch * np.nan, (), ActOptions())

    _together([good, bad, good])


def test_failing_model_fails_the_round_and_nothing_else(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PolicyEngine(load_bundle(bundles["smooth"]).model)
    table = AgentTable(engine)

    class Act:
        owner = "client"

        def begin(self) -> Prepared:
            self.prepared = table.prepare(("a", "b"), STREAMS[0, 0], (), ActOptions())
            return self.prepared

        def finish(self, vectors: Float32) -> None:
            table.commit(self.prepared)
            self.vectors = vectors

        def fail(self, prepared: Prepared) -> None:
            table.roll_back(prepared)

        def answer(self) -> Float32:
            return self.vectors

    async def run() -> None:
        batcher = Batcher(engine)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(engine.model, "act_step", _fail)
                with pytest.raises(RuntimeError, match="out of memory"):
                    await batcher.submit(Act())
            assert table.agent_ids == []
            assert (await batcher.submit(Act())).shape == (2, 2)
            assert await batcher.call(lambda: len(table.held)) == 2
        finally:
            batcher.close()

    asyncio.run(run())


def _fail(*_: object) -> torch.Tensor:
    raise RuntimeError("out of memory")


def test_lone_client_never_waits_for_others(bundles: dict[str, Path]) -> None:
    options = PolicyServerOptions(batch_wait_s=5.0)
    with (
        serve_policy(bundles["cartpole"], port=0, block=False, options=options) as server,
        GPTPolicy(server.url) as policy,
    ):
        begun = time.monotonic()
        for _ in range(5):
            policy(np.zeros(4, np.float32))
        assert time.monotonic() - begun < 4


def test_wrong_server_options_are_named() -> None:
    with pytest.raises(errors.ConfigError, match="max_agents=0"):
        PolicyServerOptions(max_agents=0)
    with pytest.raises(errors.ConfigError, match="batch_wait_s"):
        PolicyServerOptions(batch_wait_s=-1)


def _watched(path: Path) -> PolicyServerOptions:
    save_bundle(path, make_smooth_model(), provenance={})
    return PolicyServerOptions(watch=True, watch_interval_s=0.05)


def test_watching_takes_new_weights_without_dropping_a_request(tmp_path: Path) -> None:
    """After the change the server acts like the new bundle that was told all that the agents have seen."""
    options = _watched(tmp_path)
    rng = np.random.default_rng(2)
    with (
        serve_policy(tmp_path, port=0, block=False, options=options) as server,
        GPTPolicy(server.url) as policy,
    ):
        seen: list[np.ndarray] = []
        taken: list[np.ndarray] = []

        def step() -> None:
            seen.append(rng.normal(size=(2, 3)))
            taken.append(policy.select_action(["a", "b"], seen[-1]))

        for number in range(1, 4):
            for _ in range(8):
                step()
            model = make_smooth_model(seed=number)
            save_bundle(tmp_path, model, provenance={})

            def reloaded(expected: int = number) -> bool:
                step()
                return bool(policy.status()["server"]["reloads"] >= expected)

            wait_until(reloaded, what="new weights")
            step()
            np.testing.assert_allclose(taken[-1], _as_if(model, seen, taken), atol=1e-5)
        assert policy.status()["server"]["restored"] == 0


def _as_if(model: torch.nn.Module, seen: list[np.ndarray], taken: list[np.ndarray]) -> np.ndarray:
    """Return the last actions that a model would have taken after all that was seen and done."""
    rows = []
    for agent in range(2):
        obs = torch.tensor(np.array(seen)[:, agent], dtype=torch.float32)[None]
        previous = torch.zeros(1, len(seen), 2)
        previous[0, 1:] = torch.tensor(model.actions.encode(np.array(taken)[:-1, agent]))  # type: ignore[operator,union-attr]
        first = torch.zeros(1, len(seen), dtype=torch.bool)
        first[0, 0] = True
        with torch.no_grad():
            mode = model.distribution(model(obs, previous, first)[0, -1]).mode()  # type: ignore[operator]
        rows.append(model.actions.decode(mode[None].numpy())[0])  # type: ignore[operator,union-attr]
    return np.array(rows)


def test_watching_leaves_the_old_weights_where_the_new_bundle_is_no_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = _watched(tmp_path)
    with (
        serve_policy(tmp_path, port=0, block=False, options=options) as server,
        GPTPolicy(server.url) as policy,
    ):
        before = policy.select_action(["a"], STREAMS[0, 0, :1])
        weights = tmp_path / "model.safetensors"
        good = weights.read_bytes()
        weights.write_bytes(good[:100])
        wait_until(lambda: "can't be loaded" in caplog.text, what="a warning")
        save_bundle(tmp_path, make_model("cartpole"), provenance={})
        wait_until(lambda: "other spaces or sizes" in caplog.text, what="a warning")
        np.testing.assert_array_equal(policy.select_action(["a"], STREAMS[0, 0, :1], ["a"]), before)
        weights.unlink()
        policy.select_action(["a"], STREAMS[0, 0, :1])
        save_bundle(tmp_path, make_smooth_model(seed=5), provenance={})
        wait_until(lambda: policy.status()["server"]["reloads"] == 1, what="new weights")
        assert policy.action_space == SPACES["continuous"][1]
