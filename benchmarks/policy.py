"""Acting latency beside the bare forward pass of the same model: in process, and through a local socket.

Usage: ``python benchmarks/policy.py [--agents 1 64] [--models 2x64 5x256] [--windows 16] [--engine onnx]``

For each model and number of agents it times, in turns, so that a busy machine slows all of them alike:

- bare: the engine's own call on ready inputs, nothing else: of eager torch the model's ``act_step`` and the mode of its
  distribution, of ONNX Runtime ``InferenceSession.run``;
- local: ``policy(observation)`` for one agent, ``policy.select_action`` for more, on a bundle in this process;
- socket: the same through a policy server in a process of its own on this machine.

Times are medians and 99th percentiles in milliseconds. A ratio compares neighbours in time: it is the median
over rounds of one round's median beside the bare median of the same round, with its quartiles. Where the
quartiles are far apart, or a ratio is below 1, the machine was busy and the figure says little.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from agentgpt_remote.policy.bundle import save_bundle
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.local_server import LocalPolicyServer
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.policy.onnx_graph import cache_names
from agentgpt_remote.policy.onnx_runner import ArrayCache, OnnxModel
from agentgpt_remote.policy.runner import Engine

OBSERVATION_SPACE = spaces.Box(-10, 10, (24,), np.float32)
ACTION_SPACE = spaces.Box(-1, 1, (4,), np.float32)
_ROUND_CALLS = 10
_HEAD_SIZE = 32


def bare_call(model: PolicyModel, agents: int) -> Callable[[], None]:
    """Return one bare decision for ``agents`` agents."""
    cache = model.make_cache(agents)
    obs = torch.randn(agents, model.observations.width)
    previous = torch.zeros(agents, model.actions.width)
    is_first = torch.zeros(agents, dtype=torch.bool)
    slots = slice(0, agents)

    @torch.inference_mode()
    def call() -> None:
        model.distribution(model.act_step(obs, previous, is_first, cache, slots)).mode().numpy()

    return call


def bare_onnx_call(model: PolicyModel, agents: int) -> Callable[[], None]:
    """Return one bare decision of ONNX Runtime for ``agents`` agents."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    onnx = OnnxModel.of_weights(model.observation_space, model.action_space, model.config, weights)
    feeds: dict[str, Any] = {
        "observation": np.random.default_rng(0).normal(size=(agents, model.observations.width)).astype(np.float32),
        "previous_action": np.zeros((agents, model.actions.width), np.float32),
        "is_first": np.zeros(agents, np.int64),
        "clock": np.full(agents, model.config.max_input_states, np.int64),
        "length": np.full(agents, model.config.max_input_states, np.int64),
    }
    cache = ArrayCache(model.config, agents)
    for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
        feeds |= {cache_names(layer, "key")[0]: keys, cache_names(layer, "value")[0]: values}
    outputs = [output.name for output in onnx.session.get_outputs()]
    return lambda: onnx.session.run(outputs, feeds)


def policy_call(policy: GPTPolicy, agents: int) -> Callable[[], None]:
    """Return one decision of a policy for ``agents`` agents."""
    obs = np.random.default_rng(0).normal(size=(agents, *OBSERVATION_SPACE.shape)).astype(np.float32)
    if agents == 1:
        return lambda: policy(obs[0])
    ids = [f"agent-{index}" for index in range(agents)]
    return lambda: policy.select_action(ids, obs)


def measure(calls: dict[str, Callable[[], None]], count: int) -> dict[str, np.ndarray]:
    """Return durations of each call in milliseconds, of shape (rounds, calls of a round), taken in turns."""
    rounds = max(1, count // _ROUND_CALLS)
    durations = {name: np.zeros((rounds, _ROUND_CALLS)) for name in calls}
    for call in calls.values():
        for _ in range(_ROUND_CALLS):
            call()
    for index in range(rounds):
        # The other way round every second time, so that none profits from its place.
        for name in list(calls)[:: -1 if index % 2 else 1]:
            call = calls[name]
            call()  # what the last one left in the caches is not this one's
            for turn in range(_ROUND_CALLS):
                start = time.perf_counter()
                call()
                durations[name][index, turn] = 1e3 * (time.perf_counter() - start)
    return durations


def run(layers: int, width: int, window: int, agents: list[int], count: int, engine: Engine) -> list[dict[str, Any]]:
    """Return a row per number of agents for one model."""
    bare_of = bare_onnx_call if engine == "onnx" else bare_call
    torch.manual_seed(0)
    config = GPTConfig(num_layers=layers, d_model=width, num_heads=max(1, width // _HEAD_SIZE), max_input_states=window)
    model = PolicyModel(OBSERVATION_SPACE, ACTION_SPACE, config).eval().requires_grad_(False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(folder, model, provenance={"source": "benchmark"})
        for n in agents:
            with (
                GPTPolicy(Path(folder), engine=engine) as local,
                LocalPolicyServer(folder, engine=engine).policy() as remote,
            ):
                calls = {"bare": bare_of(model, n), "local": policy_call(local, n), "socket": policy_call(remote, n)}
                times = measure(calls, count)
            row: dict[str, Any] = {"model": f"{layers}x{width}", "window": window, "agents": n}
            for name, values in times.items():
                row[f"{name}_p50_ms"] = round(float(np.median(values)), 3)
                row[f"{name}_p99_ms"] = round(float(np.percentile(values, 99)), 3)
            bare = np.median(times["bare"], axis=1)
            for name in ("local", "socket"):
                ours = np.median(times[name], axis=1)
                row[f"{name}_ratio"] = [round(float(v), 3) for v in np.percentile(ours / bare, (50, 25, 75))]
                row[f"{name}_extra_ms"] = round(float(np.median(ours - bare)), 3)
            rows.append(row)
    return rows


def main() -> None:
    """Parse the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--models", nargs="+", default=["2x64", "5x256"], help="LAYERSxWIDTH")
    parser.add_argument("--windows", type=int, nargs="+", default=[16])
    parser.add_argument("--engine", choices=("eager", "onnx"), default="onnx", help="of all three")
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--threads", type=int, default=1, help="torch threads, of this process and of the server's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read by the server's process when it starts
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    rows = []
    for name in options.models:
        layers, _, width = name.partition("x")
        for window in options.windows:
            rows += run(int(layers), int(width), window, options.agents, options.calls, options.engine)
    loads = [round(value, 2) for value in (load, os.getloadavg()[0])]
    if options.json:
        print(
            json.dumps(
                {
                    "engine": options.engine,
                    "threads": options.threads,
                    "cores": os.cpu_count(),
                    "load": loads,
                    "rows": rows,
                }
            )
        )
        return
    where = f"{options.engine}, {options.threads} threads on {os.cpu_count()} cores"
    print(f"{where}, load {loads[0]} before and {loads[1]} after")
    print("model  window agents  p50 (p99) ms:   bare            local           socket   over bare [quartiles]")
    for row in rows:
        times = "".join(
            f"{row[f'{name}_p50_ms']:9.3f} ({row[f'{name}_p99_ms']:6.2f})" for name in ("bare", "local", "socket")
        )
        ratios = "".join(
            "  {}: {:.2f}x [{:.2f}, {:.2f}] {:+.3f} ms".format(name, *row[f"{name}_ratio"], row[f"{name}_extra_ms"])
            for name in ("local", "socket")
        )
        print(f"{row['model']:6} {row['window']:6} {row['agents']:6} {times}{ratios}")


if __name__ == "__main__":
    main()
