"""Acting through a local policy server from a loop that runs at 60 Hz, beside the bare call in the same loop.

Usage: ``python -m benchmarks.policy_loop [--model 5x256] [--window 16] [--rate 60] [--seconds 60]``

The loop sleeps until its next frame, then acts for one agent. Frames are by turns the server's and the bare ONNX
Runtime call of this process, so that both meet the same idle cores; each has its median and its 99th percentile.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch

from agentgpt_remote.policy.bundle import save_bundle
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.local_server import LocalPolicyServer
from agentgpt_remote.policy.model import PolicyModel
from benchmarks.common import parser, print_table, write_report
from benchmarks.policy import ACTION_SPACE, OBSERVATION_SPACE, bare_onnx_call, policy_call


def run_loop(calls: dict[str, Callable[[], None]], rate: float, seconds: float) -> dict[str, list[float]]:
    """Return durations in milliseconds of calls that take turns, one per frame."""
    durations: dict[str, list[float]] = {name: [] for name in calls}
    names, begun = list(calls), time.perf_counter()
    for frame in range(int(rate * seconds)):
        time.sleep(max(0.0, begun + frame / rate - time.perf_counter()))
        name = names[frame % len(names)]
        start = time.perf_counter()
        calls[name]()
        durations[name].append(1e3 * (time.perf_counter() - start))
    return durations


def main() -> None:
    """Parse the options, measure and print."""
    made = parser(str(__doc__))
    made.add_argument("--model", default="5x256", help="LAYERSxWIDTH")
    made.add_argument("--window", type=int, default=16)
    made.add_argument("--rate", type=float, default=60.0, help="frames per second")
    made.add_argument("--seconds", type=float, default=60.0)
    told = made.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the server's process when it starts
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers, width = map(int, told.model.split("x"))
    config = GPTConfig(num_layers=layers, d_model=width, num_heads=width // 32, max_input_states=told.window)
    model = PolicyModel(OBSERVATION_SPACE, ACTION_SPACE, config).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(folder, model, provenance={"source": "benchmark"})
        with LocalPolicyServer(folder).policy() as policy:
            calls = {"bare": bare_onnx_call(model, 1), "socket": policy_call(policy, 1)}
            run_loop(calls, told.rate, 1.0)
            durations = run_loop(calls, told.rate, told.seconds)
    row: dict[str, float] = {"frames": sum(map(len, durations.values()))}
    for name, values in durations.items():
        row |= {
            f"{name}_p50_ms": round(float(np.median(values)), 3),
            f"{name}_p99_ms": round(float(np.percentile(values, 99)), 3),
        }
    print_table([row])
    write_report(told.json, {"benchmark": "policy_loop", "rows": [row]})


if __name__ == "__main__":
    main()
